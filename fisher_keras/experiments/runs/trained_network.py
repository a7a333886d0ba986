"""A trained network with its metrics, as the record of its run has them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from fisher_keras.experiments.runs.store import Record
from fisher_keras.experiments.statistics.convergence import convergence_flags
from fisher_keras.experiments.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartResult:
    """Loss and errors on a part of the images, in inference mode and not augmented.

    Attributes:
        loss: Mean cross-entropy with the classes, in nats.
        error_percent: Share of wrong classes.
        num_images: Images of the part.
        calibration_error: Expected calibration error; NaN in records from before it was recorded.
        excess_loss: Of images trained on, the mean cross-entropy with the labels, as smooth as in
            training, over the least that they allow, in nats. NaN for smoothed labels in records
            from before that was recorded.
    """

    loss: float
    error_percent: float
    num_images: int
    calibration_error: float = math.nan
    excess_loss: float

    @classmethod
    def of(cls, result: Mapping[str, Any], label_smoothing: float) -> Self:
        """Reads the result of a part; hard labels allow a loss of 0."""
        # Where the record has the value itself, that goes before this one.
        return cls(**{"excess_loss": math.nan if label_smoothing else result["loss"], **result})


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network with its metrics.

    Attributes:
        record: Of its run.
        training: Its training; where the data and the output were is not in it.
        train: Result on the training images.
        confusion: On those with random labels; None without any, and in records from before it
            was recorded.
        test: On the test images.
        validation: On those held out; None without any, and in records from before it was
            recorded.
        metrics: The mean over the trials of each metric, by name; may be infinite or NaN.
        normalized_metrics: The same of normalized logits, if the run has them.
    """

    record: Record
    training: TrainingConfig
    train: PartResult
    confusion: PartResult | None
    test: PartResult
    metrics: Mapping[str, float]
    normalized_metrics: Mapping[str, float]
    validation: PartResult | None = None

    @classmethod
    def of(cls, record: Record) -> Self:
        """Reads the record of a run that `trained_run.execute` has executed.

        Raises:
            ValueError: If it is the record of something else.
        """
        try:
            training = TrainingConfig(**record.config["training"], seed=record.seed)
            parts = {
                part: PartResult.of(record.result[part], training.label_smoothing)
                for part in ("test", "train", "confusion", "validation")
                if part in ("test", "train") or part in record.result
            }
            metrics = {
                # Infinite means stand in the record as text, which `float` reads.
                name: {metric: float(summary["mean"]) for metric, summary in summaries.items()}
                for name, summaries in (
                    ("metrics", record.result["metrics"]),
                    ("normalized_metrics", record.result.get("normalized_metrics", {})),
                )
            }
            return cls(record, training, **{"confusion": None, **parts}, **metrics)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"run {record.key} of {record.experiment} is not the record of a trained "
                f"network with its metrics: {error!r}"
            ) from error

    @property
    def seed(self) -> int:
        """The seed of everything that is random."""
        return self.record.seed


def common_metrics(networks: Sequence[Any]) -> list[str]:
    """Returns the names that the `metrics` of all of some networks have."""
    names = dict.fromkeys(name for network in networks for name in network.metrics)
    return [name for name in names if all(name in network.metrics for network in networks)]


def excess_losses(networks: Sequence[TrainedNetwork]) -> list[float]:
    """Returns the excess training losses of networks that are compared with each other.

    Args:
        networks: Of finished runs.

    Returns:
        The mean cross-entropy of the images trained on over the least that their labels allow, in
        nats. NaN for a network of smoothed labels whose record is from before that was recorded.
        Where such a record lacks its confusion set, no confusion set counts.
    """
    # Losses of different images do not compare: the confusion set counts everywhere or nowhere.
    all_have_it = all(
        network.confusion or not network.training.confusion_size for network in networks
    )
    return [_excess_loss(network, all_have_it) for network in networks]


def _excess_loss(network: TrainedNetwork, with_confusion: bool) -> float:
    if not (with_confusion and network.confusion):
        return float(network.train.excess_loss)
    # Both were trained on in the same batches, each image as often as any other.
    parts = (network.train, network.confusion)
    weights = [part.num_images for part in parts]
    return float(np.average([part.excess_loss for part in parts], weights=weights))


def network_flags(
    networks: Sequence[TrainedNetwork], control: Sequence[TrainedNetwork] = ()
) -> list[tuple[str, ...]]:
    """Returns why networks are not at a minimum such as the others', see `convergence_flags`.

    Args:
        networks: Of finished runs.
        control: Networks whose losses are the usual ones; by default, all of `networks`.
    """
    return convergence_flags(
        excess_losses(networks),
        [network.train.error_percent for network in networks],
        networks[0].training.target_loss,
        excess_losses(control or networks),
    )
