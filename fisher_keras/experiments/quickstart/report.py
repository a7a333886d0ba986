"""The quickstart from flags to text, figure and files."""

import dataclasses
import json
import pathlib

from absl import flags

from fisher_keras.atomic import replacing
from fisher_keras.experiments.quickstart.figure import quickstart_figure
from fisher_keras.experiments.quickstart.networks import Settings
from fisher_keras.experiments.quickstart.next_commands import next_commands
from fisher_keras.experiments.quickstart.results import error_differences, ordering
from fisher_keras.experiments.quickstart.run import carry_out
from fisher_keras.experiments.quickstart.text import summary
from fisher_keras.metrics.trials import json_ready

GROUP = "quickstart"


def define_flags() -> None:
    """Defines the flags: not on import, since other scripts have flags of the same names."""
    usual = Settings()
    group = {"module_name": GROUP}
    flags.DEFINE_integer(
        "seeds",
        usual.seeds,
        "Networks of each method, and of each number of random labels.",
        lower_bound=2,
        **group,
    )
    flags.DEFINE_integer("epochs", usual.epochs, "Of each network.", lower_bound=1, **group)
    flags.DEFINE_integer("train_size", usual.train_size, "Training images.", **group)
    flags.DEFINE_string(
        "output_dir", "results/quickstart", "Folder of the networks and the results.", **group
    )


def main() -> None:
    """Reports on the networks that the flags ask for."""
    values = flags.FLAGS
    settings = Settings(values.seeds, values.train_size, values.epochs)
    report(settings, pathlib.Path(values.output_dir).expanduser())


def report(settings: Settings, folder: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the text, and saves results and figure.

    Args:
        settings: How many networks, and how large.
        folder: For the networks in `runs/`, `results.json`, `quickstart.png` and `quickstart.pdf`.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If a setting cannot be used.
    """
    runs, minima = carry_out(settings, folder / "runs")
    results = {
        "settings": dataclasses.asdict(settings),
        "methods": [dataclasses.asdict(run) for run in runs],
        "differences": {
            method: dataclasses.asdict(difference)
            for method, difference in error_differences(runs).items()
        },
        "minima": [dataclasses.asdict(minimum) | {"model": None} for minimum in minima],
        "ordering": dataclasses.asdict(ordering(minima)),
    }
    with replacing(folder / "results.json") as part:
        part.write_text(json.dumps(json_ready(results), indent=2, allow_nan=False) + "\n")
    figure = quickstart_figure(runs, minima)
    for suffix in ("png", "pdf"):
        with replacing(folder / f"quickstart.{suffix}") as part:
            figure.savefig(part, dpi=150)
    commands = "\n".join(f"  {command}" for command in next_commands(settings, minima))
    print(
        f"\n{summary(settings, runs, minima)}\n\n"
        f"Figure and results are in {folder}.\n\n"
        f"Next, try\n{commands}"
    )
