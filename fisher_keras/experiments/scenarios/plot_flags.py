"""The command line flags of `bin/plot_results`."""

from absl import flags

from fisher_keras.experiments.scenarios.plot import PlotConfig

GROUP = "results"


def define_flags() -> None:
    """Defines a flag for each field of `PlotConfig`."""
    group = {"module_name": GROUP}
    flags.DEFINE_multi_string(
        "store", None, "Folder of a scenario's runs; repeated for several.", **group
    )
    flags.mark_flag_as_required("store")
    flags.DEFINE_string(
        "output", None, "Folder of figures and summary; by default the store.", **group
    )


def plot_config() -> PlotConfig:
    """Returns the configuration that the parsed flags ask for."""
    return PlotConfig(tuple(flags.FLAGS.store), flags.FLAGS.output)
