"""The quickstart from settings to networks, text and figure."""

import time
from collections.abc import Sequence

from fisher_keras.experiments.quickstart.figure import quickstart_figure
from fisher_keras.experiments.quickstart.networks import COSTS, Settings, quickstart_runs
from fisher_keras.experiments.quickstart.results import Network
from fisher_keras.experiments.quickstart.text import (
    next_commands,
    results_table,
    sentences,
    wrapped,
)
from fisher_keras.experiments.quickstart.training import draw_digits, train_network
from fisher_keras.experiments.runs.process import execute
from fisher_keras.experiments.runs.store import ExperimentStore, Run
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
    draw_digits(
        settings.train_size, 0, seed=0
    )  # A missing package is an error before any network.
    with store.locked():  # A second command would train the same networks.
        train_missing(runs, store)
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


def train_missing(runs: Sequence[Run], store: ExperimentStore) -> None:
    """Trains one network after the other in this process, and prints a line for each.

    Args:
        runs: All runs.
        store: Those that are finished there are not trained again.
    """
    finished = {record.key for record in store.records()}
    missing = [run for run in runs if run.key not in finished]
    print(f"{len(missing)} of {len(runs)} small networks are to be trained.", flush=True)
    costs = [COSTS[run.config["method"]] for run in missing]
    start = time.monotonic()
    try:
        for index, run in enumerate(missing, start=1):
            execute(store.write_definition(run, train_network))
            seconds = time.monotonic() - start
            # The methods take differently long: a plain mean would be far off after one network.
            left = seconds / sum(costs[:index]) * sum(costs[index:])
            error = store.record(run).result["test_error"]
            place = f"[{index:>{len(str(len(missing)))}}/{len(missing)}]"
            print(
                f"{place} {run.label}: test error {error:.1f} %; about {left:.0f} s left",
                flush=True,
            )
    finally:
        # Also after Ctrl-C or an error, as the networks trained so far are kept.
        store.write_lines()
