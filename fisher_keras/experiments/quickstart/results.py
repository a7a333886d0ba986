"""Results of the quickstart's networks, and the statistics that its sentences rest on."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from fisher_keras.experiments.comparisons.common import Column, grouped
from fisher_keras.experiments.quickstart.networks import METHODS
from fisher_keras.experiments.runs.store import Record
from fisher_keras.experiments.statistics.paired import PairedDifference, paired_difference
from fisher_keras.experiments.statistics.rank_correlation import Estimate, kendall_correlation

STOPPED = "stopped"  # Plain training, stopped where the validation error is lowest.
ARMS = (*METHODS, STOPPED)
ERROR = Column("test error (%)", 1, lambda networks: [one.test_error for one in networks])


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
        method: One of `METHODS`.
        wrong_labels: Number of training images with random labels.
        seed: Of everything that is random.
        test_error: After the last step, in percent.
        stopped_error: Test error at the stop of the lowest validation error, in percent.
        wrong_labels_fitted: Percentage of the random labels that it gives back; NaN without any.
        gamma_hat: Of the training images.
        log_det_margins: ln det Xi of the training images.
        excess_loss: Training loss over the least that the labels allow, in nats.
    """

    method: str
    wrong_labels: int
    seed: int
    test_error: float
    stopped_error: float
    wrong_labels_fitted: float
    gamma_hat: float
    log_det_margins: float
    excess_loss: float

    @classmethod
    def of(cls, record: Record) -> "Network":
        """Returns the network of a finished run.

        Args:
            record: A record of the store, see `training.train_network`.
        """
        config, result = record.config, record.result
        fitted = result["wrong_labels_fitted"]
        # Of equal validation errors the earliest stop, as the record has them in order of steps.
        best = min(result["stops"].values(), key=lambda stop: stop["validation"])
        return cls(
            config["method"],
            config["wrong_labels"],
            record.seed,
            result["test_error"],
            best["test"],
            math.nan if fitted is None else fitted,
            float(result["gamma_hat"]),  # JSON has -inf as text.
            float(result["log_det_margins"]),
            result["excess_loss"],
        )


def arms(networks: Sequence[Network], wrong_labels: int) -> dict[str, Mapping[int, Network]]:
    """Returns the networks that are compared, by method and, in ascending order, by seed.

    Args:
        networks: All networks.
        wrong_labels: Number of random labels at which the methods are compared.

    Returns:
        Groups of the same seeds. Those of `STOPPED` are the plain ones, with their error at the
        stop.
    """
    groups = grouped(networks, lambda one: (one.method, one.wrong_labels))
    found = {method: groups[method, wrong_labels] for method in METHODS}
    found[STOPPED] = {
        seed: dataclasses.replace(one, test_error=one.stopped_error)
        for seed, one in found["plain"].items()
    }
    return found


def differences(groups: Mapping[str, Mapping[int, Network]]) -> dict[str, PairedDifference]:
    """Returns the test error of the regularized networks less that of each other arm.

    Args:
        groups: See `arms`.

    Returns:
        For each other arm, in percentage points.
    """
    # Of the same seed: the same images, wrong labels and first weights, whose effect cancels.
    errors = {arm: ERROR.quantity(list(groups[arm].values())) for arm in groups}
    fisher = errors.pop("fisher")
    return {arm: paired_difference(fisher, errors[arm]) for arm in errors}


def ordering(networks: Sequence[Network], metric: str = "gamma_hat") -> Estimate:
    """Returns Kendall's tau of a metric and the test error over all networks.

    Args:
        networks: All networks.
        metric: "gamma_hat", "log_det_margins" or "excess_loss".

    Returns:
        The coefficient, with its interval.
    """
    return kendall_correlation(
        [getattr(network, metric) for network in networks],
        [network.test_error for network in networks],
    )
