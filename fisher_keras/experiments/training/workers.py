"""Devices and processes of `--strategy`."""

import os

import numpy as np
import tensorflow as tf

from fisher_keras.devices import Processes


class Workers:
    """The processes of a training, each with some of its replicas; all run the same program.

    Attributes:
        strategy: The `tf.distribute` strategy.
        is_chief: Whether this process is the one that decides, prints, and writes files.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        self._processes = Processes.of(strategy)
        self.is_chief = self._processes.is_chief

    @classmethod
    def start(cls, name: str) -> "Workers":
        """Makes the strategy of a name; with "multi_worker" it waits for the other processes.

        Args:
            name: One of `names.STRATEGIES`.

        Raises:
            ValueError: If there is no `TF_CONFIG` that TensorFlow can read, or TensorFlow has been
                used before in this process.
        """
        if name == "none":
            return cls(tf.distribute.get_strategy())
        tf.get_logger().setLevel("WARNING")  # It says what is reduced, step by step.
        if name == "mirrored":
            # One replica for each GPU; without one, for each logical CPU device.
            return cls(tf.distribute.MirroredStrategy())
        if "TF_CONFIG" not in os.environ:
            raise ValueError(
                "--strategy=multi_worker needs the environment variable TF_CONFIG, which tells "
                "each process of the others and of its place among them"
            )
        try:
            return cls(tf.distribute.MultiWorkerMirroredStrategy())
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"--strategy=multi_worker cannot start: {error}") from error

    @property
    def replicas(self) -> int:
        """The number of replicas in all processes."""
        return self.strategy.num_replicas_in_sync

    def from_chief(self, value: float) -> float:
        """Returns in all processes the value that the chief has."""
        return float(self._processes.from_chief(np.float64(value)))

    def agree(self, value: int) -> bool:
        """Returns in all processes whether all have the chief's value."""
        other = self.from_chief(value) != value
        return not self._processes.sum(np.float64(other))

    def shared(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Returns batches of which each process is to take its share, example by example."""
        # By examples: the default tries to share out files, which arrays in memory do not have.
        options = tf.data.Options()
        policy = tf.data.experimental.AutoShardPolicy.DATA
        options.experimental_distribute.auto_shard_policy = policy
        return batches.with_options(options)
