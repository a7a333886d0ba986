"""What to try after the quickstart: commands that can be typed as they are printed."""

import pathlib
import shlex
from collections.abc import Sequence

from fisher_keras.experiments.quickstart.networks import Settings
from fisher_keras.experiments.quickstart.results import Minimum

_CHECKOUT = pathlib.Path(__file__).parents[3]


def next_commands(settings: Settings, minima: Sequence[Minimum]) -> list[str]:
    """Returns three commands, ready for a shell in the present folder.

    Args:
        settings: How the networks were trained.
        minima: The networks of the second half; the last command compares two of the first seed.

    Returns:
        A line each.
    """
    seed = minima[0].seed
    models = [minimum.model for minimum in minima if minimum.seed == seed]
    return [
        f"{_command('train_cifar')} --arch=densenet",
        f"{_command('scenario_confusion')} --preset=laptop",
        " ".join(
            [
                _command("evaluate_metrics"),
                *(shlex.quote(f"--model={_from_here(path)}") for path in (models[0], models[-1])),
                f"--dataset=digits --train_size={settings.train_size} --seed={seed}",
                f"--num_samples={settings.num_samples} --num_trials={settings.num_trials}",
            ]
        ),
    ]


def _command(name: str) -> str:
    """Returns what starts a command: the checkout's script, if the package is in a checkout."""
    script = _CHECKOUT / "bin" / name
    return shlex.quote(_from_here(script)) if script.is_file() else f"fisher-keras {name}"


def _from_here(path: pathlib.Path) -> str:
    """Returns the path as one types it in the present folder; with a slash in it, always."""
    absolute, here = path.resolve(), pathlib.Path.cwd().resolve()
    if absolute.is_relative_to(here) and absolute.parent != here:
        return str(absolute.relative_to(here))
    return str(absolute)
