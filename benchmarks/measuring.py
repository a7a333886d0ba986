"""Times and peak memory, for all benchmarks. Imports no TensorFlow."""

import concurrent.futures
import gc
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def interleaved(
    actions: dict[str, Callable],
    rounds: int,
    title: str,
    clock: Callable[[], Any] = time.perf_counter,
) -> dict[str, list]:
    """Times each action once a round, so that whatever else the machine does affects all alike."""
    times = {name: [] for name in actions}
    names = list(actions)
    for round_ in range(rounds):
        progress(f"{title}, round {round_ + 1} of {rounds}")
        # Nobody always comes after the same other.
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            times[name].append(seconds(actions[name], clock))
    return times


def seconds(action: Callable, clock: Callable[[], Any] = time.perf_counter) -> Any:
    """Returns how long a call takes, by a clock."""
    start = clock()
    action()
    return clock() - start


def wall_and_cpu() -> np.ndarray:
    """Returns the time, and that of all threads of this process on any core, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def figures(name: str, values: list[float], base: list[float]) -> dict[str, float]:
    """Returns the median of values and, as NAME_ratio, that of their ratios to those of a base."""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    return {name: statistics.median(values), f"{name}_ratio": statistics.median(ratios)}


def compared_with(
    base: str, times: dict[str, list[float]], memory: dict[str, float]
) -> dict[str, dict]:
    """Returns each variant's figures beside those of one of them.

    Args:
        base: The variant to compare with.
        times: Seconds of each variant, one a round; empty if no time was measured.
        memory: Peak memory of each variant in MiB.

    Returns:
        For each variant "peak_mib" and "peak_mib_above", which is what it is above the base's;
        and where there are times "time_s" and "time_s_ratio", medians, and "times_s".
    """
    results = {}
    for variant, peak in memory.items():
        results[variant] = {"peak_mib": peak, "peak_mib_above": peak - memory[base]}
        if variant in times:
            results[variant] |= figures("time_s", times[variant], times[base])
            results[variant]["times_s"] = times[variant]
    return results


def peak_memory(start: Callable[[], Callable], warm_calls: int) -> list[float]:
    """Measures the resident memory of this process, which should be one for this alone.

    Args:
        start: Makes the action to measure: a model and what it does.
        warm_calls: How often to call the action after its first call.

    Returns:
        The peak of all, and the peak of the warm calls, in MiB above what there was before
        `start`.
    """
    gc.collect()
    before = _memory("VmRSS")
    _reset_peak()
    action = start()
    action()
    peak = _memory("VmHWM")
    _reset_peak()
    for _ in range(warm_calls):
        action()
    warm_peak = _memory("VmHWM")
    return [max(peak, warm_peak) - before, warm_peak - before]


def in_fresh_process(function: Callable, *arguments: object) -> object:
    """Calls a function of a module in a new process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def progress(message: str) -> None:
    """Says on stderr what is being done."""
    print(message, file=sys.stderr, flush=True)


def _memory(name: str) -> float:
    """Returns VmRSS (resident memory now) or VmHWM (its peak) of this process in MiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return float(status.partition(f"{name}:")[2].split()[0]) / 1024


def _reset_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")
