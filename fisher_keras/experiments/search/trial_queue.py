"""An Optuna study that processes work through together: each place once, and none is lost.

A place is a point of a grid, or one of the trials that a sampler may choose. What Optuna has for
this is not enough by itself: its `GridSampler` gives a point that is running elsewhere to idle
processes, too, counts a failed one as visited, and stops while a killed one still waits for its
retry. Here a trial is put into the study's queue by a process that finds a place without one,
and the queue hands each trial to one process. Two processes may do so for the same place at the
same time; of these trials all but the first are dropped as they leave the queue.

A process that dies stops sending heartbeats. After `GRACE_S` its trial counts as failed, and is
put into the queue again, with what it had reported; so is one that failed for any other reason.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

HEARTBEAT_S = 15
GRACE_S = 90  # A machine that is short of memory can stand still for a while.
POLL_S = 3.0  # Between looks at what other processes are doing.

_PLACE = "place"
_STARTED = "started"  # Holds the trial's number: attributes are copied to its retry.
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_OPENING_ATTEMPTS = 5

Objective = Callable[[optuna.Trial], float]


class _SuperfluousTrial(Exception):
    """There is another trial for the same place."""


def open_study(
    url: str | sqlalchemy.URL,
    name: str,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> optuna.Study:
    """Opens a study that minimizes, and makes it if it is not there.

    Args:
        url: the database, as SQLAlchemy writes it.
        name: of the study.
        sampler: chooses what a place's parameters leave open.
        pruner: ends trials before their time.

    Returns:
        The study.

    Raises:
        ValueError: if the database cannot be used.
    """
    try:
        database = sqlalchemy.make_url(url)
        return optuna.create_study(
            storage=_open_storage(database),
            study_name=name,
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
    except ImportError as error:
        raise ValueError(
            f"--storage={database} needs a driver: {error.__cause__ or error}. For PostgreSQL, "
            "pip install psycopg[binary] and write postgresql+psycopg://..."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(
            f"the study's --storage cannot be used: {reason}. Give a URL such as "
            "sqlite:////folder/study.db or postgresql+psycopg://user:password@host/database"
        ) from error


def work_through(
    study: optuna.Study,
    places: Sequence[dict[str, Any]],
    objective: Objective,
    after_trial: Callable[[optuna.Study, FrozenTrial], None],
) -> None:
    """Carries out trials until each place has one that is complete or pruned.

    Args:
        study: from `open_study`.
        places: each place's parameters; those that are missing are the sampler's to choose.
        objective: called with a trial, in which `place_of` finds its place. After a retry it
            finds there what had been reported.
        after_trial: called after each trial that this process has finished.

    Raises:
        Exception: whatever `objective` raises but `optuna.TrialPruned`. The trial is carried out
            again by another process, or when this is called again.
    """
    silent_since: dict[int, float] = {}
    waiting_for = 0
    while True:
        _fail_dead_trials(study, silent_since)
        trials = _trials_by_place(study, len(places))
        live = {
            place: [trial.state for trial in trials[place] if trial.state != TrialState.FAIL]
            for place in trials
        }
        missing = [place for place in live if not live[place]]
        if missing:
            place = random.choice(missing)  # Rarely what another process chooses now.
            _enqueue(study, place, places[place], trials[place])
        if missing or any(TrialState.WAITING in states for states in live.values()):
            _carry_out(study, objective, after_trial)
            continue
        running = sum(not any(state.is_finished() for state in live[place]) for place in live)
        if not running:
            return
        if running != waiting_for:
            print(f"Waiting for trials that other processes carry out: {running}.", flush=True)
        waiting_for = running
        time.sleep(POLL_S * random.uniform(0.5, 1.5))


def place_of(trial: optuna.Trial | FrozenTrial) -> int | None:
    """Returns the number of a trial's place; None if it was superfluous."""
    return trial.user_attrs.get(_PLACE)


def finished_trials(study: optuna.Study, num_places: int) -> list[FrozenTrial]:
    """Returns the trials that are complete or pruned, one for each place that has one."""
    finished = []
    for trials in _trials_by_place(study, num_places).values():
        finished += [trial for trial in trials if trial.state in _FINISHED][:1]
    return finished


def _open_storage(database: sqlalchemy.URL) -> optuna.storages.RDBStorage:
    is_sqlite = database.get_backend_name() == "sqlite"
    # Without a transaction of Python's own, see below.
    options = {"connect_args": {"timeout": 60, "isolation_level": None}} if is_sqlite else {}
    for attempt in range(1, _OPENING_ATTEMPTS + 1):
        try:
            storage = optuna.storages.RDBStorage(
                database.render_as_string(hide_password=False),
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
            )
        except sqlalchemy.exc.SQLAlchemyError:
            # Another process may have made the same table in the same moment.
            if attempt == _OPENING_ATTEMPTS:
                raise
            time.sleep(random.uniform(0.2, 1.0))
        else:
            break
    if is_sqlite:
        # SQLite has no SELECT ... FOR UPDATE, by which Optuna takes a trial out of the queue:
        # without a lock from the transaction's beginning two processes can take the same one.
        sqlalchemy.event.listen(
            storage.engine,
            "begin",
            lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"),
        )
    return storage


def _fail_dead_trials(study: optuna.Study, silent_since: dict[int, float]) -> None:
    """Fails the trials whose process is gone."""
    optuna.storages.fail_stale_trials(study)
    # It passes over a trial without a first heartbeat: its process was killed as it took it.
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.user_attrs.get(_STARTED) != trial.number:
            since = silent_since.setdefault(trial.number, time.monotonic())
            if time.monotonic() - since > GRACE_S:
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _trials_by_place(study: optuna.Study, num_places: int) -> dict[int, list[FrozenTrial]]:
    trials: dict[int, list[FrozenTrial]] = {place: [] for place in range(num_places)}
    for trial in study.get_trials():
        if place_of(trial) in trials:
            trials[place_of(trial)].append(trial)
    return trials


def _enqueue(
    study: optuna.Study, place: int, parameters: dict[str, Any], failed: list[FrozenTrial]
) -> None:
    if failed:
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
        retry(study, failed[-1])
    else:
        study.enqueue_trial(parameters, user_attrs={_PLACE: place})


def _carry_out(
    study: optuna.Study,
    objective: Objective,
    after_trial: Callable[[optuna.Study, FrozenTrial], None],
) -> None:
    """Carries out the first trial of the queue, if it is still there and not superfluous."""
    failure: BaseException | None = None

    def attempt(trial: optuna.Trial) -> float:
        nonlocal failure
        try:
            if _is_superfluous(study, trial):
                trial.set_user_attr(_PLACE, None)
                raise _SuperfluousTrial
            trial.set_user_attr(_STARTED, trial.number)
            return objective(trial)
        except BaseException as error:
            failure = error
            raise

    ended: list[FrozenTrial] = []
    try:
        study.optimize(
            attempt,
            n_trials=1,
            catch=(_SuperfluousTrial,),
            callbacks=[lambda _, trial: ended.append(trial)],
        )
    except (AssertionError, ValueError):
        # Optuna's way to say that the trial has failed in the meantime, for others that found it
        # dead; `objective` has seen nothing of it, or as it reported.
        seen = (type(None), _SuperfluousTrial, optuna.exceptions.UpdateFinishedTrialError)
        if not isinstance(failure, seen):
            raise
        print("This process stood still for so long that another goes on with its trial.")
    for trial in ended:
        if trial.state in _FINISHED:
            after_trial(study, trial)


def _is_superfluous(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Returns whether an earlier trial has the place; numbers are given in the order of queuing.

    There is no place if another process was faster to empty the queue.
    """
    place = place_of(trial)
    return place is None or any(
        place_of(other) == place and other.state != TrialState.FAIL
        for other in study.get_trials(deepcopy=False)
        if other.number < trial.number
    )
