"""The quickstart from settings to networks, text and figure."""

from fisher_keras.experiments.quickstart.figure import quickstart_figure
from fisher_keras.experiments.quickstart.networks import Settings, quickstart_runs
from fisher_keras.experiments.quickstart.results import Network
from fisher_keras.experiments.quickstart.text import (
    next_commands,
    results_table,
    sentences,
    wrapped,
)
from fisher_keras.experiments.quickstart.training import draw_digits, train_network
from fisher_keras.experiments.runs.runner import run_experiment
from fisher_keras.experiments.runs.store import ExperimentStore
from fisher_keras.files import replacing


def report(settings: Settings) -> None:
    """Trains the networks that are not finished, prints the text and draws the figure.

    Args:
        settings: Number and size of the networks. `output_dir` gets their runs and
            `quickstart.png`.

    Raises:
        ImportError: If scikit-learn is not installed.
        OSError: If the folder cannot be read or written.
        ValueError: If another command works in the folder, or a record in it is damaged.
    """
    store = ExperimentStore(settings.output_dir)
    runs = quickstart_runs(settings)
    # A missing package is an error before any network.
    draw_digits(settings.train_size, 0, seed=0)
    run_experiment(runs, train_network, store, None)
    networks = [Network.of(record) for record in store.records_of(runs)]
    path = store.directory / "quickstart.png"
    with replacing(path) as part:
        quickstart_figure(networks, settings).savefig(part, dpi=150)
    about = (
        f"Test error after {settings.steps} steps on {settings.train_size} digits, of which "
        f"{settings.wrong_labels} have random labels: mean ± standard deviation over "
        f"{settings.seeds} seeds, and the difference of the same seeds with its 95 % interval. "
        "rho and beta were chosen on five other seeds."
    )
    print(f"\n{wrapped(about)}\n\n{results_table(networks, settings)}")
    for sentence in sentences(networks, settings):
        print(f"\n{wrapped(sentence)}")
    print(f"\nThe figure is {path}.\n\nNext, try:", *next_commands(), sep="\n  ", flush=True)
