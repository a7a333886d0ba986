"""One network of a comparison on a user's own model: trained by a method, and evaluated."""

import dataclasses
import hashlib
import importlib
import json
import math
import pathlib
import pickle
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier.classifier import Classifier
from fisher_keras.classifier.hard_label_loss import from_logits_of, only_loss
from fisher_keras.classifier.labels import LabelledData, fingerprint
from fisher_keras.experiments.code_fingerprint import code_fingerprint
from fisher_keras.experiments.comparisons.arms import CLIP_NORM
from fisher_keras.experiments.comparisons.compare import Method
from fisher_keras.experiments.runs.store import BACKUP, Run
from fisher_keras.experiments.runs.trained_run import part_result
from fisher_keras.experiments.training.building import WRAPPERS, make_repeatable
from fisher_keras.experiments.training.provenance import provenance
from fisher_keras.experiments.training.training_callbacks import (
    AtomicBackup,
    StopWhenDiverged,
    finished_epochs,
)
from fisher_keras.files import replacing
from fisher_keras.graph.keras_private import all_layers, unwrapped
from fisher_keras.metrics.evaluation import evaluate
from fisher_keras.metrics.evaluation_options import EvaluationOptions
from fisher_keras.metrics.trials import json_ready

METRICS = ("log_determinant", "log_determinant_margins")
_BACKUP_S = 10.0  # From one backup to the next, which may take longer than an epoch.


def _clipped(model: keras.Model) -> keras.Model:
    unwrapped(model.optimizer).global_clipnorm = CLIP_NORM
    return model


NAMED_METHODS: Mapping[str, Method] = {
    "plain": lambda model: model,
    "clipped": _clipped,
    **WRAPPERS,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """All that a user gives which is not JSON.

    Attributes:
        make_model: Makes the compiled classifier.
        methods: By name.
        train: The training data.
        test: The test data.
    """

    make_model: Any
    methods: Mapping[str, Method]
    train: LabelledData
    test: LabelledData

    def classifier(self, seed: int) -> keras.Model:
        """Makes the compiled classifier from a seed, built.

        Raises:
            ValueError: If it is not a compiled Keras model.
        """
        # Layers get the same names again, which are a part of what identifies a model. To collect
        # garbage, too, takes longer than to train a small network.
        keras.utils.clear_session(free_memory=False)
        make_repeatable(seed)
        model = self.make_model()
        if not isinstance(model, keras.Model) or not model.compiled or model.optimizer is None:
            raise ValueError(
                "make_model must return a keras.Model that is compiled with the optimizer and the "
                f"loss to train it with. Given: {model!r}."
            )
        Classifier(model).build(self.train.x)
        return model

    def trained_by(self, name: str, model: keras.Model) -> keras.Model:
        """Returns the compiled model that trains a classifier by a method.

        Raises:
            ValueError: If the method does not return a Keras model.
        """
        trainer = self.methods[name](model)
        if not isinstance(trainer, keras.Model):
            raise ValueError(
                f"The method {name!r} must return the keras.Model whose fit trains the classifier "
                f"that it is given. Given: {trainer!r}."
            )
        # The plain one again, too: metrics that others do not have would cost it time.
        if trainer is model or not trainer.compiled:
            trainer.compile(
                model.optimizer,
                model.loss,
                loss_weights=model.get_compile_config().get("loss_weights"),
                metrics=None,
                run_eagerly=model.run_eagerly,
                jit_compile=model.jit_compile,
                steps_per_execution=model.steps_per_execution,
            )
        return trainer

    def code(self, name: str, model: keras.Model, trainer: keras.Model) -> dict[str, str]:
        """Returns the part of a run's configuration that tells the user's code.

        Args:
            name: That of a method.
            model: A classifier that was made for it.
            trainer: The model by which the method trains that.
        """
        layers = all_layers(model)
        # A configuration has the name of a user's loss or layer, and not what it computes.
        code = code_fingerprint(
            self.make_model,
            self.methods[name],
            trainer.loss,
            [type(trainer), type(trainer.optimizer), *layers],
            # The run's configuration tells their weights.
            made=[trainer, *layers],
        )
        return {} if code is None else {"code": code}

    def write(self, directory: pathlib.Path) -> str:
        """Writes all of it for processes that train, and returns the name of the file.

        That is another one for other inputs: another comparison in the folder keeps its own.

        Raises:
            ValueError: If something cannot be pickled.
            OSError: If it cannot be written.
        """
        import cloudpickle  # Dask brings it.

        try:
            content = cloudpickle.dumps(self)
        except (pickle.PicklingError, TypeError) as error:
            raise ValueError(
                f"make_model or a method cannot be handed to other processes ({error}): make all "
                "that it needs inside of it, or leave out num_workers and scheduler"
            ) from error
        directory.mkdir(parents=True, exist_ok=True)
        name = f"inputs_{hashlib.sha256(content).hexdigest()[:16]}.pkl"
        with replacing(directory / name) as part:
            part.write_bytes(content)
        return name


def train_in_a_process(
    run: Run,
    directory: pathlib.Path,
    inputs: str,
    search_path: Sequence[str],
    modules: Sequence[str],
) -> dict[str, Any]:
    """Trains and evaluates a network in a process that has nothing but the folder.

    Args:
        run: See `train_network`.
        directory: Likewise.
        inputs: Name of the file that `Inputs.write` has made in the folder of the comparison.
        search_path: Where modules are that make the model.
        modules: Those to import first.

    Returns:
        See `train_network`.

    Raises:
        ValueError: If the user's code is another one here.
    """
    sys.path.extend(path for path in search_path if path not in sys.path)
    for module in modules:
        importlib.import_module(module)
    with (directory.parents[1] / inputs).open("rb") as file:
        found = pickle.load(file)
    _check_code(run, found)
    return train_network(run, directory, inputs=found)


def _check_code(run: Run, inputs: Inputs) -> None:
    """Refuses code that was changed since the comparison began: modules are imported anew here."""
    name = run.config["method"]
    model = inputs.classifier(seed=0)  # The one that the configuration was made from.
    code = inputs.code(name, model, inputs.trained_by(name, model))
    if code.get("code") != run.config.get("code"):
        raise ValueError(
            f"{run.label}: the code of make_model, of the method, or of what they use is not what "
            "it was when the comparison started: start it again. If you have changed nothing, "
            "make_model or the method changes a global variable each time: make that one inside "
            "of the function"
        )


def train_network(run: Run, directory: pathlib.Path, inputs: Inputs) -> dict[str, Any]:
    """Trains the network of a run and evaluates it, from where an earlier call was cut.

    Args:
        run: Made by `OwnModel.runs`.
        directory: Of the run's files; the network is written to `network.keras` there.
        inputs: Model, methods and data.

    Returns:
        The result for the store, see `ComparedNetwork.of`.

    Raises:
        OSError: If a file cannot be written.
        TrainingDivergedError: If the training loss becomes infinite or NaN.
    """
    settings = run.config
    model = inputs.classifier(run.seed)
    initial = weights_fingerprint(model)
    trainer = inputs.trained_by(settings["method"], model)
    _fit(trainer, run, directory, inputs.train)
    with replacing(directory / "network.keras") as part:
        model.save(part)
    report = evaluate(
        classifier_of(model),
        inputs.train,
        evaluation_options(model, settings, run.seed),
        test_data=inputs.test,
        trials_path=directory / "metrics.trials.jsonl",
    )
    summaries = {name: dataclasses.asdict(summary) for name, summary in report.metrics.items()}
    return json_ready(
        {
            "train": part_result(report.train),
            "test": part_result(report.test),
            "metrics": summaries,
            "seconds_per_step": json.loads((directory / "seconds_per_step.json").read_text()),
            "initial_weights": initial,
            "notes": list(report.notes),
            "parameters": report.num_parameters,
            **provenance(),
        }
    )


def weights_fingerprint(model: keras.Model) -> str:
    """Returns 16 hexadecimal digits that tell the weights of a built model."""
    return fingerprint([variable.numpy() for variable in model.weights])


def classifier_of(model: keras.Model) -> Classifier:
    """Returns the classifier that is evaluated, its outputs taken as its compiled loss does."""
    return Classifier(model, from_logits_of(model.loss) or "auto")


def evaluation_options(
    model: keras.Model, settings: Mapping[str, Any], seed: int
) -> EvaluationOptions:
    """Returns the options of a network's evaluation; its loss has the compiled smoothing."""
    return EvaluationOptions(
        settings["num_samples"],
        settings["num_trials"],
        seed,
        METRICS,
        label_smoothing=getattr(only_loss(model.loss), "label_smoothing", 0.0),
    )


def _fit(trainer: keras.Model, run: Run, directory: pathlib.Path, data: LabelledData) -> None:
    settings, backup = run.config, directory / BACKUP
    first_epoch = finished_epochs(backup)
    remedy = "compile it with a lower learning rate, or give the method another strength"
    trainer.fit(
        batches(data, settings["batch_size"], run.seed, first_epoch),
        # Where all epochs are finished, the weights are only restored.
        initial_epoch=first_epoch,
        epochs=settings["epochs"],
        steps_per_epoch=math.ceil(len(data) / settings["batch_size"]),
        shuffle=False,
        callbacks=[
            # The first one waits for the loss, so that the second one times whole steps.
            StopWhenDiverged(f"{run.label}: {remedy}"),
            _StepTimes(directory / "seconds_per_step.json"),
            AtomicBackup(backup, interval_s=_BACKUP_S),
        ],
        verbose=0,
    )


def batches(
    data: LabelledData, batch_size: int, seed: int, first_epoch: int = 0
) -> tf.data.Dataset:
    """Returns endless batches (x, y); an epoch's order depends on the seed and the epoch alone.

    Args:
        data: The examples, each of which comes once an epoch.
        batch_size: Examples a batch; the last one of an epoch may have fewer.
        seed: The seed.
        first_epoch: The epoch to begin with, from 0.
    """
    # Captured by reference: as NumPy arrays they would be copied into the graph as constants. On
    # the CPU, where tf.data runs.
    with tf.device("CPU:0"):
        examples = keras.tree.map_structure(tf.convert_to_tensor, (data.x, data.y))

    def order(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.random.experimental.stateless_shuffle(tf.range(len(data)), [seed, epoch])
        return tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)

    return (
        tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        .flat_map(order)
        .map(
            lambda rows: keras.tree.map_structure(lambda leaf: tf.gather(leaf, rows), examples),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .prefetch(tf.data.AUTOTUNE)
    )


class _StepTimes(keras.callbacks.Callback):
    """Writes the median time of a step, in seconds."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path = path
        self._seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._seconds.append(time.perf_counter() - self._start)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        # Without the first one, which is traced; there may be no other.
        median = statistics.median(self._seconds[1:] or self._seconds)
        with replacing(self._path) as part:
            part.write_text(json.dumps(median))
