"""Work spread over the replicas of a `tf.distribute` strategy: one thread a replica.

Where they are in several processes, each of these takes its share.
"""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import Classifier
from fisher_keras.devices import Processes


def replica_strategy(model: keras.Model) -> tf.distribute.Strategy:
    """Returns the strategy in scope, or else the one in whose scope the model was made.

    Args:
        model: A Keras model.

    Returns:
        The strategy; TensorFlow's default one, of a single replica, where there is none.

    Raises:
        ValueError: If it has several replicas and is no `tf.distribute.MirroredStrategy` or
            `MultiWorkerMirroredStrategy`.
    """
    in_scope = tf.distribute.has_strategy()
    strategy = tf.distribute.get_strategy() if in_scope else model.distribute_strategy
    count = strategy.num_replicas_in_sync
    known = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    if count > 1 and not isinstance(strategy, known):
        raise ValueError(
            "Trials are spread over the replicas of a tf.distribute.MirroredStrategy, the devices "
            "of one machine, or of a MultiWorkerMirroredStrategy. Given: a "
            f"{type(strategy).__name__} of {count} replicas. Save the model, and evaluate it "
            "where it is loaded outside of that strategy."
        )
    return strategy


def over_replicas(
    strategy: tf.distribute.Strategy,
    classifier: Classifier,
    function: Callable[[Classifier, Any], Any],
    arguments: Iterable[Any],
) -> Iterator[Any]:
    """Calls a function for each argument, on each replica in turn, as many at once as there are.

    These are the replicas of this process. Where their copies of the model differ, as Keras leaves
    moving statistics after `fit`, it is the first one's that counts, and is saved: all is then
    done there.

    On a replica's device, mirrored variables are its own copies, and functions are traced for
    them: each replica has a `Classifier` of its own.

    Args:
        strategy: A strategy that `replica_strategy` returned. With one replica, the function is
            called where it is asked for, without a thread.
        classifier: Of the model; it keeps those of the replicas.
        function: Takes the replica's classifier and an argument; to be called in several threads
            at once.
        arguments: Its arguments.

    Yields:
        The results, in the order of the arguments. No more calls are under way than there are
        replicas; where nobody asks for their results any more, they end in the background.
    """
    if strategy.num_replicas_in_sync == 1 or not _copies_agree(strategy, classifier.model):
        yield from (function(classifier, argument) for argument in arguments)
        return

    def call(device: str, argument: Any) -> Any:
        with strategy.scope(), tf.device(device):
            return function(classifier.cached(_on_a_replica, device), argument)

    devices = strategy.extended.worker_devices
    # A thread each, so that a slow device keeps no other waiting for its next call.
    threads = [concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=d) for d in devices]
    running: collections.deque = collections.deque()
    try:
        replicas = itertools.cycle(zip(devices, threads, strict=True))
        for (device, thread), argument in zip(replicas, arguments, strict=False):
            if len(running) == len(devices):
                yield running.popleft().result()
            running.append(thread.submit(call, device, argument))
        while running:
            yield running.popleft().result()
    finally:
        for thread in threads:
            thread.shutdown(wait=False)


def over_processes(
    processes: Processes,
    work: Callable[[Sequence[int]], Iterator[bytes]],
    indices: Sequence[int],
) -> Iterator[bytes]:
    """Shares out what has an index, and tells all processes what each has found.

    Args:
        processes: The processes.
        work: Takes the indices of this process and yields what it finds for each.
        indices: All indices, the same in all processes.

    Yields:
        What was found, in the order of the indices.

    Raises:
        RuntimeError: If another process has raised an error.
    """
    found = work(indices[processes.rank :: processes.count])
    for first in range(0, len(indices), processes.count):
        # In the last round there may be nothing for some.
        yield from told(processes, lambda: next(found, b""))[: len(indices) - first]


def told(processes: Processes, find: Callable[[], bytes]) -> list[bytes]:
    """Returns in all processes what each has found, by rank.

    Args:
        processes: The processes.
        find: Finds it.

    Raises:
        RuntimeError: If another process has raised an error; this one's own goes through.
    """
    error, message = None, b"!"
    try:
        message = b"=" + find()
    except Exception as own:
        error, message = own, b"!" + str(own).encode()
    messages = processes.exchange(message)
    if error is not None:
        raise error
    for rank, other in enumerate(messages):
        if other[:1] == b"!":
            raise RuntimeError(f"Process {rank} of {processes.count}: {other[1:].decode()}")
    return [other[1:] for other in messages]


def _copies_agree(strategy: tf.distribute.Strategy, model: keras.Model) -> bool:
    """Returns whether the replicas of this process have equal copies of a model."""
    for variable in model.variables:
        first, *others = strategy.experimental_local_results(variable.value)
        if not all(np.array_equal(first, other, equal_nan=True) for other in others):
            return False
    return True


def _on_a_replica(classifier: Classifier, device: str) -> Classifier:
    """Makes the classifier of one replica; the device only tells them apart."""
    return Classifier(classifier.model, classifier.from_logits, classifier.normalize_logits)
