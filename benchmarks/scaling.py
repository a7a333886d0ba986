#!/usr/bin/env python3
"""Measures a training step on one device, on two devices of a process, and in two processes.

All have the same mini-batch and the same sub-batches in all. A Markdown table on stdout for each
network, and JSON. README.md beside this file explains it.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import measuring
import reporting
from absl import app, flags

_REPLICAS = 2
_VARIANTS = {
    "plain": {"beta": 0.0},
    "finite_difference": {"share_gradients": False},
    "finite_difference, shared": {"share_gradients": True},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of the measurement.

    Attributes:
        batch_size: B, of all replicas together.
        num_sub_batches: Sub-batches of B, those of all replicas.
        steps: Rounds of timed steps.
    """

    batch_size: int
    num_sub_batches: int
    steps: int


class Place:
    """Processes that do steps when they are told to."""

    def __init__(self, name: str, processes: int, arch: str, settings: Settings) -> None:
        values = json.dumps([name, arch, dataclasses.asdict(settings)])
        ports = _free_ports(processes)
        self._processes = []
        for index in range(processes):
            cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
            task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, f"--place={values}"],
                    env=os.environ | {"TF_CONFIG": json.dumps(task)} if processes > 1 else None,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )

    def step(self, variant: str) -> None:
        """Does a step in all processes, and waits for all."""
        for process in self._processes:
            process.stdin.write(f"{variant}\n")
            process.stdin.flush()
        for process in self._processes:
            if process.stdout.readline() != f"{variant}\n":
                raise RuntimeError("a process of the benchmark has ended")

    def end(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.stdin.close()
            process.wait()


def measure(arch: str, settings: Settings) -> dict[str, dict]:
    """Returns for each variant and place the time of a step, and its ratio to one device's."""
    places = {
        "one device": Place("one", 1, arch, settings),
        "two devices": Place("devices", 1, arch, settings),
        "two processes": Place("processes", _REPLICAS, arch, settings),
    }
    results = {}
    for variant in _VARIANTS:
        for name, place in places.items():
            measuring.progress(f"{arch}: first steps, {variant}, {name}")
            place.step(variant)
            place.step(variant)
        times = measuring.interleaved(
            {name: lambda p=place, v=variant: p.step(v) for name, place in places.items()},
            settings.steps,
            f"{arch}, {variant}",
        )
        for name in places:
            results[f"{variant}, {name}"] = {
                **measuring.figures("step_s", times[name], times["one device"]),
                "step_times_s": times[name],
            }
    for place in places.values():
        place.end()
    return results


def table(results: dict[str, dict]) -> str:
    """Formats what `measure` returned as a Markdown table."""
    rows = [["", "step (s)", "/ one device"]]
    for name, figures in results.items():
        rows.append([name, f"{figures['step_s']:.3f}", f"{figures['step_s_ratio']:.2f}"])
    return reporting.markdown(rows)


def _serve(name: str, arch: str, settings: Settings) -> None:
    """Does a step for each line of stdin, and answers each with the same line."""
    import keras
    import tensorflow as tf
    from step import random_batches

    from fisher_keras import FisherRegularizedModel
    from fisher_keras.models import build_model

    (cpu,) = tf.config.list_physical_devices("CPU")
    devices = [tf.config.LogicalDeviceConfiguration()] * (_REPLICAS if name == "devices" else 1)
    tf.config.set_logical_device_configuration(cpu, devices)
    strategy = {
        "one": tf.distribute.get_strategy,
        "devices": tf.distribute.MirroredStrategy,
        "processes": tf.distribute.MultiWorkerMirroredStrategy,
    }[name]()
    count = settings.num_sub_batches // strategy.num_replicas_in_sync

    def prepared(options: dict) -> Callable[[], float]:
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = FisherRegularizedModel(
                build_model(arch, num_classes=10), num_sub_batches=count, seed=0, **options
            )
            model.compile(
                keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
            model.optimizer.build(model.trainable_variables)
        data = random_batches(settings.batch_size)
        batches = iter(strategy.experimental_distribute_dataset(data))
        model.make_train_function()
        return lambda: float(model.train_function(batches)["loss"])

    actions = {}
    for line in sys.stdin:
        variant = line.strip()
        if variant not in actions:
            actions = {variant: prepared(_VARIANTS[variant])}  # One at a time in memory.
        actions[variant]()
        print(variant, flush=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _define_flags() -> None:
    flags.DEFINE_list("arch", ["resnet", "wide_resnet"], "Architectures, separated by commas.")
    flags.DEFINE_integer("batch_size", 128, "B, of all replicas together.", lower_bound=2)
    flags.DEFINE_integer("num_sub_batches", 8, "Those of all replicas.", lower_bound=2)
    flags.DEFINE_integer("steps", 10, "Rounds of timed steps.", lower_bound=1)
    flags.DEFINE_string("output", None, "JSON file to write.")
    flags.DEFINE_string("place", None, "Of a process that this script starts.")


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    if values.place:
        name, arch, settings = json.loads(values.place)
        _serve(name, arch, Settings(**settings))
        return
    settings = Settings(values.batch_size, values.num_sub_batches, values.steps)
    reporting.run(
        f"B = {settings.batch_size}, {settings.num_sub_batches} sub-batches in all",
        values.arch,
        settings,
        lambda arch: measure(arch, settings),
        table,
        values.output,
    )


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
