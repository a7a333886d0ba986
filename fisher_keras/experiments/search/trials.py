"""The trials of a search: Optuna proposes them, in this process, and runs carry them out."""

import itertools
import math
import pathlib
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from fisher_keras.experiments.runs.store import ExperimentStore, Run

# The best quarter of the trials goes on after an eighth of the epochs, and the best quarter of
# these after half of them.
_FIRST_RUNG = 8
_REDUCTION_FACTOR = 4
_ATTEMPTS = 20
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def rungs_of(epochs: int, prune: bool) -> list[int]:
    """Returns the epochs after which successive halving judges a trial, and the last one."""
    first = max(1, epochs // _FIRST_RUNG)
    rungs = (first * _REDUCTION_FACTOR**index for index in itertools.count())
    return [*itertools.takewhile(lambda rung: prune and rung < epochs, rungs), epochs]


def open_study(storage: str | None, journal: pathlib.Path, name: str, seed: int) -> optuna.Study:
    """Opens a study that minimizes, and makes it if it is not there.

    Args:
        storage: URL of a database, as Optuna takes it; None for the journal.
        journal: A file.
        name: Of the study.
        seed: Of the TPE.

    Returns:
        The study.

    Raises:
        ValueError: If the storage cannot be used.
        OSError: If the journal cannot be read or written.
    """
    try:
        study = optuna.create_study(
            storage=storage or _journal_storage(journal),
            study_name=name,
            load_if_exists=True,
        )
    except OSError:
        raise
    except Exception as error:  # Of whatever stands behind the URL.
        reason = str(error.__cause__ or error).partition("\n")[0]
        if storage is None:
            raise ValueError(
                f"{journal} cannot be read ({reason}): remove it, and it is made again from the "
                "finished runs"
            ) from error
        raise ValueError(
            f"the study's --storage cannot be used: {reason}. Give a URL such as "
            "sqlite:////folder/study.db or postgresql+psycopg://user:password@host/database"
        ) from error
    # A study that goes on does not begin with the same random trials again.
    study.sampler = optuna.samplers.TPESampler(
        multivariate=True, constant_liar=True, seed=seed + len(study.trials)
    )
    return study


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that are complete or pruned."""
    return study.get_trials(deepcopy=False, states=_FINISHED)


class Trials:
    """Says which run comes next, and tells the study what came out of it.

    A trial is a combination of values. Its runs train the same network, each from one rung to the
    next. At a rung of a grid the best quarter of all that come to it go on; the TPE, which must
    learn as it goes, has each trial judged against those that came before.

    What a killed command left goes on: what the store has of it is told again, not run again.
    """

    def __init__(
        self,
        study: optuna.Study,
        candidates: Mapping[str, Sequence[Any]],
        num_trials: int | None,
        rungs: Sequence[int],
        run_of: Callable[[dict[str, Any], int], Run],
        store: ExperimentStore,
        after_trial: Callable[[int], object],
    ) -> None:
        """Looks at what there is.

        Args:
            study: From `open_study`.
            candidates: The values of each parameter.
            num_trials: Of the whole search; None for a grid: all combinations, in order.
            rungs: See `rungs_of`.
            run_of: Returns the run that trains a combination to an epoch. Its result has the
                `validation_error_percent` and `validation_cross_entropy` of each epoch, `seconds`,
                and what `diverged` says if it did.
            store: Of the runs.
            after_trial: Called with the number of each trial that is finished.
        """
        self._study = study
        self._space = {name: CategoricalDistribution(candidates[name]) for name in candidates}
        self._combinations = [
            dict(zip(candidates, values, strict=True))
            for values in itertools.product(*candidates.values())
        ]
        self._is_grid = num_trials is None
        self._num_trials = num_trials or len(self._combinations)
        self._rungs = rungs
        self._run_of = run_of
        self._after_trial = after_trial
        self._records = {record.key: record for record in store.records()}
        self._ready: deque[tuple[optuna.Trial, int]] = deque()
        self._under_way: dict[str, tuple[optuna.Trial, int]] = {}
        self._paused: list[list[optuna.Trial]] = [[] for _ in rungs]
        for values in self._combinations:
            if self._is_grid or run_of(values, rungs[0]).key in self._records:
                study.enqueue_trial(values, skip_if_exists=True)
        for running in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            trial = optuna.Trial(study, running._trial_id)
            for name in candidates:  # The command may have been killed as it asked for them.
                trial.suggest_categorical(name, candidates[name])
            self._begin(trial)

    def next_run(self) -> Run | None:
        """Returns the run that comes next; None if there is none before another has ended."""
        while self._ready or self._has_more():
            if not self._ready:
                self._propose()
            trial, rung = self._ready.popleft()
            run = self._run_of(trial.params, self._rungs[rung])
            self._under_way[run.key] = trial, rung
            if run.key not in self._records:
                return run
            self.ended(run, self._records[run.key])
        return None

    def ended(self, run: Run, record: dict[str, Any]) -> None:
        """Tells the study of a finished run, and has its trial go on or not.

        Args:
            run: From `next_run`.
            record: Of the run.
        """
        trial, rung = self._under_way.pop(run.key)
        result = record.result
        errors = result["validation_error_percent"]
        reported = self._study.trials[trial.number].intermediate_values
        for epoch, error in enumerate(errors, start=1):
            if epoch not in reported:
                trial.report(error, epoch)
        for name in ("seconds", "diverged"):
            if name in result:
                trial.set_user_attr(name, result[name])
        if result["validation_cross_entropy"]:
            cross_entropy = result["validation_cross_entropy"][-1]
            trial.set_user_attr("validation_cross_entropy", cross_entropy)
        if "diverged" in result:
            self._tell(trial, math.inf)
        elif self._rungs[rung] == self._rungs[-1]:
            self._tell(trial, errors[-1])
        else:
            self._paused[rung].append(trial)
        for rung in range(len(self._rungs)):
            self._judge(rung)

    def _judge(self, rung: int) -> None:
        """Has the best of those that wait at a rung go on, and gives the others up."""
        epoch, trials = self._rungs[rung], self._study.get_trials(deepcopy=False)
        coming = [
            trial.state == TrialState.WAITING
            or (trial.state == TrialState.RUNNING and epoch not in trial.intermediate_values)
            for trial in trials
        ]
        if self._is_grid and any(coming):
            return
        come = [trial for trial in trials if epoch in trial.intermediate_values]
        come.sort(key=lambda trial: (trial.intermediate_values[epoch], trial.number))
        best = {trial.number for trial in come[: max(1, len(come) // _REDUCTION_FACTOR)]}
        waiting, self._paused[rung] = self._paused[rung], []
        for trial in waiting:
            if trial.number in best:
                self._ready.append((trial, rung + 1))
            else:
                self._tell(trial, state=TrialState.PRUNED)

    def _tell(self, trial: optuna.Trial, *value: float, **state: TrialState) -> None:
        self._study.tell(trial, *value, **state)
        self._after_trial(trial.number)

    def _has_more(self) -> bool:
        states = [trial.state for trial in self._study.get_trials(deepcopy=False)]
        begun = len(states) - states.count(TrialState.FAIL)
        return TrialState.WAITING in states or begun < self._num_trials

    def _propose(self) -> None:
        """Begins a trial of a new combination: the next of a grid, or what the TPE chooses.

        The TPE soon returns to the best combination that it knows. Where trainings are
        deterministic that teaches nothing: such a trial fails at once, and after many of them a
        random combination is tried.
        """
        for _ in range(_ATTEMPTS):
            trial = self._study.ask(self._space)
            if self._begin(trial):
                return
        tried = [trial.params for trial in self._study.get_trials(deepcopy=False)]
        new = [values for values in self._combinations if values not in tried]
        self._study.enqueue_trial(random.Random(len(tried)).choice(new))
        self._begin(self._study.ask(self._space))

    def _begin(self, trial: optuna.Trial) -> bool:
        """Returns whether a trial is the first of its combination; if not, it has failed."""
        others = [
            other.params
            for other in self._study.get_trials(deepcopy=False)
            if other.number != trial.number and other.state != TrialState.FAIL
        ]
        if trial.params in others:
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        self._ready.append((trial, 0))
        return True


def _journal_storage(journal: pathlib.Path) -> optuna.storages.JournalStorage:
    """Opens the journal, after a command that was killed as it wrote to it, too.

    No other one is at work: the store is locked.
    """
    lock = journal.with_name(f"{journal.name}.lock")
    lock.unlink(missing_ok=True)
    if journal.exists():
        text = journal.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with journal.open("r+b") as file:
                file.truncate(whole)
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.storages.JournalStorage(backend)
