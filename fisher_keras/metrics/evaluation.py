"""One evaluation of a local minimum: all metrics over T samples of the training set."""

import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm.auto

from fisher_keras.classifier.classifier import Classifier, as_classifier
from fisher_keras.classifier.labels import Examples, labelled_data
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.classifier.positions import Positions, Unit
from fisher_keras.devices import Processes, over_replicas, replica_devices, replica_strategy
from fisher_keras.metrics import gram_metrics
from fisher_keras.metrics.evaluation_options import EvaluationOptions
from fisher_keras.metrics.layer_table import layer_metrics, layer_weights
from fisher_keras.metrics.loss_and_errors import DataLoss, RunningDataLoss, evaluate_data_loss
from fisher_keras.metrics.metric import DEFAULT_METRICS, METRICS, Sample, count_parameters
from fisher_keras.metrics.report import LocalMinimumReport
from fisher_keras.metrics.singular import (
    LinearDependence,
    SingularGramWarning,
    find_dependence,
)
from fisher_keras.metrics.stopping import StoppingRule
from fisher_keras.metrics.summaries import summarize
from fisher_keras.metrics.trials import Trial, TrialFile

# Above this many nats over its least value, a training loss is not "close to zero": the right
# classes have a probability of 95 % in the (geometric) mean.
MAX_TRAIN_LOSS = 0.05
# Of less than so many seconds to come, the progress bar is told alone.
_WORTH_SAYING = 10


def evaluate_local_minimum(
    model: keras.Model | Classifier,
    data: Any,
    num_samples: int = 100,
    num_trials: int = 100,
    seed: int = 0,
    metrics: Sequence[str] = DEFAULT_METRICS,
    normalize_logits: float | None = None,
    *,
    test_data: Any = None,
    label_smoothing: float = 0.0,
    stratified: bool = False,
    from_logits: FromLogits = "auto",
    chunk_size: int | None = None,
    trials_path: str | os.PathLike | None = None,
    progress: bool = True,
    unit: Unit = "example",
    layers: bool = False,
    standard_error: float | None = None,
    reference: LocalMinimumReport | None = None,
) -> LocalMinimumReport:
    r"""Evaluates the local minimum that training has led a classifier to (Section 7.1).

    T times it samples N' training examples and computes each metric: for the log-determinant,
    the mean over the trials is $\hat\gamma(w)$ (Equation 5). All Fisher metrics come from one
    Gram matrix a trial. The model is in inference mode and is not changed.

    In the scope of a `tf.distribute.MirroredStrategy`, or if the model was made in one, the
    trials are spread over its replicas, one at a time on each device. The results are those of
    one device, up to the rounding of the model's dtype. What no trial samples is evaluated on one
    device. With a `tf.distribute.MultiWorkerMirroredStrategy`, each process that calls this
    evaluates all trials on its own replicas; only the chief reads and writes `trials_path` and
    shows progress. Other strategies of several replicas are refused.

    Args:
        model: A Keras classifier; of a `FisherRegularizedModel`, the wrapped one. For many
            evaluations of the same model, a `fisher_keras.classifier.Classifier` of it. It may
            give several predictions an example (docs/more_than_one_prediction.md).
        data: The training data without augmentation: a pair (x, y) of arrays, or a finite
            `tf.data.Dataset` or `keras.utils.PyDataset` of batches (x, y), which is read into
            memory, and ordered by content if it is shuffled. y holds classes, or distributions
            over them; Fisher metrics take the most probable class. Sample weights that follow y
            tell which positions count, 1 or 0, where an example has several predictions; those of
            examples are ignored. Of data that are not in memory, which are arrays mapped from a
            file (`np.memmap`) and any `fisher_keras.datasets.Examples`, no other examples are read
            than the trials sample, and the training loss and error are of these.
        num_samples: N', how many examples a trial samples, without replacement.
        num_trials: Number of samples T that the metrics are averaged over.
        seed: Seed of the samples. A trial's sample depends on the seed and the trial's index
            alone.
        metrics: Names out of `METRICS`. "robustness" costs K backward passes a trial; the others
            together cost one.
        normalize_logits: A number c divides each logit vector by its norm times c, so that minima
            of different training loss can be compared (0.04 for Table 2); None does not. It is
            for the metrics, robustness included; losses are of the model as it is, and errors are
            the same either way.
        test_data: As data, to also give test loss and error; None for none.
        label_smoothing: Share of each label that is spread evenly over the classes, as in the
            training; for the training loss and the least that it can have. Metrics do not depend
            on it.
        stratified: Whether each class gets its share of every sample.
        from_logits: Whether the model's outputs are logits, True or False; "auto" finds out.
        chunk_size: How many examples at a time: takes less memory, and more time. None takes all
            N' of a trial at once.
        trials_path: A file to keep the trials in, one JSON line each. An evaluation that finds
            trials of its own there goes on after them, also to a larger num_trials. Trials of
            other weights, data or options, of another function of the same weights (other
            `from_logits`, frozen layers or activations, another dtype policy), or of version 0.2
            are refused, and the file is left as it is.
        progress: Whether to show a progress bar, and to say how long the trials will take once
            one of them was timed: the second, as the first one includes the tracing.
        unit: What a trial samples: "example", whose loss is the sum over its positions, or
            "position", of which each that counts is a unit of its own. Losses and errors are the
            same either way.
        layers: Whether to evaluate each layer, too, for `report.layers`. In the same pass; it
            takes the memory of an N' x N' matrix a layer, and metrics differ by rounding from
            those without it.
        standard_error: If given, trials end once the standard error of gamma-hat (the mean
            log-determinant) is below it: with the first T from 10 on of which it is, so that T
            depends on the samples alone. num_trials is then the largest T. Where a sample's Fisher
            information is singular, there is no standard error, and all trials are evaluated.
        reference: With standard_error, the report of another network on the same samples: trials
            end once the standard error of the difference of the two gamma-hats, over pairs of
            trials, is below it, or the reference has no more trials. That difference is
            `report.difference(reference)`.

    Returns:
        The report. Its notes tell if the metric's assumptions do not hold: if the training
        error is not 0, or the training loss more than `MAX_TRAIN_LOSS` over the least that the
        labels allow; and which examples make a sample's Fisher information singular.

    Raises:
        ValueError: If an argument is out of range, the model's outputs are not finite, the file
            holds the trials of another evaluation, or a strategy of several replicas is of
            another kind.

    Examples:
        >>> classifier = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> x, y = np.random.normal(size=(60, 8)), np.arange(60) % 3
        >>> report = evaluate_local_minimum(classifier, (x, y), num_samples=10, num_trials=5)
        >>> gamma_hat = report.metrics["log_determinant"].mean
        >>> figure = report.plot_spectrum().figure
    """
    options = EvaluationOptions(
        num_samples,
        num_trials,
        seed,
        metrics,
        stratified,
        chunk_size,
        label_smoothing,
        unit,
        layers,
        standard_error,
    )
    return evaluate(
        as_classifier(model, from_logits, normalize_logits),
        labelled_data(data),
        options,
        reference=reference,
        test_data=None if test_data is None else labelled_data(test_data, "test_data"),
        trials_path=trials_path,
        progress=progress,
    )


def evaluate(
    classifier: Classifier,
    data: Examples,
    options: EvaluationOptions,
    *,
    reference: LocalMinimumReport | None = None,
    test_data: Examples | None = None,
    trials_path: str | os.PathLike | None = None,
    progress: bool = False,
) -> LocalMinimumReport:
    """Evaluates a local minimum; see `evaluate_local_minimum`.

    Args:
        classifier: Of the model.
        data: The training data.
        options: Options of the evaluation.
        reference: A report to compare with, see `evaluate_local_minimum`.
        test_data: The test data, if there are any.
        trials_path: A file to keep the trials in, if they are to be kept.
        progress: Whether to show a progress bar.

    Returns:
        The report.
    """
    strategy = replica_strategy(classifier.model)
    processes = Processes.of(strategy)
    is_chief = processes.is_chief
    # What cannot be evaluated is refused here, before the first trial costs its time.
    options.check(classifier, data)
    units = options.units(classifier, data)
    identity = options.identity(classifier, data)
    rule = StoppingRule.of(options, reference, identity, processes)
    test = None if test_data is None else evaluate_data_loss(classifier, test_data, "test_data")
    # The other processes evaluate the same trials and keep them in memory: one alone may write.
    file = TrialFile(trials_path if is_chief else None, identity)
    rows = None if data.in_memory else _sampled(data, options, range(rule.num_trials))
    train = RunningDataLoss(data, label_smoothing=options.label_smoothing, rows=rows)
    start = time.monotonic()
    bar = tqdm.auto.trange(rule.num_trials, desc="trials", disable=not (progress and is_chief))
    trials = _evaluate_missing(classifier, data, units, options, file, train, bar, rule)
    if rule.standard_error is not None and not data.in_memory:
        rows = _sampled(data, options, range(len(trials)))
        train = RunningDataLoss(data, label_smoothing=options.label_smoothing, rows=rows)
        train.evaluate(classifier, rows)
    train_loss, num_parameters = train.result(), count_parameters(classifier.model)
    has_one = train_loss.num_examples == len(train.rows)
    singular = _singular_note(trials, options, num_parameters)
    if singular:
        warnings.warn(singular, SingularGramWarning, stacklevel=3)
    return LocalMinimumReport(
        metrics={name: summarize([t.metrics[name] for t in trials]) for name in options.metrics},
        train=train_loss,
        test=test,
        notes=(
            *_assumption_notes(train_loss, "examples" if has_one else "predictions"),
            *_sampled_note(len(train.rows), data),
            *([singular] if singular else []),
        ),
        evaluation=identity,
        num_parameters=num_parameters,
        seconds=time.monotonic() - start,
        trials=trials,
        layer_weights=layer_weights(classifier.model) if options.layers else {},
    )


def _evaluate_missing(
    classifier: Classifier,
    data: Examples,
    units: Examples | Positions,
    options: EvaluationOptions,
    file: TrialFile,
    train: RunningDataLoss,
    bar: tqdm.auto.tqdm,
    rule: StoppingRule,
) -> tuple[Trial, ...]:
    """Evaluates the trials that the file lacks, and the loss of all training data.

    Returns:
        The trials that count. The file may hold more, of an earlier call with a larger T.
    """
    # The bar's own range: to iterate over the bar itself would move it.
    missing = [index for index in bar.iterable if index not in file.finished]
    # The Gram matrix of a trial comes with the logits of its examples. They do not count where it
    # is open which trials there will be.
    gives_logits = "gram" in options.needs and units is data and rule.standard_error is None
    # So only those examples need a pass of their own that none of the missing trials samples.
    sampled = _sampled(data, options, missing if gives_logits else [])
    if data.in_memory or rule.standard_error is None:
        train.evaluate(classifier, np.setdiff1d(train.rows, sampled, assume_unique=True))
    strategy = replica_strategy(classifier.model)
    devices = replica_devices(strategy, classifier.model.variables)
    samples = _samples(classifier, units, options, missing, strategy, devices)
    if missing:
        bar.set_postfix_str(f"tracing {classifier.model.name}, for the first trial")
    trials: list[Trial] = []
    times: list[float] = []
    for index in bar:
        if rule.suffice(trials):
            bar.set_postfix_str("the standard error is below the given one")
            break
        if index not in file.finished:
            # Samples come in the order of `missing`, in which this loop meets them.
            sample = next(samples)
            bar.set_postfix_str("", refresh=False)
            if gives_logits:
                train.add(sample.rows, sample.gram.logits, sample.gram.counted)
            file.add(_trial(index, sample, options.metrics))
            times.append(time.monotonic())
            _say_time(bar, times, max(1, len(devices)), len(missing))
        trials.append(file.finished[index])
    return tuple(trials)


def _say_time(bar: tqdm.auto.tqdm, times: list[float], num_devices: int, count: int) -> None:
    """Says how long the trials will take, after the first ones that need no tracing."""
    if bar.disable or len(times) != 2 * num_devices:
        return
    each = (times[-1] - times[num_devices - 1]) / num_devices
    left = count - len(times)
    if each * left > _WORTH_SAYING:
        bar.write(
            f"A trial takes {each:.2g} s: {left} more take {bar.format_interval(each * left)} "
            "(minutes:seconds) at most.",
            file=sys.stderr,
        )


def _sampled(data: Examples, options: EvaluationOptions, trials: Sequence[int]) -> np.ndarray:
    """Returns the rows of the examples that some of the trials sample, ascending."""
    sampled = np.zeros(len(data), bool)
    for trial in trials:
        # A sample is cheap to draw: it is drawn again in its trial, and not kept until then.
        sampled[options.sample(data, trial)] = True
    return np.flatnonzero(sampled)


def _samples(
    classifier: Classifier,
    units: Examples | Positions,
    options: EvaluationOptions,
    trials: Sequence[int],
    strategy: tf.distribute.Strategy,
    devices: Sequence[str],
) -> Iterator[Sample]:
    """Yields the samples of trials, with what their metrics need computed on the replicas."""

    def compute(classifier: Classifier, trial: int) -> Sample:
        rows = options.sample(units, trial)
        examples = units.take(rows)
        rows = units.rows[rows] if isinstance(units, Positions) else rows
        settings = options.needs, options.chunk_size, options.layers, options.unit
        return Sample.evaluate(classifier, rows, examples, *settings)

    if not devices:
        # A generator: each trial is finished, and written, before the next one begins.
        return (compute(classifier, trial) for trial in trials)
    # On the device of a replica, variables are its own copies, and functions are traced for them.
    return over_replicas(
        strategy,
        devices,
        lambda device, trial: compute(classifier.cached(_on_a_replica, device), trial),
        trials,
    )


def _on_a_replica(classifier: Classifier, device: str) -> Classifier:
    """Makes the classifier of one replica; the device only tells them apart."""
    return classifier.copy()


def _trial(index: int, sample: Sample, names: Sequence[str]) -> Trial:
    """Computes the metrics; in one thread, as it changes filters of warnings and BLAS' threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularGramWarning)  # Said once, in the end.
        values = {name: METRICS[name].function(sample) for name in names}
    if sample.gram is None:
        return Trial(index, values, (), LinearDependence((), (), ()))
    log_spectrum = tuple(gram_metrics.log_spectrum(sample.gram).tolist())
    dependence = find_dependence(sample.gram, sample.rows)
    return Trial(index, values, log_spectrum, dependence, layer_metrics(sample.gram))


def _assumption_notes(train: DataLoss, what: str) -> list[str]:
    """Describes the assumptions about a minimum (Section 4) that the data do not bear out."""
    notes = []
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
    return notes


def _sampled_note(num_sampled: int, data: Examples) -> list[str]:
    if data.in_memory:
        return []
    return [
        f"the training loss and error are of the {num_sampled} examples that the trials have "
        f"sampled, out of {len(data)}: the others were not read."
    ]


def _singular_note(
    trials: Sequence[Trial], options: EvaluationOptions, num_parameters: int
) -> str | None:
    """Describes the examples that make samples singular; None if all are regular."""
    singular = [trial.dependence for trial in trials if trial.dependence]
    if not singular:
        return None
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
    return note
