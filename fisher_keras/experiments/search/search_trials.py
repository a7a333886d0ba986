"""Trials of a search: the combinations to train next, and the results of those that are."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run

_ATTEMPTS = 20


class Trials:
    """Schedules the runs of a search, one for each combination of values, and has their results.

    The store is the truth. The study, in which Optuna's TPE chooses, is in memory: it is told at
    each start what is finished, and what was begun comes first. All combinations of a grid wait
    from the start, in order.

    Attributes:
        num_trials: How many there are to be, the finished ones among them.
        git_revisions: The commits that the finished ones were trained under.
    """

    def __init__(
        self,
        candidates: Mapping[str, Sequence[Any]],
        num_trials: int | None,
        run_of: Callable[[dict[str, Any]], Run],
        store: ExperimentStore,
        seed: int,
    ) -> None:
        """Reads the finished trials, and makes the study.

        Args:
            candidates: The values of each parameter.
            num_trials: Trials that the TPE makes, the finished ones among them; None for a grid.
            run_of: Returns the run that trains a combination. Its result has the
                `validation_error_percent` and `validation_cross_entropy` of each epoch, `seconds`,
                and the message of `diverged` if it did.
            store: Of the runs.
            seed: Of the TPE.
        """
        self._space = {name: CategoricalDistribution(candidates[name]) for name in candidates}
        self._combinations = combinations(candidates)
        self._run_of = run_of
        self._rows: list[dict[str, Any]] = []
        self._tried: list[dict[str, Any]] = []
        self._running: dict[str, optuna.Trial] = {}
        self.git_revisions: list[str | None] = []
        records = {record.key: record for record in store.records()}
        runs = [(values, run_of(values)) for values in self._combinations]
        # A search that goes on does not begin with the same random trials again.
        num_finished = sum(run.key in records for _, run in runs)
        sampler = optuna.samplers.TPESampler(
            multivariate=True, constant_liar=True, seed=seed + num_finished
        )
        self._study = optuna.create_study(sampler=sampler)
        num_waiting = 0
        for values, run in runs:
            if run.key in records:
                self._tried.append(values)
                row = self._add_row(values, records[run.key])
                trial = create_trial(params=values, distributions=self._space, value=_value(row))
                self._study.add_trial(trial)
            elif num_trials is None or store.run_directory(run).exists():
                # Of the TPE, what an earlier command has begun: half a training is worth ending.
                self._study.enqueue_trial(values)
                num_waiting += 1
        # Of a grid these are all combinations. Of the TPE they are more than are asked for now, if
        # an earlier command has begun more.
        self.num_trials = max(num_trials or 0, num_finished + num_waiting)

    def next_run(self) -> Run | None:
        """Returns the run that comes next; None if there is none."""
        if len(self._tried) == self.num_trials:
            return None
        trial = self._propose()
        self._tried.append(trial.params)
        run = self._run_of(trial.params)
        self._running[run.key] = trial
        return run

    def end(self, run: Run, record: Record) -> dict[str, Any]:
        """Takes the record of a run of `next_run`; returns the trial's row, see `rows`."""
        trial = self._running.pop(run.key)
        row = self._add_row(trial.params, record)
        self._study.tell(trial, _value(row))
        return row

    def rows(self) -> list[dict[str, Any]]:
        """Returns the finished trials, from best to worst.

        Returns:
            A dict for JSON each: `trial`, its place in the grid; the values; `state`, "complete"
            or "diverged"; `validation_error_percent`, None if it has diverged;
            `validation_cross_entropy`; `epochs`; `seconds`.
        """
        return sorted(self._rows, key=_order)

    def _propose(self) -> optuna.Trial:
        """Begins a trial of a new combination: one that waits, or the TPE's choice.

        The TPE soon returns to the best combination that it knows. Where trainings are
        deterministic that teaches nothing: such a trial fails at once, and after many of them a
        random combination is tried.
        """
        for _ in range(_ATTEMPTS):
            trial = self._study.ask(self._space)
            if trial.params not in self._tried:
                return trial
            self._study.tell(trial, state=TrialState.FAIL)
        # Not empty: there are no more trials than combinations. `ask` takes what is enqueued
        # before it samples.
        new = [values for values in self._combinations if values not in self._tried]
        self._study.enqueue_trial(random.Random(len(self._tried)).choice(new))
        return self._study.ask(self._space)

    def _add_row(self, values: dict[str, Any], record: Record) -> dict[str, Any]:
        result = record.result
        errors = result["validation_error_percent"]
        diverged = "diverged" in result
        row = {
            "trial": self._combinations.index(values),
            **values,
            "state": "diverged" if diverged else "complete",
            "validation_error_percent": None if diverged else errors[-1],
            # A training that diverges in its first epoch has no epoch to tell of.
            "validation_cross_entropy": (result["validation_cross_entropy"] or [None])[-1],
            "epochs": len(errors),
            "seconds": round(result["seconds"], 1),
        }
        self._rows.append(row)
        # Records of before do not have it.
        revisions = [*self.git_revisions, *result.get("git_revisions", [None])]
        self.git_revisions = list(dict.fromkeys(revisions))
        return row


def combinations(candidates: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns the combinations of the values of parameters, in the order of a grid."""
    product = itertools.product(*candidates.values())
    return [dict(zip(candidates, values, strict=True)) for values in product]


def _value(row: dict[str, Any]) -> float:
    """Returns the number that the study minimizes."""
    return math.inf if row["state"] == "diverged" else row["validation_error_percent"]


def _order(row: dict[str, Any]) -> tuple:
    """Sorts by the error, then by the cross-entropy; of diverged trials, the longest first."""
    cross_entropy = row["validation_cross_entropy"]
    return (
        _value(row),
        # All complete trials have the same number of them: this orders the diverged ones alone.
        -row["epochs"],
        math.inf if cross_entropy is None else cross_entropy,
        row["trial"],
    )
