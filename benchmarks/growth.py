#!/usr/bin/env python3
"""Measures how time and memory grow: the Gram matrix with N' and W, a step with M.

For each, a Markdown table on stdout with what a simple model of the growth says, JSON, and one
figure of all. README.md beside this file explains them.
"""

import dataclasses
from collections.abc import Callable

import gram
import matplotlib.pyplot as plt
import measuring
import numpy as np
import reporting
import scipy.optimize
import step
from absl import app, flags
from matplotlib import ticker


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of the measurement.

    Attributes:
        num_samples: Values of N', of a ResNet-20's Gram matrix.
        widths: Widths of the WRN-10 whose Gram matrix of 100 examples is taken; W is then 0.08 to
            36 million.
        num_sub_batches: Values of M, of a ResNet-20's step with shared gradients.
        batch_size: B of the steps.
        rounds: How often each time is taken.
    """

    num_samples: tuple[int, ...] = (50, 100, 200, 400, 800)
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 22)
    num_sub_batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    batch_size: int = 128
    rounds: int = 5


@dataclasses.dataclass(frozen=True)
class Growth:
    """Growth of a figure.

    Attributes:
        formula: What it is said to be, with factors a, b, c of 0 or more.
        terms: Takes values to the terms of the formula, in columns.
    """

    formula: str
    terms: Callable[[np.ndarray], list[np.ndarray]]

    def fitted(self, values: np.ndarray, measured: np.ndarray) -> Callable:
        """Returns the formula as a function, with the factors of the least relative errors."""
        relative = np.stack(self.terms(values), axis=1) / measured[:, np.newaxis]
        factors, _ = scipy.optimize.nnls(relative, np.ones(len(values)))
        return lambda values: factors @ np.stack(self.terms(values))


@dataclasses.dataclass(frozen=True)
class Quantity:
    """Time and memory by the sizes that they grow with.

    Attributes:
        title: Its symbol, and of what it is.
        time: How a call's time grows.
        memory: How the peak memory grows.
    """

    title: str
    time: Growth
    memory: Growth


QUANTITIES = {
    "N'": Quantity(
        "N' (ResNet-20)",
        Growth("a N' + b N'^2", lambda n: [n, n**2]),
        Growth("a + b N'", lambda n: [n**0, n]),
    ),
    "W": Quantity(
        "W (WRN-10, N' = 100)",
        Growth("a W^(1/2) + b W", lambda w: [w**0.5, w]),
        Growth("a + b W^(1/2) + c W", lambda w: [w**0, w**0.5, w]),
    ),
    "M": Quantity(
        "M (ResNet-20, shared gradients)",
        Growth("a + b M", lambda m: [m**0, m]),
        Growth("a + b / M", lambda m: [m**0, 1 / m]),
    ),
}


def measure(name: str, settings: Settings) -> dict[str, dict]:
    """Measures all values of a quantity, each in a process of its own.

    Args:
        name: Key of `QUANTITIES`.
        settings: What is measured.

    Returns:
        For each value "value", "time_s", the median, "times_s" and "peak_mib"; and as
        "time_model_s" and "peak_model_mib" what the fitted formulas say.
    """
    points = {"N'": settings.num_samples, "W": settings.widths, "M": settings.num_sub_batches}
    measured = []
    for value in points[name]:
        measuring.progress(f"{name}: {value}")
        measured.append(measuring.in_fresh_process(_point, name, value, settings))
    values, times, peaks = (np.array(column, float) for column in zip(*measured, strict=True))
    medians = np.median(times, axis=1)
    quantity = QUANTITIES[name]
    time_model = quantity.time.fitted(values, medians)(values)
    peak_model = quantity.memory.fitted(values, peaks)(values)
    return {
        f"{value:.6g}": {
            "value": value,
            "time_s": medians[index],
            "times_s": list(times[index]),
            "time_model_s": time_model[index],
            "peak_mib": peaks[index],
            "peak_model_mib": peak_model[index],
        }
        for index, value in enumerate(values)
    }


def table(results: dict[str, dict]) -> str:
    """Formats what `measure` returned as a Markdown table."""
    rows = [["", "time (s)", "/ model", "peak (MiB)", "/ model"]]
    for value, figures in results.items():
        rows.append(
            [
                value,
                f"{figures['time_s']:.3f}",
                f"{figures['time_s'] / figures['time_model_s']:.2f}",
                f"{figures['peak_mib']:.0f}",
                f"{figures['peak_mib'] / figures['peak_model_mib']:.2f}",
            ]
        )
    return reporting.markdown(rows)


def figure(results: dict[str, dict[str, dict]]) -> plt.Figure:
    """Draws times above, peaks below, a column for each quantity, with the fitted formulas.

    Args:
        results: For each quantity what `measure` returned.
    """
    drawing, axes = plt.subplots(
        2, len(results), figsize=(3.6 * len(results), 6), layout="constrained", squeeze=False
    )
    for column, (name, found) in zip(axes.T, results.items(), strict=True):
        quantity = QUANTITIES[name]
        values = np.array([figures["value"] for figures in found.values()])
        dense = np.geomspace(values.min(), values.max(), 100)
        for ax, key, growth, unit in (
            (column[0], "time_s", quantity.time, "seconds"),
            (column[1], "peak_mib", quantity.memory, "MiB"),
        ):
            measured = np.array([figures[key] for figures in found.values()])
            ax.loglog(dense, growth.fitted(values, measured)(dense), label=growth.formula)
            ax.loglog(values, measured, "o", label="measured")
            ax.set(xlabel=quantity.title, ylabel=unit)
            if values.max() < 1000:
                ax.set_xticks(values, [f"{value:g}" for value in values])
            ax.xaxis.set_minor_formatter(ticker.NullFormatter())
            # Less than a decade has too few powers of ten.
            ax.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
            for which in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
                which(ticker.StrMethodFormatter("{x:g}"))
            ax.legend()
            ax.grid(alpha=0.3)
    return drawing


def _point(name: str, value: int, settings: Settings) -> tuple[float, list[float], float]:
    """Returns a value (for a width, W), the times and the peak; in a process of its own."""
    made = []

    def start() -> Callable:
        made.append(_action(name, value, settings))
        return made[0][1]

    peak, _ = measuring.peak_memory(start, warm_calls=1)
    size, action = made[0]
    return size, [measuring.seconds(action) for _ in range(settings.rounds)], peak


def _action(name: str, value: int, settings: Settings) -> tuple[float, Callable]:
    if name == "M":
        variant = "finite_difference, shared"
        of_step = step.Settings(settings.batch_size, value, settings.rounds, (variant,))
        model = step.compiled(variant, "resnet", of_step)
        batches = iter(step.random_batches(settings.batch_size))
        return value, lambda: step.one_step(model, batches)
    count, network = 100, gram.Network("wide_resnet", value, depth=10)
    if name == "N'":
        count, network = value, gram.Network("resnet")
    gram.NETWORKS[name] = network
    weights = []

    def make(model: object, images: object, labels: object) -> Callable:
        weights.append(
            sum(variable.shape.num_elements() for variable in model.trainable_variables)
        )
        return gram.gram_log_determinant(model, images, labels)

    action = gram.start(make, name, gram.Settings(count, settings.rounds))
    return value if name == "N'" else weights[0], action


def _define_flags() -> None:
    flags.DEFINE_list("quantity", list(QUANTITIES), "Quantities, separated by commas.")
    flags.DEFINE_integer("rounds", 5, "How often each time is taken.", lower_bound=1)
    flags.DEFINE_string("figure", None, "Image file to write.")
    flags.DEFINE_string("output", None, "JSON file to write.")


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    settings = Settings(rounds=values.rounds)
    results = {}

    def measured(name: str) -> dict[str, dict]:
        results[name] = measure(name, settings)
        return results[name]

    headline = f"{settings.rounds} rounds"
    reporting.run(headline, values.quantity, settings, measured, table, values.output)
    if values.figure:
        figure(results).savefig(values.figure, dpi=150)


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
