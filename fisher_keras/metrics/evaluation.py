"""One evaluation of a local minimum: all metrics over T samples of the training set."""

import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm.auto

from fisher_keras.classifier.classifier import Classifier, as_classifier
from fisher_keras.classifier.inputs import ExamplesError
from fisher_keras.classifier.labels import Examples, labelled_data
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.classifier.positions import Positions, Unit
from fisher_keras.devices import Processes, over_replicas, replica_devices, replica_strategy
from fisher_keras.fisher.gram import loss_gradient_gram
from fisher_keras.metrics import gram_metrics
from fisher_keras.metrics.evaluation_options import EvaluationOptions, gradient_norms
from fisher_keras.metrics.layer_table import layer_metrics, layer_weights
from fisher_keras.metrics.loss_and_errors import RunningDataLoss, evaluate_data_loss
from fisher_keras.metrics.metric import DEFAULT_METRICS, METRICS, Sample
from fisher_keras.metrics.notes import singular_notes, training_notes
from fisher_keras.metrics.report import LocalMinimumReport
from fisher_keras.metrics.robustness import squared_jacobian_norms
from fisher_keras.metrics.singular import LinearDependence, SingularGramWarning, find_dependence
from fisher_keras.metrics.stopping import StoppingRule
from fisher_keras.metrics.summaries import summarize
from fisher_keras.metrics.trials import Trial, TrialFile

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

    It samples N' training examples T times, and computes each metric for each sample. The mean of
    the log-determinant over these trials is $\hat\gamma(w)$ (Equation 5). All Fisher metrics of a
    trial come from one Gram matrix. The model is in inference mode and is not changed.

    In the scope of a `tf.distribute.MirroredStrategy`, or if the model was made in one, the
    trials are spread over its replicas, one at a time on each device. The results are those of
    one device, up to the rounding of the model's dtype. Examples that no trial samples are
    evaluated on one device. With a `tf.distribute.MultiWorkerMirroredStrategy`, each process that
    calls this evaluates all trials on its own replicas; only the chief reads and writes
    `trials_path` and shows progress. Other strategies of several replicas are refused.

    Args:
        model: A Keras classifier. For a `FisherRegularizedModel`, the wrapped classifier is
            evaluated. For many evaluations of the same model, give a
            `fisher_keras.classifier.Classifier` of it. The model may have several predictions for
            each example (docs/more_than_one_prediction.md).
        data: The training data without augmentation: a pair (x, y) of arrays, or a finite
            `tf.data.Dataset` or `keras.utils.PyDataset` of batches (x, y), which is read into
            memory, and ordered by content if it is shuffled. y holds classes, or distributions
            over them; Fisher metrics use the most probable class. If an example has several
            predictions, sample weights after y say which positions count, 1 or 0. Sample weights
            of whole examples are ignored. Data that are not in memory are arrays mapped from a
            file (`np.memmap`) and any `fisher_keras.datasets.Examples`. Of these, only the
            examples that the trials sample are read, and the training loss and error are theirs.
        num_samples: N', the number of examples that a trial samples, without replacement.
        num_trials: Number of samples T that the metrics are averaged over.
        seed: Seed of the samples. A trial's sample depends only on the seed and the index of the
            trial.
        metrics: Names out of `METRICS`. "robustness" costs K backward passes for each trial.
            All others together cost one.
        normalize_logits: A number c divides each logit vector by its norm times c, so that minima
            of different training loss can be compared (0.04 for Table 2). None leaves them
            as they are. All metrics use the normalized logits, robustness included. Losses are
            those of the model itself, and errors are the same in both cases.
        test_data: Test data in the forms of `data`, for the test loss and error. None leaves them
            out.
        label_smoothing: Share of each label that is spread evenly over the classes, as in the
            training. It is used for the training loss and its smallest possible value. Metrics do
            not depend on it.
        stratified: Whether each class gets its share of every sample.
        from_logits: Whether the model's outputs are logits, True or False. With "auto", this is
            found out.
        chunk_size: The number of examples to evaluate at a time. A smaller number takes less
            memory and more time. None evaluates all N' examples of a trial at once.
        trials_path: A file to keep the trials in, one JSON line each. If the file has trials of
            the same evaluation, the evaluation resumes after them, also with a larger num_trials.
            Other trials are refused, and the file is left as it is. These are trials of other
            weights, data or options, of another function of the same weights (other
            `from_logits`, frozen layers or activations, gradients that are stopped elsewhere,
            another dtype policy), or of an earlier version.
        progress: Whether to show a progress bar, and to print how long the trials will take. This
            time comes from the second trial, because the first one includes the tracing.
        unit: The unit that a trial samples: "example", whose loss is the sum over its positions,
            or "position", which makes each position that counts a separate unit. Losses and
            errors are the same in both cases.
        layers: Whether to evaluate each layer in the same pass, too, for `report.layers`. This
            takes the memory of an N' x N' matrix for each layer, and metrics differ by rounding
            from those without it.
        standard_error: If given, the trials end as soon as the standard error of gamma-hat (the
            mean log-determinant) is below it, after at least 10 trials. T then depends only on the
            samples, and num_trials is the largest T. If the Fisher information of a sample is
            singular, there is no standard error, and all trials are evaluated.
        reference: With standard_error, the report of another network on the same samples. The
            trials then end as soon as the standard error of the difference of the two gamma-hats,
            over pairs of trials, is below it, or if the reference has no more trials. This
            difference is `report.difference(reference)`.

    Returns:
        The report. Its notes say if the assumptions of the metric do not hold: the training error
        is not 0, or the training loss is more than `MAX_TRAIN_LOSS` above the smallest loss that
        the labels allow. They also name the examples that make the Fisher information of a sample
        singular, and say if the trials ended before standard_error was reached.

    Raises:
        ValueError: If an argument is out of range, the model's outputs are not finite, the file
            holds the trials of another evaluation, or a strategy with several replicas is not
            supported.

    Examples:
        >>> classifier = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> x, y = np.random.normal(size=(60, 8)), np.arange(60) % 3
        >>> report = evaluate_local_minimum(classifier, (x, y), num_samples=10, num_trials=5)
        >>> gamma_hat = report.metrics["log_determinant"].mean
        >>> figure = report.plot_spectrum().figure
    """
    sampling = num_samples, num_trials, seed, metrics, stratified, chunk_size
    options = EvaluationOptions(*sampling, label_smoothing, unit, layers, standard_error)
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
    """Evaluates a local minimum (see `evaluate_local_minimum`).

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
    # What cannot be evaluated is refused here, before the first trial costs its time.
    evaluation = _Evaluation(classifier, data, options.units(classifier, data), options, strategy)
    identity = options.identity(classifier, data)
    rule = StoppingRule.of(options, reference, identity, processes)
    # The other processes evaluate the same trials and keep them in memory: one alone may write.
    file = evaluation.trial_file(trials_path if processes.is_chief else None, identity)
    test = None if test_data is None else evaluate_data_loss(classifier, test_data, "test_data")
    train = evaluation.training_loss(range(rule.num_trials))
    start = time.monotonic()
    progress = progress and processes.is_chief
    bar = tqdm.auto.trange(rule.num_trials, desc="trials", disable=not progress)
    trials = evaluation.trials(file, train, bar, rule)
    if rule.standard_error is not None and not data.in_memory:
        train = evaluation.training_loss(range(len(trials)))
        train.evaluate(classifier, train.rows)
    loss = train.result()
    singular = singular_notes(trials, options, identity["num_parameters"])
    for note in singular:
        warnings.warn(note, SingularGramWarning, stacklevel=3)
    return LocalMinimumReport(
        metrics={name: summarize([t.metrics[name] for t in trials]) for name in options.metrics},
        train=loss,
        test=test,
        notes=(*training_notes(loss, len(train.rows), data), *singular, *rule.notes(trials)),
        evaluation=identity,
        num_parameters=identity["num_parameters"],
        seconds=time.monotonic() - start,
        trials=trials,
        layer_weights=layer_weights(classifier.model) if options.layers else {},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Evaluation:
    """The trials of an evaluation, whose options fit the classifier and data.

    Attributes:
        classifier: Of the model.
        data: The training data.
        units: What trials sample: the examples, or their positions.
        options: Options of the evaluation.
        strategy: The strategy on whose replicas they are evaluated.
    """

    classifier: Classifier
    data: Examples
    units: Examples | Positions
    options: EvaluationOptions
    strategy: tf.distribute.Strategy

    def trial_file(self, path: str | os.PathLike | None, identity: dict[str, Any]) -> TrialFile:
        """Opens the file that the trials are kept in, or none."""
        if path is not None:
            # Traced only where they are compared, and matter.
            gradients = gradient_norms(self.classifier, self.data) if self.options.needs else []
            identity = {**identity, "gradients": gradients}
        return TrialFile(path, identity)

    def training_loss(self, trials: Sequence[int]) -> RunningDataLoss:
        """Starts the training loss; of data not in memory, only of the sampled examples."""
        rows = None if self.data.in_memory else self._sampled(trials)
        return RunningDataLoss(self.data, label_smoothing=self.options.label_smoothing, rows=rows)

    def _sampled(self, trials: Sequence[int]) -> np.ndarray:
        """Returns the rows of the examples that some of the trials sample, ascending."""
        sampled = np.zeros(len(self.data), bool)
        for trial in trials:
            # A sample is cheap to draw: it is drawn again in its trial, and not kept until then.
            sampled[self.options.sample(self.data, trial)] = True
        return np.flatnonzero(sampled)

    def trials(
        self, file: TrialFile, train: RunningDataLoss, bar: tqdm.auto.tqdm, rule: StoppingRule
    ) -> tuple[Trial, ...]:
        """Evaluates the trials that are not in the file, and the loss of all training data.

        Returns:
            The trials that count. The file may hold more, of an earlier call with a larger T.
        """
        # The bar's own range: to iterate over the bar itself would move it.
        missing = [index for index in bar.iterable if index not in file.finished]
        # The Gram matrix of a trial comes with the logits of its examples. They do not count where
        # it is open which trials there will be.
        of_examples = self.units is self.data and rule.standard_error is None
        gives_logits = of_examples and "gram" in self.options.needs
        # So only those examples need a pass of their own that none of the missing trials samples.
        sampled = self._sampled(missing if gives_logits else [])
        if self.data.in_memory or rule.standard_error is None:
            others = np.setdiff1d(train.rows, sampled, assume_unique=True)
            train.evaluate(self.classifier, others)
        model = self.classifier.model
        devices = replica_devices(self.strategy, model.variables)
        samples = over_replicas(self.strategy, devices, self._sample, missing)
        if missing:
            bar.set_postfix_str(f"tracing {model.name}, for the first trial")
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
                file.add(_trial(index, sample, self.options.metrics))
                times.append(time.monotonic())
                _say_time(bar, times, max(1, len(devices)), len(missing))
            trials.append(file.finished[index])
        return tuple(trials)

    def _sample(self, device: str | None, trial: int) -> Sample:
        """Draws the sample of a trial, and computes what its metrics need."""
        classifier, units, options = self.classifier, self.units, self.options
        if device is not None:
            # There, variables are the replica's own copies, and functions are traced for them.
            classifier = classifier.cached(_on_a_replica, device)
        rows, needs, size = options.sample(units, trial), options.needs, options.chunk_size
        data = units.take(rows)
        rows = units.rows[rows] if isinstance(units, Positions) else rows
        given = {"chunk_size": size, "sample_weight": data.weights, "by_layer": options.layers}
        gram = norms = None
        try:
            if "gram" in needs:
                gram = loss_gradient_gram(classifier, data.x, data.y, **given)
            if "jacobian_norms" in needs:
                norms = classifier.cached(squared_jacobian_norms)(data.x, size or len(data))
        except ExamplesError as error:
            raise error.renamed(rows, options.unit) from error
        return Sample(classifier, rows, data, gram, norms)


def _say_time(bar: tqdm.auto.tqdm, times: list[float], num_devices: int, count: int) -> None:
    """Prints how long the trials will take, after the first ones that need no tracing."""
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


def _on_a_replica(classifier: Classifier, device: str) -> Classifier:
    """Makes the classifier of one replica; the device only identifies the replica."""
    return classifier.copy()


def _trial(index: int, sample: Sample, names: Sequence[str]) -> Trial:
    """Computes the metrics in one thread, as it changes warning filters and BLAS' threads."""
    with warnings.catch_warnings(), gram_metrics.one_thread():
        warnings.simplefilter("ignore", SingularGramWarning)  # Said once, in the end.
        values = {name: METRICS[name].function(sample) for name in names}
        if sample.gram is None:
            return Trial(index, values, (), LinearDependence((), (), ()))
        log_spectrum = tuple(gram_metrics.log_spectrum(sample.gram).tolist())
        dependence = find_dependence(sample.gram, sample.rows)
        return Trial(index, values, log_spectrum, dependence, layer_metrics(sample.gram))
