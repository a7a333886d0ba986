"""One evaluation of a local minimum: all metrics over T samples of the training set."""

import dataclasses
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tqdm.auto

from fisher_keras.arguments import whole_number
from fisher_keras.classifier import stateless
from fisher_keras.classifier.classifier import Classifier, as_classifier
from fisher_keras.classifier.inputs import ExamplesError, check_trainable
from fisher_keras.classifier.labels import (
    LabelledData,
    check_labels,
    fingerprint,
    labelled_data,
)
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.devices import Processes
from fisher_keras.fisher.gram import FisherGram, loss_gradient_gram
from fisher_keras.metrics import gram_metrics
from fisher_keras.metrics.loss_and_errors import Fit, GrowingFit, evaluate_fit
from fisher_keras.metrics.replicas import (
    over_processes,
    over_replicas,
    replica_strategy,
    told,
)
from fisher_keras.metrics.report import LocalMinimumReport, summarize
from fisher_keras.metrics.robustness import squared_jacobian_norms
from fisher_keras.metrics.singular import Dependence, SingularGramWarning, find_dependence
from fisher_keras.metrics.trials import (
    Trial,
    TrialFile,
    draw_sample,
    from_json,
    json_ready,
    to_json,
)

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
_CHECKED_EXAMPLES = 256


@dataclasses.dataclass
class EvaluationOptions:
    """What an evaluation samples and computes, checked; see `evaluate_local_minimum`."""

    num_samples: int = 100
    num_trials: int = 100
    seed: int = 0
    metrics: Sequence[str] = tuple(GRAM_METRICS)
    stratified: bool = False
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Checks what does not depend on the data.

        Raises:
            ValueError: If a value cannot be used.
        """
        self.num_samples = whole_number("num_samples", self.num_samples, least=1)
        self.num_trials = whole_number("num_trials", self.num_trials, least=1)
        self.seed = whole_number("seed", self.seed, least=0)
        self.stratified = bool(self.stratified)
        if self.chunk_size is not None:
            self.chunk_size = whole_number("chunk_size", self.chunk_size, least=1)
        given = self.metrics
        several = isinstance(given, Iterable) and not isinstance(given, str)
        self.metrics = tuple(map(str, given)) if several else ()
        if not self.metrics or any(name not in METRICS for name in self.metrics):
            raise ValueError(f"metrics must be names out of {METRICS}. Given: metrics={given!r}.")

    @property
    def need_gram(self) -> bool:
        """Whether any metric is one of the Gram matrix."""
        return any(name in GRAM_METRICS for name in self.metrics)

    def check_count(self, data: LabelledData) -> None:
        """Raises a ValueError if data are too few for a sample."""
        if self.num_samples > len(data):
            raise ValueError(
                f"num_samples={self.num_samples} examples cannot be sampled without replacement "
                f"from data of {len(data)}. Lower num_samples or give more data."
            )

    def sample(self, data: LabelledData, trial: int) -> np.ndarray:
        """Returns the rows of the examples that a trial samples."""
        return draw_sample(data.hard_labels, self.num_samples, self.seed, trial, self.stratified)

    def check(self, classifier: Classifier, data: LabelledData) -> None:
        """Checks what can be checked before the first trial, and builds the model.

        Args:
            classifier: Of the model.
            data: The training data.

        Raises:
            ValueError: If the data are too few, or the model does not take them, or their labels
                are not its classes, or nothing of it is trainable.
        """
        self.check_count(data)
        classifier.build(data.x)
        if self.need_gram:
            check_trainable(classifier.model)
        classifier.logits(data.take(slice(_CHECKED_EXAMPLES)).x)
        check_labels(data.y, classifier.num_classes)


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
    chunk_size: int | None = None,
    trials_path: str | os.PathLike | None = None,
    progress: bool = True,
) -> LocalMinimumReport:
    r"""Evaluates the local minimum that training has led a classifier to (Section 7.1).

    T times it samples N' training examples and computes each metric: for the log-determinant,
    the mean over the trials is $\hat\gamma(w)$ (Equation 5). All Fisher metrics come from one
    Gram matrix a trial. The model is in inference mode and is not changed.

    In the scope of a `tf.distribute.MirroredStrategy`, or if the model was made in one, the
    trials are spread over its replicas, one at a time on each device. The results are those of
    one device, up to the rounding of the model's dtype. What no trial samples is evaluated on one
    device. With a `tf.distribute.MultiWorkerMirroredStrategy`, all processes call this with the
    same model and data: each takes its share of the trials, only the chief writes `trials_path`
    and shows progress, and all return the report. Other strategies of several replicas are
    refused.

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
        chunk_size: How many examples at a time: takes less memory, and more time. None takes all
            N' of a trial at once.
        trials_path: A file to keep the trials in, one JSON line each. An evaluation that finds
            trials of its own there goes on after them, also to a larger num_trials.
        progress: Whether to show a progress bar.

    Returns:
        The report. Its notes tell if the metric's assumptions do not hold: if the training
        error is not 0, or the training loss more than `MAX_TRAIN_LOSS` over the least that the
        labels allow; and which examples make a sample's Fisher information singular.

    Raises:
        ValueError: If an argument is out of range, the model's outputs are not finite, the file
            holds the trials of another evaluation, or a strategy of several replicas is of
            another kind.
        RuntimeError: If there are several processes, and another one has raised an error.

    Examples:
        >>> classifier = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> x, y = np.random.normal(size=(60, 8)), np.arange(60) % 3
        >>> report = evaluate_local_minimum(classifier, (x, y), num_samples=10, num_trials=5)
        >>> gamma_hat = report.metrics["log_determinant"].mean
        >>> figure = report.plot_spectrum().figure
    """
    options = EvaluationOptions(num_samples, num_trials, seed, metrics, stratified, chunk_size)
    classifier = as_classifier(model, from_logits, normalize_logits)
    model = classifier.model
    strategy = replica_strategy(model)
    train = labelled_data(data)
    options.check(classifier, train)
    test = None if test_data is None else labelled_data(test_data, "test_data")
    test_fit = None if test is None else evaluate_fit(classifier, test, "test_data")
    evaluation = {
        "num_samples": options.num_samples,
        "seed": options.seed,
        "metrics": list(options.metrics),
        "normalize_logits": classifier.normalize_logits,
        "stratified": options.stratified,
        "model": fingerprint([variable.numpy() for variable in model.weights]),
        "data": train.fingerprint,
    }
    processes = Processes.of(strategy)
    if not processes.is_chief:
        trials_path, progress = None, False
    file, finished = _finished(processes, trials_path, evaluation)
    missing = [index for index in range(options.num_trials) if index not in finished]
    # Trials give the logits of their samples; those of other processes stay there.
    with_logits = missing if options.need_gram and processes.count == 1 else []
    fit = GrowingFit(train)
    fit.evaluate(classifier, _not_sampled(train, options, with_logits))

    def evaluate(indices: Sequence[int]) -> Iterator[bytes]:
        samples = over_replicas(strategy, classifier, _sample_function(train, options), indices)
        for index, sample in zip(indices, samples, strict=True):
            if with_logits:
                fit.add(sample.rows, sample.gram.logits)
            yield to_json(_trial(index, sample, options.metrics)).encode()

    evaluated = over_processes(processes, evaluate, missing)
    start = time.monotonic()
    trials = []
    bar = tqdm.auto.trange(options.num_trials, desc="trials", disable=not progress)
    bar.set_postfix_str(f"tracing {model.name}, for the first trial" if missing else "")
    for index in bar:
        trial = finished.get(index)
        if trial is None:
            trial = from_json(next(evaluated))
            bar.set_postfix_str("", refresh=False)
            if file is not None:
                file.add(trial)
        trials.append(trial)
    seconds = time.monotonic() - start
    train_fit = fit.result()
    num_parameters = sum(int(np.prod(v.shape)) for v in stateless.weights(model))
    singular = _singular_note(trials, options.num_samples, num_parameters)
    if singular:
        warnings.warn(singular, SingularGramWarning, stacklevel=2)
    return LocalMinimumReport(
        metrics={name: summarize([t.metrics[name] for t in trials]) for name in options.metrics},
        train=train_fit,
        test=test_fit,
        notes=(*_assumption_notes(train_fit), *([singular] if singular else [])),
        evaluation=evaluation,
        num_parameters=num_parameters,
        seconds=seconds,
        trials=tuple(trials),
    )


def _finished(
    processes: Processes, trials_path: str | os.PathLike | None, evaluation: dict[str, Any]
) -> tuple[TrialFile | None, dict[int, Trial]]:
    """Opens the file of trials, if there is one; returns what all processes know is finished."""
    file = None

    def found() -> bytes:
        nonlocal file
        file = None if trials_path is None else TrialFile(trials_path, evaluation)
        trials = [] if file is None else file.finished.values()
        return "\n".join([json.dumps(json_ready(evaluation)), *map(to_json, trials)]).encode()

    chiefs, *others = (message.splitlines() for message in told(processes, found))
    if any(lines[0] != chiefs[0] for lines in others):
        raise ValueError(
            "The processes of the tf.distribute strategy evaluate different things. Give all the "
            "same model, data and arguments."
        )
    trials = map(from_json, chiefs[1:])
    return file, {trial.index: trial for trial in trials}


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


def _not_sampled(
    data: LabelledData, options: EvaluationOptions, trials: Sequence[int]
) -> np.ndarray:
    """Returns the rows of the examples that none of some trials samples."""
    rest = np.ones(len(data), bool)
    for trial in trials:
        rest[options.sample(data, trial)] = False
    return np.flatnonzero(rest)


def _sample_function(
    data: LabelledData, options: EvaluationOptions
) -> Callable[[Classifier, int], _Sample]:
    """Makes the function that evaluates a classifier for a trial, from the trial's index."""

    def evaluate(classifier: Classifier, index: int) -> _Sample:
        rows = options.sample(data, index)
        examples = data.take(rows)
        size = options.chunk_size
        gram = jacobian_norms = None
        try:
            if options.need_gram:
                gram = loss_gradient_gram(classifier, examples.x, examples.y, chunk_size=size)
            if "robustness" in options.metrics:
                norms = classifier.cached(squared_jacobian_norms)
                jacobian_norms = norms(examples.x, size or len(rows))
        except ExamplesError as error:
            raise error.renamed(rows) from error
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
