"""The quickstart from settings to text, figure and files."""

import dataclasses
import json
import pathlib

from fisher_keras.experiments.quickstart.figure import quickstart_figure
from fisher_keras.experiments.quickstart.networks import Settings
from fisher_keras.experiments.quickstart.next_commands import next_commands
from fisher_keras.experiments.quickstart.results import error_differences, ordering
from fisher_keras.experiments.quickstart.run import carry_out
from fisher_keras.experiments.quickstart.text import summary
from fisher_keras.files import replacing
from fisher_keras.metrics.trials import json_ready


def report(settings: Settings) -> None:
    """Trains what is not trained yet, prints the text, and saves results and figure.

    Args:
        settings: How many networks, and how large. `output_dir` gets their folders in `runs/`,
            and `results.json`, `quickstart.png` and `quickstart.pdf`.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If a setting cannot be used.
    """
    folder = pathlib.Path(settings.output_dir).expanduser()
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
        "Next, try (the first two download CIFAR-10, and take long without a GPU)\n"
        f"{commands}"
    )
