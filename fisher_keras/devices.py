"""The replicas and processes of a `tf.distribute` strategy."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

MIRRORED = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)


def count_processes(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes of a strategy, each with equally many replicas."""
    if strategy.num_replicas_in_sync == 1:
        return 1
    # `worker_devices` are those of this process alone.
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a strategy, as one of them sees them. All must call a method together.

    Attributes:
        strategy: The strategy.
        count: The number of processes.
        rank: The index of this process, from 0.
    """

    strategy: tf.distribute.Strategy
    count: int = 1
    rank: int = 0

    @classmethod
    def of(cls, strategy: tf.distribute.Strategy) -> "Processes":
        """Returns the processes of a strategy, as this one sees them."""
        count = count_processes(strategy)
        if count == 1:
            return cls(strategy)
        index = _first(
            strategy, lambda: tf.distribute.get_replica_context().replica_id_in_sync_group
        )
        # Replicas are numbered process by process.
        return cls(strategy, count, int(index) // len(strategy.extended.worker_devices))

    @property
    def is_chief(self) -> bool:
        """True in the one process that decides and writes."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Returns in all processes the sum of the numbers of each.

        Args:
            values: Numbers, float64; of one shape in all processes.
        """
        if self.count == 1:
            return values
        here = len(self.strategy.extended.worker_devices)

        def add() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            given = tf.constant(values, tf.float64)
            # All replicas of a process have the numbers: only the first one adds them.
            is_first = context.replica_id_in_sync_group % here == 0
            return context.all_reduce(
                tf.distribute.ReduceOp.SUM, tf.where(is_first, given, tf.zeros_like(given))
            )

        return _first(self.strategy, add).numpy()

    def from_chief(self, values: np.ndarray) -> np.ndarray:
        """Returns in all processes the numbers that the chief has.

        Args:
            values: Numbers, float64; of one shape in all processes.
        """
        return self.sum(values if self.is_chief else np.zeros_like(values))


def replica_strategy(model: keras.Model) -> tf.distribute.Strategy:
    """Returns the strategy in scope, or else the one in whose scope the model was made.

    Args:
        model: A Keras model.

    Returns:
        The strategy; TensorFlow's default one, of a single replica, where there is none.

    Raises:
        ValueError: If it has several replicas and is not a `tf.distribute.MirroredStrategy` or
            `MultiWorkerMirroredStrategy`.
    """
    in_scope = tf.distribute.has_strategy()
    strategy = tf.distribute.get_strategy() if in_scope else model.distribute_strategy
    count = strategy.num_replicas_in_sync
    if count > 1 and not isinstance(strategy, MIRRORED):
        raise ValueError(
            "Trials are spread over the replicas of a tf.distribute.MirroredStrategy, the devices "
            "of one machine, or of a MultiWorkerMirroredStrategy. Given: a "
            f"{type(strategy).__name__} of {count} replicas. Save the model, and evaluate it "
            "where it is loaded outside of that strategy."
        )
    return strategy


def replica_devices(
    strategy: tf.distribute.Strategy, variables: Sequence[keras.Variable]
) -> tuple[str, ...]:
    """Returns the devices of this process among which evaluations of a model can be shared out.

    Where the copies of a variable differ, as Keras leaves moving statistics after `fit`, only the
    first one counts, which is the one that is saved.

    Args:
        strategy: A strategy that `replica_strategy` returned.
        variables: Variables of the model.

    Returns:
        Two devices or more; empty where there is no choice.
    """
    if strategy.num_replicas_in_sync == 1 or len(strategy.extended.worker_devices) == 1:
        return ()
    for variable in variables:
        first, *others = strategy.experimental_local_results(variable.value)
        if not all(np.array_equal(first, other, equal_nan=True) for other in others):
            return ()
    return tuple(strategy.extended.worker_devices)


def over_replicas(
    strategy: tf.distribute.Strategy,
    devices: Sequence[str],
    function: Callable[[str | None, Any], Any],
    arguments: Iterable[Any],
) -> Iterator[Any]:
    """Calls a function for each argument, one call at a time on each device.

    Args:
        strategy: The strategy of the replicas.
        devices: Their devices; none where there is no choice.
        function: Takes a device, on which it runs, and an argument. Calls run in several threads
            at once. Without devices, it is given None and is called here.
        arguments: Its arguments.

    Yields:
        The results, in the order of the arguments. No more calls run than there are devices; those
        whose results nobody asks for any more end in the background.
    """
    if not devices:
        # Each result is taken before the next call begins.
        yield from (function(None, argument) for argument in arguments)
        return

    def call(device: str, argument: Any) -> Any:
        with strategy.scope(), tf.device(device):
            return function(device, argument)

    # A thread each, so that a slow device keeps no other waiting for its next call.
    threads = [concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=d) for d in devices]
    running: collections.deque = collections.deque()
    try:
        replicas = itertools.cycle(zip(devices, threads, strict=True))
        for (device, thread), argument in zip(replicas, arguments, strict=False):
            # Devices take turns, so that the oldest call is that of the device which is next.
            if len(running) == len(devices):
                yield running.popleft().result()
            running.append(thread.submit(call, device, argument))
        while running:
            yield running.popleft().result()
    finally:
        for thread in threads:
            thread.shutdown(wait=False)


def _first(strategy: tf.distribute.Strategy, function: Callable[[], tf.Tensor]) -> tf.Tensor:
    """Returns the result of a function on the first replica of this process."""
    return strategy.experimental_local_results(strategy.run(function))[0]
