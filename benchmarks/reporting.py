"""Tables, JSON and the environment of the numbers, for all benchmarks."""

import dataclasses
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterable

import tensorflow as tf

from fisher_keras.experiments.training.provenance import provenance

_ALLOCATOR = (
    "LD_PRELOAD",
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)


def run(
    headline: str,
    names: Iterable[str],
    settings: object,
    measure: Callable[[str], dict],
    table: Callable[[dict], str],
    output: str | os.PathLike | None,
) -> None:
    """Measures, prints a table for each name, and writes JSON after each.

    Args:
        headline: The first line to print.
        names: What is measured one after another.
        settings: A dataclass, for the JSON.
        measure: Takes a name to its results.
        table: Takes results to a Markdown table.
        output: The JSON file to write, or None.
    """
    if output is not None:
        output = pathlib.Path(output)
        # A path that cannot be written is found before the work, not after.
        output.touch()
    report = {"settings": dataclasses.asdict(settings), **environment(), "results": {}}
    allocator = [f"{name}={value}" for name, value in report["allocator"].items()]
    print(headline)
    print(f"machine: {report['cpu']}; {report['device']}; threads: {report['threads']}")
    print("versions:", ", ".join(f"{name} {v}" for name, v in report["versions"].items()))
    print("allocator settings:", " ".join(allocator) or "none of " + ", ".join(_ALLOCATOR))
    for name in names:
        report["results"][name] = measure(name)
        print(f"\n## {name}\n\n{table(report['results'][name])}", flush=True)
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


def markdown(rows: list[list[str]]) -> str:
    """Aligns rows, the first of which is the header, as a Markdown table."""
    header, *body = rows
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cpu_model() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
