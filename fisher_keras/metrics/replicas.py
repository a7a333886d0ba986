"""Work spread over the replicas of a `tf.distribute` strategy, one thread a replica."""

import collections
import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf


def replica_strategy(model: keras.Model) -> tf.distribute.Strategy:
    """Returns the strategy in scope, or else the one in whose scope the model was made.

    Args:
        model: A Keras model.

    Returns:
        The strategy; TensorFlow's default one, of a single replica, where there is none.

    Raises:
        ValueError: If it has several replicas and is no `tf.distribute.MirroredStrategy`.
    """
    in_scope = tf.distribute.has_strategy()
    strategy = tf.distribute.get_strategy() if in_scope else model.distribute_strategy
    count = strategy.num_replicas_in_sync
    if count > 1 and not isinstance(strategy, tf.distribute.MirroredStrategy):
        raise ValueError(
            "Trials are spread over the replicas of a tf.distribute.MirroredStrategy, the devices "
            f"of one machine. Given: a {type(strategy).__name__} of {count} replicas. Save the "
            "model, and evaluate it where it is loaded outside of that strategy."
        )
    return strategy


def over_replicas(
    strategy: tf.distribute.Strategy, function: Callable[[Any], Any], arguments: Iterable[Any]
) -> Iterator[Any]:
    """Calls a function for each argument, on each replica in turn, as many at once as there are.

    On a replica's device, mirrored variables are its own copies. A thread keeps to its device, so
    that functions that were traced there can be found again.

    Args:
        strategy: A strategy that `replica_strategy` returned. With one replica, the function is
            called where it is asked for, without a thread.
        function: To be called in several threads at once.
        arguments: Its arguments.

    Yields:
        The results, in the order of the arguments. No more calls are under way than there are
        replicas; where nobody asks for their results any more, they end in the background.
    """
    if strategy.num_replicas_in_sync == 1:
        yield from map(function, arguments)
        return

    def call(device: str, argument: Any) -> Any:
        with strategy.scope(), tf.device(device):
            return function(argument)

    devices = strategy.extended.worker_devices
    running: collections.deque = collections.deque()
    for device, argument in zip(itertools.cycle(devices), arguments, strict=False):
        if len(running) == len(devices):
            yield running.popleft().result()
        running.append(_thread(device).submit(call, device, argument))
    while running:
        yield running.popleft().result()


@functools.cache
def _thread(device: str) -> concurrent.futures.Executor:
    return concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=device)
