#!/usr/bin/env python3
"""Measures a training step of every variant of the regularizer against a plain Keras step.

For each architecture: step time, trace time, time of the first call and peak memory, as a
Markdown table on stdout and as JSON. README.md beside this file explains the columns.
"""

import concurrent.futures
import dataclasses
import gc
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import keras
import tensorflow as tf
from absl import app, flags
from comparison import SharpnessAwareModel, UnrolledModel

from fisher_keras import FisherRegularizedModel
from fisher_keras.experiments.provenance import provenance
from fisher_keras.models import ARCHITECTURES, build_model

_TRACES = 3
_WARM_STEPS = 3
_ALLOCATOR = (
    "LD_PRELOAD",
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
# Title of a column, the figure in the results, its format.
_COLUMNS = (
    ("step (s)", "step_s", ".3f"),
    ("trace (s)", "trace_s", ".2f"),
    ("first call (s)", "first_call_s", ".2f"),
    ("peak (MiB)", "peak_mib", ".0f"),
    ("warm peak (MiB)", "warm_peak_mib", ".0f"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        batch_size: B.
        num_sub_batches: M.
        steps: Rounds of timed steps, one step of every variant each.
        variants: Keys of `VARIANTS`, "plain" among them.
    """

    batch_size: int
    num_sub_batches: int
    steps: int
    variants: tuple[str, ...]


def _regularized(**options: object) -> Callable:
    return lambda model, count: FisherRegularizedModel(
        model, num_sub_batches=count, seed=0, **options
    )


# Each makes the model to train from a plain one and M.
VARIANTS: dict[str, Callable[[keras.Model, int], keras.Model]] = {
    "plain": lambda model, _: model,
    "SAM": lambda model, _: SharpnessAwareModel(model),
    "finite_difference": _regularized(),
    "finite_difference, shared": _regularized(share_gradients=True),
    "hessian_vector_product": _regularized(gradient="hessian_vector_product"),
    "hessian_vector_product, shared": _regularized(
        gradient="hessian_vector_product", share_gradients=True
    ),
    "unrolled": lambda model, count: UnrolledModel(model, num_sub_batches=count),
}


def measure(arch: str, settings: Settings) -> dict[str, dict]:
    """Measures all variants on one architecture.

    Args:
        arch: One of `ARCHITECTURES`.
        settings: What is measured.

    Returns:
        For each variant its figures: for each of `_COLUMNS` the value and, under the same name
        with "_ratio" appended, the ratio to plain; and "step_times_s", one a round.
    """
    models = {variant: _compiled(variant, arch, settings) for variant in settings.variants}
    traces = _trace_times(models, settings)
    batches = iter(_batches(settings.batch_size))
    # What the first call of a process sets up is not the step's.
    _step(_compiled("plain", arch, settings), batches)
    first_calls = {}
    for variant, model in models.items():
        _progress(f"{arch}: first call, {variant}")
        first_calls[variant] = [_seconds(lambda m=model: _step(m, batches))]
    steps = _interleaved(
        {variant: lambda m=model: _step(m, batches) for variant, model in models.items()},
        settings.steps,
        f"{arch}: steps",
    )
    del models
    memory = {}
    for variant in settings.variants:
        _progress(f"{arch}: memory, {variant}")
        memory[variant] = _in_fresh_process(_peak_memory, variant, arch, settings)
    return {
        variant: {
            **_figures("step_s", steps[variant], steps["plain"]),
            **_figures("trace_s", traces[variant], traces["plain"]),
            **_figures("first_call_s", first_calls[variant], first_calls["plain"]),
            **_figures("peak_mib", memory[variant][:1], memory["plain"][:1]),
            **_figures("warm_peak_mib", memory[variant][1:], memory["plain"][1:]),
            "step_times_s": steps[variant],
        }
        for variant in settings.variants
    }


def table(results: dict[str, dict]) -> str:
    """Formats what `measure` returned as a Markdown table."""
    titles = [cell for title, _, _ in _COLUMNS for cell in (title, "/ plain")]
    rows = [["variant", *titles], ["---", *["---:"] * len(titles)]]
    for variant, figures in results.items():
        cells = [variant]
        for _, name, form in _COLUMNS:
            cells += [format(figures[name], form), format(figures[f"{name}_ratio"], ".2f")]
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(archs: list[str], settings: Settings, output: pathlib.Path | None = None) -> None:
    """Measures, prints a table for each architecture, and writes JSON after each.

    Args:
        archs: Some of `ARCHITECTURES`.
        settings: What is measured.
        output: The JSON file to write, or None.
    """
    if output is not None:
        # A path that cannot be written is found before the work, not after.
        output.touch()
    report = {"settings": dataclasses.asdict(settings), **environment(), "results": {}}
    allocator = [f"{name}={value}" for name, value in report["allocator"].items()]
    print(f"B = {settings.batch_size}, M = {settings.num_sub_batches}, {settings.steps} rounds")
    print(f"machine: {report['cpu']}; {report['device']}; threads: {report['threads']}")
    print("versions:", ", ".join(f"{name} {v}" for name, v in report["versions"].items()))
    print("allocator settings:", " ".join(allocator) or "none of " + ", ".join(_ALLOCATOR))
    for arch in archs:
        report["results"][arch] = measure(arch, settings)
        print(f"\n## {arch}\n\n{table(report['results'][arch])}", flush=True)
        if output is not None:
            output.write_text(json.dumps(report, indent=2) + "\n")


def environment() -> dict:
    """Returns what the numbers depend on beside the code: versions, machine, allocator."""
    threading = tf.config.threading
    return {
        **provenance(),
        "cpu": _cpu_model(),
        # 0: TensorFlow takes as many as there are cores.
        "threads": {
            "intra_op": threading.get_intra_op_parallelism_threads(),
            "inter_op": threading.get_inter_op_parallelism_threads(),
        },
        "allocator": {name: os.environ[name] for name in _ALLOCATOR if name in os.environ},
        "load_average": os.getloadavg(),
    }


def _compiled(variant: str, arch: str, settings: Settings) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = VARIANTS[variant](build_model(arch, num_classes=10), settings.num_sub_batches)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _batches(batch_size: int) -> tf.data.Dataset:
    """Makes an endless dataset of one random batch, of a size that is not known in advance."""
    images = tf.random.stateless_normal([batch_size, 32, 32, 3], seed=[0, 0])
    labels = tf.random.stateless_uniform([batch_size], [0, 1], 0, 10, tf.int32)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size).repeat()


def _step(model: keras.Model, batches: tf.data.Iterator) -> float:
    """Does one step through the function that `fit` calls; returns the loss, once it is there."""
    model.make_train_function()
    return float(model.train_function(batches)["loss"])


def _trace_times(models: dict[str, keras.Model], settings: Settings) -> dict[str, list[float]]:
    batches = _batches(settings.batch_size).element_spec

    def trace(model: keras.Model) -> None:
        tf.function(model.train_step, autograph=False).get_concrete_function(batches)

    # What the first trace of a process imports is not the step's.
    trace(models["plain"])
    return _interleaved(
        {variant: lambda m=model: trace(m) for variant, model in models.items()},
        _TRACES,
        f"{models['plain'].name}: traces",
    )


def _interleaved(actions: dict[str, Callable], rounds: int, title: str) -> dict[str, list[float]]:
    """Times each action once a round, so that whatever else the machine does affects all alike."""
    times = {name: [] for name in actions}
    names = list(actions)
    for round_ in range(rounds):
        _progress(f"{title}, round {round_ + 1} of {rounds}")
        # Nobody always comes after the same other.
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            times[name].append(_seconds(actions[name]))
    return times


def _seconds(action: Callable) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _peak_memory(variant: str, arch: str, settings: Settings) -> list[float]:
    """Returns the peak of all, and of warm steps, in MiB above what there was before the model.

    To be called in a process of its own.
    """
    batches = iter(_batches(settings.batch_size))
    gc.collect()
    before = _memory("VmRSS")
    _reset_peak()
    model = _compiled(variant, arch, settings)
    _step(model, batches)
    peak = _memory("VmHWM")
    _reset_peak()
    for _ in range(_WARM_STEPS):
        _step(model, batches)
    warm_peak = _memory("VmHWM")
    return [max(peak, warm_peak) - before, warm_peak - before]


def _memory(name: str) -> float:
    """Returns VmRSS (resident memory now) or VmHWM (its peak) of this process in MiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return float(status.partition(f"{name}:")[2].split()[0]) / 1024


def _reset_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _in_fresh_process(function: Callable, *arguments: object) -> list[float]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _figures(name: str, values: list[float], plain: list[float]) -> dict[str, float]:
    ratios = [value / base for value, base in zip(values, plain, strict=True)]
    return {name: statistics.median(values), f"{name}_ratio": statistics.median(ratios)}


def _cpu_model() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _define_flags() -> None:
    flags.DEFINE_list("arch", list(ARCHITECTURES), "Architectures, separated by commas.")
    flags.DEFINE_integer("batch_size", 128, "B.", lower_bound=1)
    flags.DEFINE_integer("num_sub_batches", 8, "M.", lower_bound=1)
    flags.DEFINE_integer("steps", 10, "Rounds of timed steps.", lower_bound=1)
    flags.DEFINE_bool("unrolled", False, "Measure M unrolled copies, too; their trace is slow.")
    flags.DEFINE_string("output", None, "JSON file to write.")
    flags.register_validator(
        "arch",
        lambda archs: archs and set(archs) <= set(ARCHITECTURES),
        f"must be some of {', '.join(ARCHITECTURES)}.",
    )
    flags.register_multi_flags_validator(
        ["batch_size", "num_sub_batches"],
        lambda values: values["num_sub_batches"] <= values["batch_size"],
        "--num_sub_batches must be at most --batch_size.",
    )


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    variants = tuple(name for name in VARIANTS if name != "unrolled" or values.unrolled)
    settings = Settings(values.batch_size, values.num_sub_batches, values.steps, variants)
    run(values.arch, settings, pathlib.Path(values.output) if values.output else None)


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
