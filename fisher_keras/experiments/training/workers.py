"""The devices and processes of one training: what `--strategy` says."""

import dataclasses
import os

import tensorflow as tf

STRATEGIES = ("none", "mirrored", "multi_worker")


@dataclasses.dataclass(frozen=True)
class Workers:
    """The processes of a training, each with some of its replicas; all run the same program.

    Attributes:
        strategy: The `tf.distribute` strategy.
        is_chief: Whether this process is the one that decides, prints, and writes files.
    """

    strategy: tf.distribute.Strategy
    is_chief: bool = True

    @classmethod
    def start(cls, name: str) -> "Workers":
        """Makes the strategy of a name; with "multi_worker" it waits for the other processes.

        Args:
            name: One of `STRATEGIES`.

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
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"--strategy=multi_worker cannot start: {error}") from error
        resolver = strategy.cluster_resolver
        has_chief = "chief" in resolver.cluster_spec().jobs
        return cls(strategy, resolver.task_type == "chief" or _is_first(resolver, has_chief))

    @property
    def replicas(self) -> int:
        """The number of replicas in all processes."""
        return self.strategy.num_replicas_in_sync

    def told_by_chief(self, value: float) -> float:
        """Returns in all processes the value that the chief has."""
        return self._sum(value if self.is_chief else 0.0)

    def agree(self, value: int) -> bool:
        """Returns in all processes whether all have the chief's value."""
        return self._sum(float(self.told_by_chief(value) != value)) == 0

    def shared(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Returns batches of which each process is to take its share, example by example."""
        options = tf.data.Options()
        policy = tf.data.experimental.AutoShardPolicy.DATA
        options.experimental_distribute.auto_shard_policy = policy
        return batches.with_options(options)

    def _sum(self, value: float) -> float:
        """Returns the sum of a number that each process gives."""
        if self.replicas == 1:
            return value

        def add() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            here = len(self.strategy.extended.worker_devices)
            # Of the replicas of a process, the first one gives it.
            first = context.replica_id_in_sync_group % here == 0
            given = tf.where(first, tf.constant(value, tf.float64), 0)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, given)

        return float(self.strategy.experimental_local_results(self.strategy.run(add))[0])


def _is_first(resolver: tf.distribute.cluster_resolver.ClusterResolver, has_chief: bool) -> bool:
    return resolver.task_type == "worker" and resolver.task_id == 0 and not has_chief
