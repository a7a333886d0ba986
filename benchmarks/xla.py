#!/usr/bin/env python3
"""Measures a training step with and without `jit_compile=True`, for each network.

A Markdown table on stdout for each network, and JSON. README.md beside this file explains it.
"""

import measuring
import reporting
import step
from absl import app, flags

from fisher_keras.models import ARCHITECTURES

_VARIANTS = ("plain", "finite_difference", "finite_difference, shared")


def measure(arch: str, settings: step.Settings) -> dict[str, dict]:
    """Returns for each variant its times: of a step by either way, their ratio, of first calls."""
    batches = iter(step.random_batches(settings.batch_size))
    models, first_calls = {}, {}
    for variant in settings.variants:
        for jit_compile in (False, True):
            name = variant, jit_compile
            models[name] = step.compiled(variant, arch, settings, jit_compile)
            measuring.progress(f"{arch}: first call, {variant}, jit_compile={jit_compile}")
            first_calls[name] = measuring.seconds(
                lambda model=models[name]: step.one_step(model, batches)
            )
    times = measuring.interleaved(
        {name: lambda m=model: step.one_step(m, batches) for name, model in models.items()},
        settings.steps,
        arch,
    )
    results = {}
    for variant in settings.variants:
        without, with_xla = times[variant, False], times[variant, True]
        results[variant] = {
            **measuring.figures("step_s", without, without),
            **measuring.figures("xla_step_s", with_xla, without),
            "first_call_s": first_calls[variant, False],
            "xla_first_call_s": first_calls[variant, True],
            "step_times_s": without,
            "xla_step_times_s": with_xla,
        }
    return results


def table(results: dict[str, dict]) -> str:
    """Formats what `measure` returned as a Markdown table."""
    rows = [["variant", "step (s)", "XLA (s)", "XLA / step", "first call (s)", "XLA (s)"]]
    for variant, figures in results.items():
        names = ("step_s", "xla_step_s", "xla_step_s_ratio", "first_call_s", "xla_first_call_s")
        forms = (".3f", ".3f", ".2f", ".1f", ".1f")
        cells = [format(figures[name], form) for name, form in zip(names, forms, strict=True)]
        rows.append([variant, *cells])
    return reporting.markdown(rows)


def _define_flags() -> None:
    flags.DEFINE_list("arch", list(ARCHITECTURES), "Architectures, separated by commas.")
    flags.DEFINE_integer("batch_size", 128, "B.", lower_bound=1)
    flags.DEFINE_integer("num_sub_batches", 8, "M.", lower_bound=1)
    flags.DEFINE_integer("steps", 10, "Rounds of timed steps.", lower_bound=1)
    flags.DEFINE_string("output", None, "JSON file to write.")


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    settings = step.Settings(values.batch_size, values.num_sub_batches, values.steps, _VARIANTS)
    headline = f"B = {settings.batch_size}, M = {settings.num_sub_batches}"
    reporting.run(
        headline,
        values.arch,
        settings,
        lambda arch: measure(arch, settings),
        table,
        values.output,
    )


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
