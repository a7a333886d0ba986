"""The notes of a report, to be read before trusting its metrics."""

from collections.abc import Sequence

from fisher_keras.classifier.labels import Examples
from fisher_keras.metrics.evaluation_options import EvaluationOptions
from fisher_keras.metrics.loss_and_errors import DataLoss
from fisher_keras.metrics.singular import LinearDependence
from fisher_keras.metrics.trials import Trial

# Above this many nats over its least value, a training loss is not "close to zero": the right
# classes have a probability of 95 % in the (geometric) mean.
MAX_TRAIN_LOSS = 0.05


def training_notes(train: DataLoss, num_examples: int, data: Examples) -> list[str]:
    """Describes the assumptions about a minimum (Section 4) that do not hold for the data.

    Args:
        train: Loss and errors on the training data.
        num_examples: The number of examples of these losses and errors.
        data: The training data.
    """
    notes, what = [], "examples" if train.num_examples == num_examples else "predictions"
    # The excess and not the loss itself: soft labels leave a loss that no weights can remove.
    if train.excess_loss > MAX_TRAIN_LOSS:
        notes.append(
            f"the training loss is {train.excess_loss:.3g} above the least that "
            f"the labels allow (more than {MAX_TRAIN_LOSS}): the metrics assume a minimum at "
            "which it is near zero, and this is none. Train on, or compare with care."
        )
    if train.num_errors:
        notes.append(
            f"the training error is not 0 ({train.num_errors} of {train.num_examples} {what} "
            "are misclassified), as the metrics assume."
        )
    if train.label_entropy == 0:
        notes.append(
            "the labels are hard: the cross-entropy then has no minimum (Section 4), and the "
            "metrics also tell how long a network was trained. Train with label smoothing, and "
            "give label_smoothing here; or compare networks of the same training loss."
        )
    if not data.in_memory:
        notes.append(
            f"the training loss and error are of the {num_examples} examples that the trials have "
            f"sampled, out of {len(data)}: the others were not read."
        )
    return notes


def singular_notes(
    trials: Sequence[Trial], options: EvaluationOptions, num_parameters: int
) -> list[str]:
    """Describes the examples that make samples singular, if any do.

    Args:
        trials: The trials of an evaluation.
        options: The options of this evaluation.
        num_parameters: W, the number of trainable parameters.
    """
    singular = [trial.dependence for trial in trials if trial.dependence]
    if not singular:
        return []
    num_samples = options.num_samples
    rows = "rows of the data" if options.unit == "example" else "numbered through all examples"
    dependence = LinearDependence.of_all(singular).describe(options.unit)
    note = (
        f"the Fisher information of {len(singular)} of {len(trials)} samples is singular, its "
        f"log-determinant -inf: {dependence} ({rows}, from 0)."
    )
    if num_samples > num_parameters:
        note += (
            f" No sample of {num_samples} can be regular, as the model has {num_parameters} "
            "trainable parameters: lower num_samples."
        )
    return [note]
