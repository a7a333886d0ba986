"""The processes of a `MultiWorkerMirroredStrategy`, and what they tell each other."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf


def count_processes(strategy: tf.distribute.Strategy) -> int:
    """Returns in how many processes the replicas of a strategy are; each has equally many."""
    if strategy.num_replicas_in_sync == 1:
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a strategy, as one of them sees them. All must call its methods together.

    Attributes:
        strategy: The strategy.
        count: How many there are.
        rank: Which one this is, from 0.
    """

    strategy: tf.distribute.Strategy
    count: int = 1
    rank: int = 0

    @classmethod
    def of(cls, strategy: tf.distribute.Strategy) -> "Processes":
        """Finds out which of the processes of a strategy this is."""
        count = count_processes(strategy)
        if count == 1:
            return cls(strategy)
        index = _first(
            strategy, lambda: tf.distribute.get_replica_context().replica_id_in_sync_group
        )
        return cls(strategy, count, int(index) // len(strategy.extended.worker_devices))

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that decides and writes."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Returns in all processes the sum of what each has.

        Args:
            values: Numbers, float64; of one shape in all processes.
        """
        if self.count == 1:
            return values
        here = len(self.strategy.extended.worker_devices)

        def add() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # Of the replicas of a process, the first one gives it.
            gives = tf.cast(context.replica_id_in_sync_group % here == 0, tf.float64)
            given = tf.constant(values, tf.float64) * gives
            return context.all_reduce(tf.distribute.ReduceOp.SUM, given)

        return _first(self.strategy, add).numpy()

    def exchange(self, message: bytes) -> list[bytes]:
        """Returns in all processes what each of them says, by rank."""
        if self.count == 1:
            return [message]
        lengths = np.zeros(self.count)
        lengths[self.rank] = len(message)
        lengths = self.sum(lengths).astype(int)
        text = np.zeros([self.count, lengths.max()])
        text[self.rank, : len(message)] = np.frombuffer(message, np.uint8)
        text = self.sum(text).astype(np.uint8)
        return [row[:length].tobytes() for row, length in zip(text, lengths, strict=True)]


def _first(strategy: tf.distribute.Strategy, function: Callable[[], tf.Tensor]) -> tf.Tensor:
    """Returns what a function gives on the first replica of this process."""
    return strategy.experimental_local_results(strategy.run(function))[0]
