"""Coverage of bootstrap intervals of Kendall's tau-b, by the units that the bootstrap draws.

Simulates scenarios: a test error and a metric of each run, which both rise with the scenario's
variable and have noise of their own and, in half of the kinds, noise that all runs of a seed have
in common. What an interval should cover is the mean of tau-b over many scenarios of its kind.
"""

import itertools

import numpy as np

from fisher_keras.experiments.statistics.rank_correlation import (
    NUM_RESAMPLES,
    kendall_of_resamples,
    percentile_interval,
    resample_counts,
)

NUM_SCENARIOS = 250
DESIGNS = ((4, 3), (6, 3), (4, 5), (6, 5))  # Values of the variable, seeds.
# What a step of the variable adds to test error and metric, in standard deviations of their noise.
SLOPES = ((0.7, 0), (0.7, 1), (3, 0.3), (3, 3), (10, 10))
SEED_DEVIATIONS = (0, 1)

rng = np.random.default_rng(0)


def simulate(num_values: int, num_seeds: int, slopes: tuple, seed_deviation: float) -> np.ndarray:
    """Returns test errors and metrics of a scenario, shape (2, values * seeds)."""
    steps = np.arange(num_values)[:, None]
    noise = rng.normal(size=(2, num_values, num_seeds))
    common = seed_deviation * rng.normal(size=(2, 1, num_seeds))
    return (np.reshape(slopes, (2, 1, 1)) * steps + noise + common).reshape(2, -1)


def drawn_counts(num_values: int, num_seeds: int) -> dict[str, np.ndarray]:
    """Returns the resamples' counts of each run, shape (B, values * seeds), by what is drawn."""

    def draw_seeds(*shape: int) -> np.ndarray:
        return rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, shape).astype(float)

    return {
        "runs": resample_counts(num_values * num_seeds),
        "runs of each value": draw_seeds(NUM_RESAMPLES, num_values).reshape(NUM_RESAMPLES, -1),
        "seeds": np.tile(draw_seeds(NUM_RESAMPLES), num_values),
    }


def coverage(*kind: object) -> dict[str, float]:
    """Returns how often the intervals cover tau-b in scenarios of a kind, by what is drawn."""
    one = np.ones((1, kind[0] * kind[1]))
    truth = np.mean([kendall_of_resamples(*simulate(*kind), one) for _ in range(1000)])
    counts = drawn_counts(*kind[:2])
    covered = dict.fromkeys(counts, 0)
    for _ in range(NUM_SCENARIOS):
        scenario = simulate(*kind)
        for name, drawn in counts.items():
            low, high = percentile_interval(kendall_of_resamples(*scenario, drawn))
            covered[name] += low <= truth <= high
    return {name: count / NUM_SCENARIOS for name, count in covered.items()}


if __name__ == "__main__":
    print("drawn: coverage of each design (values x seeds), mean over all kinds, lowest of a kind")
    results = {
        design: [coverage(*design, *rest) for rest in itertools.product(SLOPES, SEED_DEVIATIONS)]
        for design in DESIGNS
    }
    for name in next(iter(results.values()))[0]:
        table = np.array([[found[name] for found in kinds] for kinds in results.values()])
        means = "  ".join(
            f"{v}x{s}: {mean:.2f}"
            for (v, s), mean in zip(DESIGNS, table.mean(axis=1), strict=True)
        )
        print(f"{name:20} {means}  mean {table.mean():.3f}  lowest {table.min():.2f}")
