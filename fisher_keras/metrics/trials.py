"""The trials of an evaluation: their samples, their results, and the file that keeps them."""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from fisher_keras.files import differences
from fisher_keras.metrics.singular import LinearDependence

# Raised when an identity tells more: files before 2 did not tell the function of the weights, and
# files before 3 not its gradients.
_FORMAT = 3
# Norms of gradients may differ by so many roundings of the largest: each sums up many terms.
_ROUNDINGS = 64
# What a header begins with: it tells a torn one from the start of a file of another kind.
_FIRST = b'{"format": '


@dataclasses.dataclass(frozen=True)
class Trial:
    """The metrics of one sample $S^t$.

    Attributes:
        index: t, from 0.
        metrics: Value by name.
        log_spectrum: Logarithms of the eigenvalues of xi, in descending order; empty if no
            metric needs xi.
        dependence: The examples, by their rows in the data, that make xi singular.
        layers: For each layer, by its path, its part of the trace and its log-determinant. It is
            empty without `layers=True`.
    """

    index: int
    metrics: dict[str, float]
    log_spectrum: tuple[float, ...]
    dependence: LinearDependence
    layers: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


def draw_sample(
    labels: np.ndarray, num_samples: int, seed: int, trial: int, stratified: bool
) -> np.ndarray:
    """Draws the examples of one trial without replacement.

    Args:
        labels: Class of each example in the data, shape (N,), integers.
        num_samples: Number of examples N'.
        seed: Seed of the evaluation.
        trial: Index of the trial. The sample depends only on this index and the seed.
        stratified: Whether each class gets its share of the sample, rounded up or down.

    Returns:
        Rows of the data, shape (N',), ascending.
    """
    # A generator of its own: a trial's sample does not depend on which trials were drawn before.
    random = np.random.default_rng([seed, trial])
    if not stratified:
        return np.sort(random.choice(len(labels), num_samples, replace=False))
    # Systematic sampling: every (N / N')-th example of the classes in a row, each shuffled.
    # `lexsort` takes its last key for the first: by class, and at random within a class.
    order = np.lexsort((random.permutation(len(labels)), labels))
    # One random shift for all positions: so each class gets its share, rounded up or down.
    positions = (random.random() + np.arange(num_samples)) * (len(labels) / num_samples)
    return np.sort(order[positions.astype(np.int64)])


class TrialFile:
    """The finished trials of an evaluation, and the file of JSON lines that keeps them.

    The first line is a header with the identity of the evaluation. Each further line is a trial.

    If a killed process left an unfinished line at the end, this line is dropped. Any evaluation
    may use a file that has no trial yet.

    Attributes:
        finished: The trials, by index.
    """

    def __init__(self, path: str | os.PathLike | None, evaluation: dict[str, Any]) -> None:
        """Opens the file, or starts it.

        Args:
            path: Path of the file; None keeps the trials only in memory.
            evaluation: All that trials depend on, for JSON.

        Raises:
            ValueError: If the file belongs to another evaluation, or is not such a file.
        """
        self.finished: dict[int, Trial] = {}
        self._path = None if path is None else pathlib.Path(path)
        if self._path is None:
            return
        if self._path.is_dir():
            raise ValueError(
                f"trials_path must be a file, as {str(self._path / 'trials.jsonl')!r}. Given: the "
                f"folder {str(self._path)!r}."
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = self._path.read_bytes() if self._path.exists() else b""
        # A last line without an end is of a process that was killed while it wrote.
        complete = content[: content.rfind(b"\n") + 1]
        # A torn first line is overwritten, but not a file of something else.
        if complete or not _FIRST.startswith(content[: len(_FIRST)]):
            found = self._read(complete)
        # A header alone binds nobody: it is replaced by that of this evaluation.
        if self.finished:
            self._check_same(found, evaluation)
        else:
            complete = b""
        with self._path.open("ab") as file:
            # The next trial must begin on a line of its own.
            file.truncate(len(complete))
        if not complete:
            self._append({"format": _FORMAT, "evaluation": evaluation})

    def add(self, trial: Trial) -> None:
        """Adds a trial, and writes it."""
        self.finished[trial.index] = trial
        if self._path is not None:
            self._append(dataclasses.asdict(trial))

    def _append(self, record: dict[str, Any]) -> None:
        # Opened and closed for each line: a process that is killed leaves all its finished trials.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(json_ready(record), allow_nan=False) + "\n")

    def _read(self, content: bytes) -> dict[str, Any]:
        """Reads the trials, and returns the identity of their evaluation."""
        try:
            records = [json.loads(line) for line in content.splitlines()]
            written, found = records[0].get("format", 1), records[0]["evaluation"]
            self.finished = {t.index: t for t in map(_trial, records[1:])}
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{self._path} is not a file of trials, or is damaged ({error!r}). Give another "
                "trials_path, or move the file away."
            ) from error
        if self.finished and written != _FORMAT:
            raise ValueError(
                f"{self._path} was written by {'an earlier' if written < _FORMAT else 'a later'} "
                "version of fisher_keras, in which trials are identified otherwise. Give another "
                "trials_path, or move the file away: the trials are then computed anew."
            )
        return found

    def _check_same(self, found: dict[str, Any], evaluation: dict[str, Any]) -> None:
        """Refuses trials of another evaluation; logits and gradients may differ by rounding."""
        # As a file gives it back: tuples have become lists, and infinities strings.
        expected = json.loads(json.dumps(json_ready(evaluation)))
        logits, gradients = (
            [np.array(of.pop(name, []), float) for of in (found, expected)]
            for name in ("logits", "gradients")
        )
        changed = differences(found, expected)
        if not changed:
            rounding = expected["rounding"]
            # 1e-4 in float32, 1e-2 in float16: far more than what a network makes of rounding.
            tolerance = math.sqrt(rounding) / 3
            close = {
                "logits": _close(*logits, atol=tolerance),
                "gradients": _close(*gradients, atol=_ROUNDINGS * rounding, rtol=tolerance),
            }
            changed = [
                f"{name} are those of another function of the same weights (look at from_logits "
                "and at the layers' attributes)"
                for name, same in close.items()
                if not same
            ]
        if not changed:
            return
        raise ValueError(
            f"{self._path} holds trials of another evaluation: {'; '.join(changed)}. Give another "
            "trials_path, or the arguments, model and data of that evaluation."
        )


def _close(there: np.ndarray, here: np.ndarray, atol: float, rtol: float = 0.0) -> bool:
    """Returns whether numbers are the same within rounding; `atol` is relative to the largest."""
    atol *= np.abs(here).max(initial=0.0, where=np.isfinite(here))
    return there.shape == here.shape and np.allclose(there, here, rtol, atol, equal_nan=True)


def json_ready(value: Any) -> Any:
    """Replaces floats that JSON cannot hold by strings that `float` reads: "-inf", "nan"."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def _trial(record: dict[str, Any]) -> Trial:
    """Returns the trial of a line."""
    dependence = record["dependence"]
    return Trial(
        record["index"],
        {name: float(value) for name, value in record["metrics"].items()},
        tuple(map(float, record["log_spectrum"])),
        LinearDependence(
            tuple(dependence["zero"]),
            tuple(map(tuple, dependence["parallel"])),
            tuple(dependence["dependent"]),
            dependence["epsilon"],
        ),
        {name: tuple(map(float, pair)) for name, pair in record.get("layers", {}).items()},
    )
