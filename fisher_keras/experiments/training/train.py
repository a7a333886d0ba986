"""One training run with or without the regularizer (Section 7.2), from flags to record."""

import dataclasses
import statistics
import time
import zlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from fisher_keras.classifier import Classifier
from fisher_keras.experiments.training.config import (
    REGULARIZER_OPTIONS,
    TrainingConfig,
    phase_factors,
    resolve,
)
from fisher_keras.experiments.training.data import TrainingData, load_training_data
from fisher_keras.experiments.training.provenance import provenance
from fisher_keras.experiments.training.run_files import RunFiles
from fisher_keras.experiments.training.training_callbacks import (
    AtomicBackup,
    Every,
    PlainModelCheckpoint,
    PlateauSchedule,
    Progress,
    StopAtLoss,
    StopWhenDiverged,
    TrainingDivergedError,
    finished_epochs,
)
from fisher_keras.experiments.training.workers import STRATEGIES, Workers
from fisher_keras.metrics.loss_and_errors import evaluate_fit
from fisher_keras.models import (
    RECIPES,
    build_model,
    build_optimizer,
    learning_rate_at,
    learning_rate_falls,
)
from fisher_keras.regularizer import FisherRegularizedModel, SharpnessAwareModel

__all__ = ["TrainingConfig", "TrainingDivergedError", "train"]

# What the chief tells the other processes instead of the epochs that are finished.
_NOTHING_LEFT, _CANNOT_START = -1, -2


def train(
    config: TrainingConfig,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: TrainingData | None = None,
    *,
    quiet: bool = False,
    save_every: int = 1,
) -> dict:
    """Trains one network and keeps everything about it in `config.output_dir`.

    With the same configuration on the same machine the weights are the same, bit for bit, also if
    the run was killed and resumed. The directory gets

    - `run.json`, what this function returns;
    - `history.csv`, a row an epoch, and `tensorboard/`, the same as curves. `val_...` is of the
      validation images, or of the test images where `validation_size` is 0;
    - `last.keras` and `best.keras`, the plain classifier after the last epoch and after the one
      with the lowest validation error, or, where `validation_size` is 0, with the lowest training
      loss: the test images never choose. `keras.saving.load_model` loads them;
    - `backup/`, the state to resume from.

    With `config.strategy` "multi_worker", this is called in each of the processes, and only the
    chief prints and writes: all the others need of the directory is to read the same `backup/`.

    Args:
        config: What to train, and how.
        callbacks: Called at each epoch's end before it counts as finished: an epoch whose
            callbacks have not all returned is trained again after a resume.
        data: What `load_training_data` returns for the configuration, if it was called already.
        quiet: Whether nothing is printed.
        save_every: Epochs from one backup and saving of models to the next, if to do so at each
            epoch would take longer than to train. The last epoch's are always saved, and
            `best.keras` is the best of those that are.

    Returns:
        A dict for JSON: `status`; `flags`, the configuration with the recipe's values; `seed`;
        `versions`, `git_revision`, `device` and `replicas`; `resumed`, the same of each time the
        run was resumed; `data`, the fingerprint and numbers of images; `parameters`; `train` and
        `test` after the last epoch, in inference mode, the training images not augmented, and
        `confusion` if there is such a set: `loss` (with weight penalties and label smoothing),
        `cross_entropy` (without), `error_percent` and `calibration_error`;
        `wall_time_s` of all epochs and this evaluation; `seconds_per_epoch`, the median;
        `history`, the columns of the CSV; with a `target_loss`, its `excess_loss` is the loss that
        was reached, and its `steps` tell where in the last epoch.

    Raises:
        ValueError: If a setting or the data cannot be used, or `output_dir` holds another run.
        OSError: If data or output cannot be read or written; a `ConnectionError` if another
            process of the training has ended.
        TrainingDivergedError: If the loss becomes infinite or NaN.
    """
    config = resolve(config)
    workers = Workers.start(config.strategy)
    files = RunFiles(config.output_dir, read_only=not workers.is_chief)
    quiet = quiet or not workers.is_chief
    record, first_epoch = _open(config, files, workers)
    if first_epoch == _NOTHING_LEFT:
        if not quiet:
            print(f"{files.directory} holds the finished run: nothing is left to do.")
        return record
    data = load_training_data(config) if data is None else data
    policy = keras.config.dtype_policy()
    if config.mixed_precision != "none":
        keras.config.set_dtype_policy(config.mixed_precision)
    try:
        return _train(
            config, files, workers, record, first_epoch, data, callbacks, quiet, save_every
        )
    except tf.errors.UnavailableError as error:
        raise ConnectionError(
            "another process of --strategy=multi_worker has ended or cannot be reached: start all "
            "of them again with --resume"
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)


def _open(config: TrainingConfig, files: RunFiles, workers: Workers) -> tuple[dict | None, int]:
    """Returns the record of the run to go on with, and what the chief tells all processes."""
    record, told = None, _CANNOT_START
    try:
        if workers.is_chief:
            record = files.open(dataclasses.asdict(config), config.resume)
            finished = record is not None and record["status"] == "finished"
            told = _NOTHING_LEFT if finished else finished_epochs(files.backup) if record else 0
    finally:
        told = int(workers.told_by_chief(told))
    if told == _CANNOT_START:
        raise ValueError("the chief could not start: see its message")
    if told > 0 and finished_epochs(files.backup) != told:
        raise ValueError(
            f"--output_dir={files.directory} is not the folder that the chief writes to, which "
            f"has a backup of {told} epochs: all processes need the same one"
        )
    return files.read() if told == _NOTHING_LEFT else record, told


def _train(
    config: TrainingConfig,
    files: RunFiles,
    workers: Workers,
    record: dict | None,
    first_epoch: int,
    data: TrainingData,
    callbacks: Sequence[keras.callbacks.Callback],
    quiet: bool,
    save_every: int,
) -> dict:
    tf.config.experimental.enable_op_determinism()
    # With its 10 bits a GPU's finite difference is noise, and no metric is exact.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    keras.utils.set_random_seed(config.seed)
    _check_same_data(record, data.describe(), files, workers)
    with workers.strategy.scope():
        plain_model, model = _build(config, data)
    if record is None:
        record = {
            "status": "running",
            "flags": dataclasses.asdict(config),
            "seed": config.seed,
            **provenance(),
            "replicas": workers.replicas,
            "resumed": [],
            "data": data.describe(),
            "parameters": plain_model.count_params(),
        }
    else:
        record["resumed"].append({"after_epochs": first_epoch, **provenance()})
    files.write_record(record)
    files.trim_history(first_epoch)
    if not quiet:
        _print_start(record, files, first_epoch)
    past = files.read_history(first_epoch) if first_epoch else {}
    progress = Progress(config.epochs, data.steps_per_epoch, first_epoch, quiet)
    target = _target(config, data, plain_model, past, workers)
    model.fit(
        workers.shared(data.training_batches(config.augmentation, first_epoch)),
        validation_data=workers.shared(data.evaluation_batches("validation")),
        initial_epoch=first_epoch,
        # What was stopped at its target is only restored.
        epochs=first_epoch if any(stop.reached for stop in target) else config.epochs,
        steps_per_epoch=data.steps_per_epoch,
        shuffle=False,  # The batches are shuffled.
        callbacks=[
            *_callbacks(config, files, plain_model, [progress, *target], past, save_every),
            *callbacks,
            # Last, when the others have seen the epoch.
            Every(save_every, AtomicBackup(files.backup, files.read_only)),
        ],
        verbose=0,
    )
    start = time.monotonic()
    parts = ("train", "confusion", "test") if config.confusion_size else ("train", "test")
    classifier = Classifier(model)
    results = {part: _evaluate(model, classifier, data, part, workers) for part in parts}
    history = files.read_history()
    record |= results | {
        "status": "finished",
        "wall_time_s": sum(history["seconds"]) + time.monotonic() - start,
        "seconds_per_epoch": statistics.median(history["seconds"]),
        "history": history,
    }
    files.write_record(record)
    if not quiet:
        _print_end(record, files)
    return record


def _build(config: TrainingConfig, data: TrainingData) -> tuple[keras.Model, keras.Model]:
    """Returns the plain classifier, and the compiled model that trains it."""
    plain_model = build_model(
        config.arch,
        data.dataset.num_classes,
        data.dataset.image_shape,
        depth=config.depth,
        width=config.width,
        l2_penalty=config.l2_penalty,
    )
    model = plain_model
    if config.regularize:
        model = _regularized(config, plain_model, data.steps_per_epoch)
    elif config.method == "sam":
        model = SharpnessAwareModel(plain_model, config.rho, config.adaptive)
    elif config.strategy != STRATEGIES[0]:
        # Keras' own model clips the gradients of each replica, and has no steps on many workers.
        model = FisherRegularizedModel(plain_model, beta=0.0, clip_norm=None, seed=config.seed)
    model.build(plain_model.input_shape)  # A backup can be restored into a built model only.
    if config.label_smoothing > 0:
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=config.label_smoothing
        )
        cross_entropy = keras.metrics.CategoricalCrossentropy
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        cross_entropy = keras.metrics.SparseCategoricalCrossentropy
    optimizer = build_optimizer(RECIPES[config.arch], config.learning_rate)
    if config.clip_norm and not config.regularize:  # The regularized model clips by itself.
        optimizer.global_clipnorm = config.clip_norm
    model.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=["accuracy", cross_entropy(name="cross_entropy", from_logits=True)],
        jit_compile=config.jit_compile,
    )
    return plain_model, model


def _regularized(
    config: TrainingConfig, plain_model: keras.Model, steps_per_epoch: int
) -> keras.Model:
    options = {name: getattr(config, name) for name in REGULARIZER_OPTIONS}
    options["clip_norm"] = options["clip_norm"] or None
    if config.beta_phases is not None:
        falls = learning_rate_falls(RECIPES[config.arch], config.epochs)
        options["beta"] = keras.optimizers.schedules.PiecewiseConstantDecay(
            [epoch * steps_per_epoch - 1 for epoch in falls],  # The last step of each phase.
            [config.beta * factor for factor in phase_factors(config.beta_phases)],
        )
    return FisherRegularizedModel(plain_model, **options, seed=config.seed)


def _callbacks(
    config: TrainingConfig,
    files: RunFiles,
    plain_model: keras.Model,
    logging: Sequence[keras.callbacks.Callback],
    past: dict[str, list[float | None]],
    save_every: int,
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that every run has.

    What they write of an epoch without a backup is written again, the same, after a resume.
    """
    deciding = [StopWhenDiverged(), _schedule(config, past.get("loss", [])), *logging]
    if files.read_only:
        return deciding
    monitor, mode = ("val_accuracy", "max") if config.validation_size else ("loss", "min")
    saved = past.get(monitor, [])[save_every - 1 :: save_every]
    best_so_far = {"max": max, "min": min}[mode](saved, default=None)
    return [
        *deciding,
        keras.callbacks.TensorBoard(str(files.tensorboard), write_graph=False),
        keras.callbacks.CSVLogger(str(files.history), append=True),
        Every(save_every, PlainModelCheckpoint(plain_model, files.last)),
        Every(
            save_every,
            PlainModelCheckpoint(
                plain_model,
                files.best,
                save_best_only=True,
                monitor=monitor,
                mode=mode,
                initial_value_threshold=best_so_far,
            ),
        ),
    ]


def _target(
    config: TrainingConfig,
    data: TrainingData,
    plain_model: keras.Model,
    past: dict[str, list[float | None]],
    workers: Workers,
) -> list[StopAtLoss]:
    """Returns what ends the training at `target_loss`, if there is one."""
    if config.target_loss is None:
        return []
    classifier = Classifier(plain_model)
    trained_on = data.labelled("train", "confusion", label_smoothing=config.label_smoothing)

    def excess_loss() -> float:
        # The others need not round as the chief does, but must stop where it stops.
        loss = evaluate_fit(classifier, trained_on).excess_loss if workers.is_chief else 0.0
        return workers.told_by_chief(loss)

    return [
        StopAtLoss(
            config.target_loss,
            excess_loss,
            data.steps_per_epoch,
            past.get("excess_loss", []),
        )
    ]


def _schedule(config: TrainingConfig, past_losses: list[float]) -> keras.callbacks.Callback:
    if config.schedule == "plateau":
        return PlateauSchedule(config.learning_rate, past_losses)
    recipe = RECIPES[config.arch]
    return keras.callbacks.LearningRateScheduler(
        lambda epoch, _: learning_rate_at(recipe, epoch, config.epochs, config.learning_rate)
    )


def _evaluate(
    model: keras.Model, classifier: Classifier, data: TrainingData, part: str, workers: Workers
) -> dict[str, float]:
    """Returns how the model fits a part of the data, in inference mode."""
    batches = workers.shared(data.evaluation_batches(part))
    logs = model.evaluate(batches, return_dict=True, verbose=0)
    return {
        "loss": logs["loss"],
        "cross_entropy": logs["cross_entropy"],
        "error_percent": round(100 * (1 - logs["accuracy"]), 4),  # The accuracy is a float32.
        "calibration_error": evaluate_fit(classifier, data.labelled(part), part).calibration_error,
    }


def _check_same_data(record: dict | None, given: dict, files: RunFiles, workers: Workers) -> None:
    """Checks that data are those of the record, and of all processes."""
    stored = given if record is None else record["data"]
    agreed = workers.agree(zlib.crc32(repr(given).encode()) if stored == given else -1)
    if stored != given:
        raise ValueError(
            f"cannot resume {files.directory} with other data: it was started with {stored}, "
            f"now there is {given}"
        )
    if not agreed:
        raise ValueError(
            "the processes of --strategy=multi_worker do not have the same data, or their chief "
            f"has other data than the run. Here there is {given}"
        )


def _print_start(record: dict, files: RunFiles, first_epoch: int) -> None:
    values = ", ".join(
        f"{name} {value}" for name, value in record["flags"].items() if value is not None
    )
    print(f"Settings: {values}.")
    images = record["data"]
    confusion = ""
    if images["confusion_images"]:
        confusion = f" and {images['confusion_images']:,} with random labels"
    curves = "validation" if images["validation_images"] else "test"
    print(
        f"Training {record['parameters']:,} parameters on {images['train_images']:,} images"
        f"{confusion} "
        f"({record['device']}); val_ below is the {curves} images."
    )
    if first_epoch:
        print(f"Resumed after epoch {first_epoch}.")
    print(f"Files go to {files.directory}.", flush=True)


def _print_end(record: dict, files: RunFiles) -> None:
    print(f"\n{'':<10}{'loss':>10}{'cross-entropy':>16}{'error (%)':>12}{'calibration error':>20}")
    for part in ("train", "confusion", "test"):
        if part not in record:
            continue
        values = record[part]
        print(
            f"{part:<10}{values['loss']:>10.4f}{values['cross_entropy']:>16.4f}"
            f"{values['error_percent']:>12.2f}{values['calibration_error']:>20.4f}"
        )
    print(f"{record['wall_time_s']:.0f} s. Everything is in {files.directory}.")
