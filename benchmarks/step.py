#!/usr/bin/env python3
"""Measures a training step of every variant of the regularizer against a plain Keras step.

For each network: step time, CPU time, trace time, time of the first call and peak memory, as a
Markdown table on stdout and as JSON. README.md beside this file explains the columns.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import keras
import measuring
import numpy as np
import reporting
import tensorflow as tf
from absl import app, flags
from comparison import SharpnessAwareModel, UnrolledModel

from fisher_keras import FisherRegularizedModel
from fisher_keras.models import ARCHITECTURES, build_model

_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
_THROUGH = ("train_function", "fit", "train_on_batch")
_TIMES = ("step", "cpu")
_TRACES = 3
_WARM_STEPS = 3
# Title of a column, the figure in the results, its format.
_COLUMNS = (
    ("step (s)", "step_s", ".4f"),
    ("CPU (s)", "cpu_s", ".4f"),
    ("trace (s)", "trace_s", ".2f"),
    ("first call (s)", "first_call_s", ".2f"),
    ("its CPU (s)", "first_cpu_s", ".2f"),
    ("peak (MiB)", "peak_mib", ".0f"),
    ("warm peak (MiB)", "warm_peak_mib", ".0f"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of the measurement.

    Attributes:
        batch_size: B.
        num_sub_batches: M.
        steps: Rounds of timed steps, one step of every variant each.
        variants: Keys of `VARIANTS`, "plain" among them.
        policy: Keras' dtype policy.
        steps_of_round: How many steps of a variant are timed together, so that with an interval
            those without the regularizer have their part.
        through: What does the steps, one of `_THROUGH`: the function that `fit` calls, `fit`
            itself, whose first call also makes the optimizer's variables, or `train_on_batch`.
        steps_only: Whether traces and memory are left out.
    """

    batch_size: int
    num_sub_batches: int
    steps: int
    variants: tuple[str, ...]
    policy: str = "float32"
    steps_of_round: int = 1
    through: str = "train_function"
    steps_only: bool = False


def _regularized(**options: object) -> Callable:
    return lambda model, count: FisherRegularizedModel(
        model, num_sub_batches=count, seed=0, **options
    )


# Each makes the model to train from a plain one and M.
VARIANTS: dict[str, Callable[[keras.Model, int], keras.Model]] = {
    "plain": lambda model, _: model,
    "SAM": lambda model, _: SharpnessAwareModel(model),
    "finite_difference": _regularized(share_gradients=False),
    "finite_difference, auto": _regularized(),
    "finite_difference, shared": _regularized(share_gradients=True),
    "hessian_vector_product": _regularized(
        gradient="hessian_vector_product", share_gradients=False
    ),
    "hessian_vector_product, shared": _regularized(
        gradient="hessian_vector_product", share_gradients=True
    ),
    "step_length": _regularized(step_length=0.1, share_gradients=False),
    "step_length, shared": _regularized(step_length=0.1, share_gradients=True),
    "interval=10": _regularized(interval=10, share_gradients=False),
    "interval=10, shared": _regularized(interval=10, share_gradients=True),
    "unrolled": lambda model, count: UnrolledModel(model, num_sub_batches=count),
}
_USUAL = tuple(VARIANTS)[:7]  # The others have flags of their own, or a slow trace.
_WORDS, _TABLE = 32, 200_000


def _embedding() -> keras.Model:
    layers = [keras.layers.Embedding(_TABLE, 32), keras.layers.GlobalAveragePooling1D()]
    return keras.Sequential([keras.Input((_WORDS,)), *layers, keras.layers.Dense(10)])


def _mlp() -> keras.Model:
    layers = [keras.layers.Dense(32, "relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((20,)), *layers])


def _application(name: str) -> Callable[[], keras.Model]:
    options = {"weights": None, "classes": 10, "classifier_activation": None}
    return lambda: getattr(keras.applications, name)(input_shape=(32, 32, 3), **options)


# Beside the package's architectures: small networks, whose steps are mostly overhead, and deep
# ones, whose traces are long.
_OTHERS = {"embedding": _embedding, "mlp": _mlp} | {
    name: _application(name) for name in ("MobileNet", "ResNet50", "DenseNet121")
}
NETWORKS = (*ARCHITECTURES, *_OTHERS)


def measure(arch: str, settings: Settings) -> dict[str, dict]:
    """Measures all variants on one architecture.

    Args:
        arch: One of `NETWORKS`.
        settings: What is measured.

    Returns:
        For each variant its figures: for each of `_COLUMNS` that is measured the value and, under
        the same name with "_ratio" appended, the ratio to plain; and "step_times_s" and
        "cpu_times_s", one a round.
    """
    models = {variant: compiled(variant, arch, settings) for variant in settings.variants}
    found = {}
    if not settings.steps_only:
        found["trace_s"] = _trace_times(models, arch, settings)
    # What the first call of a process sets up is not the step's.
    steps = _does_steps(arch, settings)
    steps(compiled("plain", arch, settings), 1)
    found["first_call_s"], found["first_cpu_s"] = {}, {}
    for variant, model in models.items():
        measuring.progress(f"{arch}: first call, {variant}")
        pair = measuring.seconds(lambda m=model: steps(m, 1), measuring.wall_and_cpu)
        for name, seconds in zip(("first_call_s", "first_cpu_s"), pair.tolist(), strict=True):
            found[name][variant] = [seconds]
    number = settings.steps_of_round
    times = measuring.interleaved(
        {variant: functools.partial(steps, model, number) for variant, model in models.items()},
        settings.steps,
        f"{arch}: steps",
        measuring.wall_and_cpu,
    )
    for index, name in enumerate(("step_s", "cpu_s")):
        found[name] = {
            variant: [float(pair[index]) / settings.steps_of_round for pair in pairs]
            for variant, pairs in times.items()
        }
    del models
    if not settings.steps_only:
        found["peak_mib"], found["warm_peak_mib"] = _memory(arch, settings)
    results = {}
    for variant in settings.variants:
        results[variant] = {f"{name}_times_s": found[f"{name}_s"][variant] for name in _TIMES}
        for name, values in found.items():
            results[variant] |= measuring.figures(name, values[variant], values["plain"])
    return results


def table(results: dict[str, dict]) -> str:
    """Formats what `measure` returned as a Markdown table."""
    columns = [column for column in _COLUMNS if column[1] in results["plain"]]
    titles = [cell for title, _, _ in columns for cell in (title, "/ plain")]
    rows = [["variant", *titles]]
    for variant, figures in results.items():
        cells = [variant]
        for _, name, form in columns:
            cells += [format(figures[name], form), format(figures[f"{name}_ratio"], ".2f")]
        rows.append(cells)
    return reporting.markdown(rows)


def run(archs: list[str], settings: Settings, output: str | os.PathLike | None = None) -> None:
    """Measures, prints a table for each architecture, and writes JSON after each.

    Args:
        archs: Some of `NETWORKS`.
        settings: What is measured.
        output: The JSON file to write, or None.
    """
    headline = (
        f"B = {settings.batch_size}, M = {settings.num_sub_batches}, {settings.steps} rounds of "
        f"{settings.steps_of_round}, {settings.policy}"
    )
    reporting.run(headline, archs, settings, lambda arch: measure(arch, settings), table, output)


def compiled(
    variant: str, arch: str, settings: Settings, jit_compile: bool | str = "auto"
) -> keras.Model:
    """Makes the model of a variant, ready for its first step."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(settings.policy)
    network = _OTHERS[arch]() if arch in _OTHERS else build_model(arch, num_classes=10)
    model = VARIANTS[variant](network, settings.num_sub_batches)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    if settings.through != "fit":
        model.optimizer.build(model.trainable_variables)
    return model


def random_batches(batch_size: int, arch: str = ARCHITECTURES[0]) -> tf.data.Dataset:
    """Makes an endless dataset of one random batch, of a size that is not known in advance."""
    shape = [batch_size, *{"embedding": [_WORDS], "mlp": [20]}.get(arch, [32, 32, 3])]
    inputs = tf.random.stateless_normal(shape, seed=[0, 0])
    if arch == "embedding":
        inputs = tf.random.stateless_uniform(shape, [0, 0], 0, _TABLE, tf.int32)
    labels = tf.random.stateless_uniform([batch_size], [0, 1], 0, 10, tf.int32)
    return tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(batch_size).repeat()


def _does_steps(arch: str, settings: Settings) -> Callable[[keras.Model, int], None]:
    """Returns a function that does a number of steps of a model as `Settings.through` says."""
    data = random_batches(settings.batch_size, arch)
    batches = iter(data)
    x, y = map(np.asarray, next(batches))

    def steps(model: keras.Model, number: int) -> None:
        if settings.through == "fit":
            model.fit(data, steps_per_epoch=number, verbose=0)
            return
        for _ in range(number):
            if settings.through == "train_on_batch":
                model.train_on_batch(x, y)
            else:
                one_step(model, batches)

    return steps


def one_step(model: keras.Model, batches: tf.data.Iterator) -> float:
    """Does one step through the function that `fit` calls; returns the loss, once it is there."""
    model.make_train_function()
    return float(model.train_function(batches)["loss"])


def _trace_times(
    models: dict[str, keras.Model], arch: str, settings: Settings
) -> dict[str, list[float]]:
    batches = random_batches(settings.batch_size, arch).element_spec

    def trace(model: keras.Model) -> None:
        tf.function(model.train_step, autograph=False).get_concrete_function(batches)

    # What the first trace of a process imports is not the step's.
    trace(models["plain"])
    return measuring.interleaved(
        {variant: lambda m=model: trace(m) for variant, model in models.items()},
        _TRACES,
        f"{models['plain'].name}: traces",
    )


def _memory(arch: str, settings: Settings) -> list[dict[str, list[float]]]:
    """Returns the peak of each variant, and the warm peak of each."""
    peaks = {}
    for variant in settings.variants:
        measuring.progress(f"{arch}: memory, {variant}")
        peaks[variant] = measuring.in_fresh_process(peak_memory, variant, arch, settings)
    return [{variant: [pair[i]] for variant, pair in peaks.items()} for i in range(2)]


def peak_memory(variant: str, arch: str, settings: Settings) -> list[float]:
    """Returns what `measuring.peak_memory` does of a model and its steps."""
    batches = iter(random_batches(settings.batch_size, arch))

    def start() -> Callable:
        model = compiled(variant, arch, settings)
        return lambda: one_step(model, batches)

    return measuring.peak_memory(start, _WARM_STEPS)


def _define_flags() -> None:
    flags.DEFINE_list("arch", list(ARCHITECTURES), f"Some of {', '.join(NETWORKS)}.")
    flags.DEFINE_multi_enum("variant", None, list(VARIANTS), "What is measured beside plain.")
    flags.DEFINE_enum("policy", "float32", _POLICIES, "Keras' dtype policy.")
    flags.DEFINE_integer("steps_of_round", 1, "Steps that are timed together.", lower_bound=1)
    flags.DEFINE_enum("through", _THROUGH[0], _THROUGH, "What does the steps.")
    flags.DEFINE_bool("steps_only", False, "Leave out traces and memory.")
    flags.DEFINE_integer("batch_size", 128, "B.", lower_bound=1)
    flags.DEFINE_integer("num_sub_batches", 8, "M.", lower_bound=1)
    flags.DEFINE_integer("steps", 10, "Rounds of timed steps.", lower_bound=1)
    flags.DEFINE_string("output", None, "JSON file to write.")
    flags.register_validator(
        "arch",
        lambda archs: archs and set(archs) <= set(NETWORKS),
        f"must be some of {', '.join(NETWORKS)}.",
    )
    flags.register_multi_flags_validator(
        ["batch_size", "num_sub_batches"],
        lambda values: values["num_sub_batches"] <= values["batch_size"],
        "--num_sub_batches must be at most --batch_size.",
    )
    flags.register_multi_flags_validator(
        ["through", "steps_only"],
        lambda values: values["through"] != "fit" or values["steps_only"],
        "--through=fit needs --steps_only: traces and memory are those of a built optimizer.",
    )


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    variants = ("plain", *(values.variant or _USUAL))
    settings = Settings(
        values.batch_size,
        values.num_sub_batches,
        values.steps,
        tuple(dict.fromkeys(variants)),
        values.policy,
        values.steps_of_round,
        values.through,
        values.steps_only,
    )
    run(values.arch, settings, values.output)


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
