"""One evaluation of a local minimum: all metrics over T samples of the training set."""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tqdm.auto

from fisher_keras.arguments import whole_number
from fisher_keras.classifier.classifier import Classifier, as_classifier
from fisher_keras.classifier.labels import (
    LabelledData,
    fingerprint,
    labelled_data,
)
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.fisher.gram import FisherGram, loss_gradient_gram
from fisher_keras.metrics import gram_metrics
from fisher_keras.metrics.fit import Fit, evaluate_fit
from fisher_keras.metrics.replicas import over_replicas, replica_strategy
from fisher_keras.metrics.report import LocalMinimumReport, summarize
from fisher_keras.metrics.robustness import squared_jacobian_norms
from fisher_keras.metrics.singular import Dependence, SingularGramWarning, find_dependence
from fisher_keras.metrics.trials import Trial, TrialFile, draw_sample

GRAM_METRICS: dict[str, Callable[[FisherGram], float]] = {
    "log_determinant": gram_metrics.log_determinant,
    "log_squared_norms": gram_metrics.log_squared_norms,
    "log_determinant_cosines": gram_metrics.log_determinant_cosines,
    "spectral_radius": gram_metrics.spectral_radius,
    "frobenius_norm": gram_metrics.frobenius_norm,
    "sample_frobenius_norm": gram_metrics.sample_frobenius_norm,
    "trace": gram_metrics.trace,
    "effective_rank": gram_metrics.effective_rank,
}
METRICS = (*GRAM_METRICS, "robustness")
# Above this many nats over its least value, a training loss is not "close to zero": the right
# classes have a probability of 95 % in the (geometric) mean.
MAX_TRAIN_LOSS = 0.05


def evaluate_local_minimum(
    model: keras.Model | Classifier,
    data: Any,
    num_samples: int = 100,
    num_trials: int = 100,
    seed: int = 0,
    metrics: Sequence[str] = tuple(GRAM_METRICS),
    normalize_logits: float | None = None,
    *,
    test_data: Any = None,
    stratified: bool = False,
    from_logits: FromLogits = "auto",
    trials_path: str | os.PathLike | None = None,
    progress: bool = True,
) -> LocalMinimumReport:
    r"""Evaluates the local minimum that training has led a classifier to (Section 7.1).

    T times it samples N' training examples and computes each metric: for the log-determinant,
    the mean over the trials is $\hat\gamma(w)$ (Equation 5). All Fisher metrics come from one
    Gram matrix a trial. The model is in inference mode and is not changed.

    In the scope of a `tf.distribute.MirroredStrategy`, or if the model was made in one, the
    trials are spread over its replicas, one at a time on each device. The results are those of
    one device, up to the rounding of the model's dtype. Losses and errors are computed on one
    device. Strategies that span several machines or TPU cores are refused.

    Args:
        model: A Keras classifier; of a `FisherRegularizedModel`, the wrapped one. For many
            evaluations of the same model, a `fisher_keras.classifier.Classifier` of it.
        data: The training data without augmentation: a pair (x, y) of arrays, or a finite
            `tf.data.Dataset` of batches (x, y), which is read into memory. y holds classes, or
            distributions over them; Fisher metrics take the most probable class.
        num_samples: N', how many examples a trial samples, without replacement.
        num_trials: T.
        seed: Seed of the samples. A trial's sample depends on the seed and the trial's index
            alone.
        metrics: Names out of `METRICS`. "robustness" costs K backward passes a trial; the others
            together cost one.
        normalize_logits: A number c divides each logit vector by its norm times c, so that minima
            of different training loss can be compared (0.04 for Table 2); None does not. It is
            for the metrics, robustness included; losses are of the model as it is, and errors are
            the same either way.
        test_data: As data, to also give test loss and error; None for none.
        stratified: Whether each class gets its share of every sample.
        from_logits: Whether the model's outputs are logits, True or False; "auto" finds out.
        trials_path: A file to keep the trials in, one JSON line each. An evaluation that finds
            trials of its own there goes on after them, also to a larger num_trials.
        progress: Whether to show a progress bar.

    Returns:
        The report. Its notes tell if the metric's assumptions do not hold: if the training
        error is not 0, or the training loss more than `MAX_TRAIN_LOSS` over the least that the
        labels allow; and which examples make a sample's Fisher information singular.

    Raises:
        ValueError: If an argument is out of range, the model's outputs are not finite, the file
            holds the trials of another evaluation, or a strategy of several replicas is no
            `MirroredStrategy`.

    Example:
    >>> classifier = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> x, y = np.random.normal(size=(60, 8)), np.arange(60) % 3
    >>> report = evaluate_local_minimum(classifier, (x, y), num_samples=10, num_trials=5)
    >>> gamma_hat = report.metrics["log_determinant"].mean
    >>> figure = report.plot_spectrum().figure
    """
    num_samples = whole_number("num_samples", num_samples, least=1)
    num_trials = whole_number("num_trials", num_trials, least=1)
    seed = whole_number("seed", seed, least=0)
    _check_metrics(metrics)
    classifier = as_classifier(model, from_logits, normalize_logits)
    model = classifier.model
    strategy = replica_strategy(model)
    train = labelled_data(data)
    if num_samples > len(train):
        raise ValueError(
            f"num_samples={num_samples} examples cannot be sampled without replacement from data "
            f"of {len(train)}. Lower num_samples or give more data."
        )
    test = None if test_data is None else labelled_data(test_data, "test_data")
    classifier.build(train.x)
    train_fit = evaluate_fit(classifier, train)
    test_fit = None if test is None else evaluate_fit(classifier, test, "test_data")
    evaluation = {
        "num_samples": num_samples,
        "seed": seed,
        "metrics": list(metrics),
        "normalize_logits": classifier.normalize_logits,
        "stratified": stratified,
        "model": fingerprint([variable.numpy() for variable in model.weights]),
        "data": train.fingerprint,
    }
    file = None if trials_path is None else TrialFile(trials_path, evaluation)
    finished = {} if file is None else file.finished
    missing = [index for index in range(num_trials) if index not in finished]
    evaluate = _sample_function(train, evaluation)
    evaluated = over_replicas(strategy, classifier, evaluate, missing)
    start = time.monotonic()
    trials = []
    for index in tqdm.auto.trange(num_trials, desc="trials", disable=not progress):
        trial = finished.get(index)
        if trial is None:
            trial = _trial(index, next(evaluated), metrics)
            if file is not None:
                file.add(trial)
        trials.append(trial)
    seconds = time.monotonic() - start
    num_parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    singular = _singular_note(trials, num_samples, num_parameters)
    if singular:
        warnings.warn(singular, SingularGramWarning, stacklevel=2)
    return LocalMinimumReport(
        metrics={name: summarize([trial.metrics[name] for trial in trials]) for name in metrics},
        train=train_fit,
        test=test_fit,
        notes=(*_assumption_notes(train_fit), *([singular] if singular else [])),
        evaluation=evaluation,
        num_parameters=num_parameters,
        seconds=seconds,
        trials=tuple(trials),
    )


@dataclasses.dataclass(frozen=True)
class _Sample:
    """What the model gives for the examples of one trial.

    Attributes:
        rows: Rows of the examples in the data.
        gram: Their Gram matrix; None if no metric needs it.
        jacobian_norms: Their squared input-output Jacobian norms; None if no metric needs them.
    """

    rows: np.ndarray
    gram: FisherGram | None
    jacobian_norms: np.ndarray | None


def _sample_function(
    data: LabelledData, evaluation: dict[str, Any]
) -> Callable[[Classifier, int], _Sample]:
    """Makes the function that evaluates a classifier for a trial, from the trial's index."""
    names = evaluation["metrics"]

    def evaluate(classifier: Classifier, index: int) -> _Sample:
        rows = draw_sample(
            data.hard_labels,
            evaluation["num_samples"],
            evaluation["seed"],
            index,
            evaluation["stratified"],
        )
        examples = data.take(rows)
        gram = jacobian_norms = None
        if GRAM_METRICS.keys() & set(names):
            gram = loss_gradient_gram(classifier, examples.x, examples.y)
        if "robustness" in names:
            jacobian_norms = classifier.function(squared_jacobian_norms)(examples.x)
        return _Sample(rows, gram, jacobian_norms)

    return evaluate


def _trial(index: int, sample: _Sample, names: Sequence[str]) -> Trial:
    """Computes the metrics; in one thread, as it changes filters of warnings and BLAS' threads."""
    values, log_spectrum, dependence = {}, (), Dependence((), (), ())
    if sample.gram is not None:
        dependence = find_dependence(sample.gram, sample.rows)
        log_spectrum = tuple(gram_metrics.log_spectrum(sample.gram).tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularGramWarning)  # Said once, in the end.
            for name in GRAM_METRICS.keys() & set(names):
                values[name] = GRAM_METRICS[name](sample.gram)
    if sample.jacobian_norms is not None:
        values["robustness"] = float(np.mean(sample.jacobian_norms))
    return Trial(index, {name: values[name] for name in names}, log_spectrum, dependence)


def _assumption_notes(train: Fit) -> list[str]:
    """Says which assumptions about a minimum (Section 4) the training data do not bear out."""
    notes = []
    if train.excess_loss > MAX_TRAIN_LOSS:
        notes.append(
            f"the training loss is {train.excess_loss:.3g} above the least that "
            f"the labels allow (more than {MAX_TRAIN_LOSS}): the metrics assume a minimum at "
            "which it is near zero, and this is none. Train on, or compare with care."
        )
    if train.num_errors:
        notes.append(
            f"the training error is not 0 ({train.num_errors} of {train.num_examples} examples "
            "are misclassified), as the metrics assume."
        )
    return notes


def _singular_note(trials: Sequence[Trial], num_samples: int, num_parameters: int) -> str | None:
    singular = [trial.dependence for trial in trials if trial.dependence]
    if not singular:
        return None
    note = (
        f"the Fisher information of {len(singular)} of {len(trials)} samples is singular, its "
        f"log-determinant -inf: {Dependence.of_all(singular)} (rows of the data, from 0)."
    )
    if num_samples > num_parameters:
        note += (
            f" No sample of {num_samples} can be regular, as the model has {num_parameters} "
            "trainable parameters: lower num_samples."
        )
    return note


def _check_metrics(metrics: Any) -> None:
    if isinstance(metrics, str) or not metrics or set(metrics) - set(METRICS):
        raise ValueError(f"metrics must be names out of {METRICS}. Given: metrics={metrics!r}.")
