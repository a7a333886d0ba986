"""Table of the commands: `fisher-keras NAME`, or `bin/NAME` in a checkout.

Options and functions are named here, and imported when they are needed: the list of the commands
and their --help do not have to wait for TensorFlow.
"""

import dataclasses
import pkgutil
from collections.abc import Callable
from typing import Any

from fisher_keras.experiments.command_line import flags


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: its help, its options and its function.

    Attributes:
        summary: First line of --help.
        description: The rest of it, before the flags.
        options: Dataclass of the options (see `flags.option`), as "module:Name" below
            `fisher_keras.experiments`.
        function: Function that gets `arguments` and an instance of it, likewise.
        arguments: What the function gets first.
        argument: Flag whose value may stand alone, before all other flags.
        resume_flag: Flag that makes the command resume after it was stopped; None if the same
            flags do.
    """

    summary: str
    description: str
    options: str
    function: str
    arguments: tuple[str, ...] = ()
    argument: str | None = None
    resume_flag: str | None = None

    def load_options(self) -> type:
        """Imports and returns the dataclass of the options."""
        return _load(self.options)

    def load_function(self) -> Callable[..., object]:
        """Imports and returns the function."""
        return _load(self.function)

    def help(self) -> str:
        """Returns the text of --help."""
        return f"{self.summary}\n\n{self.description}\n{flags.help_text(self.load_options())}"


def _load(name: str) -> Any:
    return pkgutil.resolve_name(f"fisher_keras.experiments.{name}")


_RESUMES = (
    "If the command is interrupted, run it again: it resumes after the last completed epoch."
)


def _scenario(name: str, number: str, varied: str) -> Command:
    return Command(
        f"Scenario {number} of Section 7.1: minima of trainings with several {varied}.",
        f"For example\n\n  {name} --preset=laptop --num_workers=2\n\n{_RESUMES}\n"
        "The command plot_results draws the results.",
        "runs.run_options:ExperimentOptions",
        "scenarios.runs:run_scenario",
        (name,),
    )


def _table(number: int, summary: str, options: str) -> Command:
    return Command(
        summary,
        f"For example\n\n  table{number} --preset=laptop --num_workers=2\n\n{_RESUMES}\n"
        "The commands table1 and table2 read the same runs.",
        f"comparisons.table_options:{options}",
        f"comparisons.regularization:make_table_{number}",
    )


COMMANDS = {
    "compare": Command(
        "Compares training methods on your own model and data, from several seeds.",
        "For example, with the functions make_model and load_data in the file mine.py\n\n"
        "  compare --model=mine:make_model --dataset=mine:load_data --epochs=50\n\n"
        f"{_RESUMES}\n"
        "By default one network after the other is trained in this process; --num_workers has a\n"
        "process for each.",
        "comparisons.compare_options:CompareOptions",
        "comparisons.own_model:run_comparison",
    ),
    "compare_methods": Command(
        "Compares the regularizer with plain, clipped and sharpness-aware training.",
        "Each method is trained at several strengths. For example\n\n"
        f"  compare_methods --preset=laptop --num_workers=2\n\n{_RESUMES}\n"
        "The table of the finished runs is printed at the end.",
        "comparisons.table_options:MethodsOptions",
        "comparisons.methods:make_methods_table",
    ),
    "complete_metrics": Command(
        "Adds the metrics that the records of finished runs lack, from their saved networks.",
        "For example\n\n  complete_metrics --store=results/pool_laptop --data_dir=PATH\n\n"
        "All metrics but robustness are added. Those that a record has must come out again, or\n"
        "nothing is added to it. If the command is interrupted, run it again: completed records\n"
        "are not computed again.",
        "runs.completion_options:CompletionOptions",
        "runs.completion:complete_metrics",
    ),
    "crossed": Command(
        "Crosses Scenarios I and III: confusion sets of two sizes, each at two batch sizes.",
        "For example\n\n  crossed --preset=laptop --label_smoothing=0.1 --num_workers=2\n\n"
        f"{_RESUMES}\nThe table of the finished runs is printed at the end.",
        "runs.run_options:ExperimentOptions",
        "scenarios.crossed:run_crossed",
    ),
    "evaluate": Command(
        "Computes the metrics of trained networks' local minima, side by side (Section 7.1).",
        "For example\n\n"
        "  evaluate --model=runs/plain/last.keras --model=runs/regularized/last.keras \\\n"
        "    --train_size=10000 --output=runs/comparison\n\n"
        "Of several networks, it also prints the differences to that with the lowest gamma-hat,\n"
        "computed trial by trial.",
        "evaluation_config:EvaluationConfig",
        "evaluate:evaluate",
    ),
    "plot_results": Command(
        "Draws Figures 1 to 3, and shows how well each metric orders networks by test error.",
        "For example\n\n"
        "  plot_results --store=results/scenario_confusion_laptop\n"
        "  plot_results --store=results/scenario_confusion_laptop \\\n"
        "    --store=results/scenario_batch_size_laptop --output=results/laptop\n\n"
        "A scenario does not have to be finished: the completed runs are drawn.",
        "scenarios.plot_config:PlotConfig",
        "scenarios.plot:plot_results",
    ),
    "pool": Command(
        "Trains a pool of networks that differ in many settings at once, by random search.",
        "For example\n\n  pool --preset=laptop --label_smoothing=0.1 --num_workers=2\n\n"
        f"{_RESUMES}\nThe command plot_results draws the results.",
        "scenarios.pool_options:PoolOptions",
        "scenarios.pool:run_pool",
    ),
    "quickstart": Command(
        "Shows both halves of the paper in a few minutes, on mislabelled handwritten digits.",
        "A small CNN is trained on digits some of which have random labels: plainly, by\n"
        "sharpness-aware minimization (SAM), and with the regularizer. Then gamma-hat of these\n"
        "networks, and of networks trained on other numbers of random labels, is compared with\n"
        "their test errors.\n"
        "If the command is interrupted, run it again: finished networks are not trained again.",
        "quickstart.networks:Settings",
        "quickstart.report:report",
    ),
    "scenario_augmentation": _scenario("scenario_augmentation", "II", "augmentations"),
    "scenario_batch_size": _scenario("scenario_batch_size", "III", "batch sizes"),
    "scenario_confusion": _scenario("scenario_confusion", "I", "sizes of the confusion set"),
    "status": Command(
        "Shows the progress of an experiment: which runs are finished, at work or have failed.",
        "For example\n\n  status results/scenario_confusion_laptop\n\n"
        "It also works on another machine that sees the folder, and while the experiment runs.",
        "status:StatusOptions",
        "status:print_status",
        argument="folder",
    ),
    "table1": _table(
        1, "Table 1: test errors with and without the regularizer (Section 7.2).", "TableOptions"
    ),
    "table2": _table(
        2,
        "Table 2: gamma-hat of the minima found with and without the regularizer (Section 7.2.2).",
        "Table2Options",
    ),
    "train_cifar": Command(
        "Trains one of the paper's networks, with or without the regularizer (Section 7.2).",
        "The defaults are the recipe of the network's own paper. For example\n\n"
        "  train_cifar --arch=resnet --regularize --output_dir=runs/first\n"
        "  train_cifar --preset=imagenet --data_dir=/data/tfds --dry_run",
        "training.training_presets:TrainingOptions",
        "training.train:run_training",
        resume_flag="--resume",
    ),
    "tune_regularizer": Command(
        "Chooses beta, M and tau of the regularizer on a validation split (Section 7.2).",
        f"For example\n\n  tune_regularizer --preset=laptop --arch=resnet\n\n{_RESUMES}",
        "search.tuning_config:TuningConfig",
        "search.tuning:tune",
    ),
}
# Names of before.
FORMER_NAMES = {"evaluate_metrics": "evaluate"}
