#!/usr/bin/env python3
"""Measures what memory costs: steps with more and smaller sub-batches, metrics in chunks.

Two Markdown tables on stdout, and JSON: peak memory of a step with shared gradients by M, and of
the Gram matrix by chunk_size. README.md beside this file explains the columns.
"""

import dataclasses
from collections.abc import Callable

import gram
import keras
import measuring
import reporting
import step
from absl import app, flags

from fisher_keras.classifier import Classifier
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.metrics import log_determinant

_SHARED = "finite_difference, shared"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of the measurement.

    Attributes:
        batch_size: B of the steps.
        num_sub_batches: The values of M.
        arch: The network of the steps.
        network: That of the Gram matrix, a key of `gram.NETWORKS`.
        num_samples: N' of the Gram matrix.
        chunk_sizes: The chunks that the N' are taken in; N' for no chunks.
    """

    batch_size: int
    num_sub_batches: tuple[int, ...]
    arch: str
    network: str
    num_samples: int
    chunk_sizes: tuple[int, ...]


def measure_steps(settings: Settings) -> dict[str, dict]:
    """Returns for a plain step, and for each M, "peak_mib" and "warm_peak_mib"."""
    results = {}
    for variant, count in [("plain", 1), *((_SHARED, m) for m in settings.num_sub_batches)]:
        name = variant if variant == "plain" else f"M = {count}"
        measuring.progress(f"{settings.arch}: memory, {name}")
        of_step = step.Settings(settings.batch_size, count, 1, (variant,))
        peak, warm = measuring.in_fresh_process(step.peak_memory, variant, settings.arch, of_step)
        results[name] = {"peak_mib": peak, "warm_peak_mib": warm}
    return results


def measure_gram(settings: Settings) -> dict[str, dict]:
    """Returns for a batch gradient, and for each chunk size, "peak_mib" and "peak_mib_above"."""
    memory = {}
    for size in (None, *settings.chunk_sizes):
        name = "batch gradient" if size is None else f"chunk_size = {size}"
        measuring.progress(f"{settings.network}: memory, {name}")
        memory[name] = measuring.in_fresh_process(_gram_memory, settings, size)
    return measuring.compared_with("batch gradient", {}, memory)


def steps_table(results: dict[str, dict]) -> str:
    """Formats what `measure_steps` returned as a Markdown table."""
    base = results["plain"]
    rows = [["", "peak (MiB)", "/ plain", "warm peak (MiB)", "/ plain"]]
    for name, figures in results.items():
        cells = [name]
        for key in ("peak_mib", "warm_peak_mib"):
            cells += [f"{figures[key]:.0f}", f"{figures[key] / base[key]:.2f}"]
        rows.append(cells)
    return reporting.markdown(rows)


def _gram_memory(settings: Settings, chunk_size: int | None) -> float:
    """Returns MiB, in a process of its own."""
    of_gram = gram.Settings(settings.num_samples, 1)

    def start() -> Callable:
        if chunk_size is None:
            return gram.start("batch gradient", settings.network, of_gram)
        return gram.start(_in_chunks(chunk_size), settings.network, of_gram)

    return measuring.peak_memory(start, warm_calls=1)[0]


def _in_chunks(chunk_size: int) -> Callable:
    def action(model: keras.Model, images: object, labels: object) -> Callable:
        classifier = Classifier(model)
        return lambda: log_determinant(
            loss_gradient_gram(classifier, images, labels, chunk_size=chunk_size)
        )

    return action


def _define_flags() -> None:
    flags.DEFINE_integer("batch_size", 512, "B.", lower_bound=1)
    flags.DEFINE_list("num_sub_batches", ["8", "32", "128"], "Values of M.")
    flags.DEFINE_string("arch", "wide_resnet", "Network of the steps.")
    flags.DEFINE_string("network", "wrn_28_10", "Network of the Gram matrix, as of gram.py.")
    flags.DEFINE_integer("num_samples", 100, "N'.", lower_bound=1)
    flags.DEFINE_list("chunk_sizes", ["100", "50", "25", "10"], "Values of chunk_size.")
    flags.DEFINE_list("part", ["steps", "gram"], "What to measure.")
    flags.DEFINE_string("output", None, "JSON file to write.")


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    settings = Settings(
        values.batch_size,
        tuple(map(int, values.num_sub_batches)),
        values.arch,
        values.network,
        values.num_samples,
        tuple(map(int, values.chunk_sizes)),
    )
    parts = {"steps": (measure_steps, steps_table), "gram": (measure_gram, gram.table)}
    reporting.run(
        f"B = {settings.batch_size} ({settings.arch}), N' = {settings.num_samples} "
        f"({settings.network})",
        values.part,
        settings,
        lambda name: parts[name][0](settings),
        lambda results: parts["steps" if "plain" in results else "gram"][1](results),
        values.output,
    )


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
