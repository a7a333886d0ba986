#!/usr/bin/env python3
"""Measures a training step of every variant of the regularizer against a plain Keras step.

For each architecture: step time, trace time, time of the first call and peak memory, as a
Markdown table on stdout and as JSON. README.md beside this file explains the columns.
"""

import dataclasses
import os
from collections.abc import Callable

import keras
import measuring
import reporting
import tensorflow as tf
from absl import app, flags
from comparison import SharpnessAwareModel, UnrolledModel

from fisher_keras import FisherRegularizedModel
from fisher_keras.models import ARCHITECTURES, build_model

_TRACES = 3
_WARM_STEPS = 3
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
    "finite_difference": _regularized(share_gradients=False),
    "finite_difference, auto": _regularized(),
    "finite_difference, shared": _regularized(share_gradients=True),
    "hessian_vector_product": _regularized(
        gradient="hessian_vector_product", share_gradients=False
    ),
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
    models = {variant: compiled(variant, arch, settings) for variant in settings.variants}
    traces = _trace_times(models, settings)
    batches = iter(random_batches(settings.batch_size))
    # What the first call of a process sets up is not the step's.
    one_step(compiled("plain", arch, settings), batches)
    first_calls = {}
    for variant, model in models.items():
        measuring.progress(f"{arch}: first call, {variant}")
        first_calls[variant] = [measuring.seconds(lambda m=model: one_step(m, batches))]
    steps = measuring.interleaved(
        {variant: lambda m=model: one_step(m, batches) for variant, model in models.items()},
        settings.steps,
        f"{arch}: steps",
    )
    del models
    memory = {}
    for variant in settings.variants:
        measuring.progress(f"{arch}: memory, {variant}")
        memory[variant] = measuring.in_fresh_process(peak_memory, variant, arch, settings)
    return {
        variant: {
            **measuring.figures("step_s", steps[variant], steps["plain"]),
            **measuring.figures("trace_s", traces[variant], traces["plain"]),
            **measuring.figures("first_call_s", first_calls[variant], first_calls["plain"]),
            **measuring.figures("peak_mib", memory[variant][:1], memory["plain"][:1]),
            **measuring.figures("warm_peak_mib", memory[variant][1:], memory["plain"][1:]),
            "step_times_s": steps[variant],
        }
        for variant in settings.variants
    }


def table(results: dict[str, dict]) -> str:
    """Formats what `measure` returned as a Markdown table."""
    titles = [cell for title, _, _ in _COLUMNS for cell in (title, "/ plain")]
    rows = [["variant", *titles]]
    for variant, figures in results.items():
        cells = [variant]
        for _, name, form in _COLUMNS:
            cells += [format(figures[name], form), format(figures[f"{name}_ratio"], ".2f")]
        rows.append(cells)
    return reporting.markdown(rows)


def run(archs: list[str], settings: Settings, output: str | os.PathLike | None = None) -> None:
    """Measures, prints a table for each architecture, and writes JSON after each.

    Args:
        archs: Some of `ARCHITECTURES`.
        settings: What is measured.
        output: The JSON file to write, or None.
    """
    headline = (
        f"B = {settings.batch_size}, M = {settings.num_sub_batches}, {settings.steps} rounds"
    )
    reporting.run(headline, archs, settings, lambda arch: measure(arch, settings), table, output)


def compiled(
    variant: str, arch: str, settings: Settings, jit_compile: bool | str = "auto"
) -> keras.Model:
    """Makes the model of a variant, ready for its first step."""
    keras.utils.set_random_seed(0)
    model = VARIANTS[variant](build_model(arch, num_classes=10), settings.num_sub_batches)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def random_batches(batch_size: int) -> tf.data.Dataset:
    """Makes an endless dataset of one random batch, of a size that is not known in advance."""
    images = tf.random.stateless_normal([batch_size, 32, 32, 3], seed=[0, 0])
    labels = tf.random.stateless_uniform([batch_size], [0, 1], 0, 10, tf.int32)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size).repeat()


def one_step(model: keras.Model, batches: tf.data.Iterator) -> float:
    """Does one step through the function that `fit` calls; returns the loss, once it is there."""
    model.make_train_function()
    return float(model.train_function(batches)["loss"])


def _trace_times(models: dict[str, keras.Model], settings: Settings) -> dict[str, list[float]]:
    batches = random_batches(settings.batch_size).element_spec

    def trace(model: keras.Model) -> None:
        tf.function(model.train_step, autograph=False).get_concrete_function(batches)

    # What the first trace of a process imports is not the step's.
    trace(models["plain"])
    return measuring.interleaved(
        {variant: lambda m=model: trace(m) for variant, model in models.items()},
        _TRACES,
        f"{models['plain'].name}: traces",
    )


def peak_memory(variant: str, arch: str, settings: Settings) -> list[float]:
    """Returns what `measuring.peak_memory` does of a model and its steps."""
    batches = iter(random_batches(settings.batch_size))

    def start() -> Callable:
        model = compiled(variant, arch, settings)
        return lambda: one_step(model, batches)

    return measuring.peak_memory(start, _WARM_STEPS)


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
    run(values.arch, settings, values.output)


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
