"""One training run with or without the regularizer (Section 7.2), from flags to record."""

import contextlib
import dataclasses
import statistics
import time
import zlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from fisher_keras.classifier import Classifier
from fisher_keras.experiments.folder_lock import folder_lock
from fisher_keras.experiments.training.arch import network_settings, recipe_of
from fisher_keras.experiments.training.building import build_models, make_repeatable
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import TrainingData, load_training_data
from fisher_keras.experiments.training.measured_step import mean_step_seconds
from fisher_keras.experiments.training.messages import (
    print_end,
    print_estimate,
    print_plan,
    print_start,
)
from fisher_keras.experiments.training.provenance import provenance
from fisher_keras.experiments.training.run_files import RunFiles
from fisher_keras.experiments.training.training_callbacks import (
    AtomicBackup,
    PlainModelCheckpoint,
    PlateauSchedule,
    Progress,
    StopAtLoss,
    StopWhenDiverged,
    TrainingDivergedError,
    finished_epochs,
)
from fisher_keras.experiments.training.training_presets import TrainingOptions
from fisher_keras.experiments.training.workers import Workers
from fisher_keras.metrics.loss_and_errors import evaluate_data_loss
from fisher_keras.models import learning_rate_at

__all__ = ["TrainingConfig", "TrainingDivergedError", "train"]

# The parts of the data that a network is evaluated on.
PARTS = ("train", "confusion", "test")
# The errors of TensorFlow by which an image that cannot be read can end a training.
_UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.UnknownError,
)
# Sent by the chief to the other processes in place of the number of finished epochs.
_NOTHING_LEFT, _CANNOT_START = -1, -2


def train(
    config: TrainingConfig,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data: TrainingData | None = None,
    *,
    quiet: bool = False,
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
        config: The configuration.
        callbacks: Called at each epoch's end before it counts as finished: an epoch whose
            callbacks have not all returned is trained again after a resume.
        data: What `load_training_data` returns for the configuration, if it was called already.
        quiet: Whether nothing is printed.

    Returns:
        A dict for JSON, of a dry run `data` and `parameters` alone: `status`; `flags`, the
        configuration with the recipe's values; `seed`; `versions`, `git_revision`, `device` and
        `replicas`; `resumed`, the same of each time the run was resumed; `network`, which tells
        the code of a user's network; `data`, the fingerprint and numbers of images; `parameters`;
        `train` and `test` after the last epoch, in inference mode, the training images not
        augmented, and `confusion` if there is such a set: `loss`
        (with weight penalties and label smoothing), `cross_entropy` (without), `error_percent` and
        `calibration_error`; `wall_time_s` of all epochs and this evaluation; `seconds_per_epoch`,
        the median; `history`, the columns of the CSV; with a `target_loss`, its `excess_loss` is
        the loss that was reached, and its `steps` tell where in the last epoch.

    Raises:
        ValueError: If a setting or the data cannot be used, or `output_dir` holds another run.
        OSError: If data or output cannot be read or written; a `ConnectionError` if another
            process of the training has ended.
        TrainingDivergedError: If the loss becomes infinite or NaN.
    """
    config = resolve(config)
    if config.dry_run:
        return _dry_run(config)
    workers = Workers.start(config.strategy)
    files = RunFiles(config.output_dir, read_only=not workers.is_chief)
    quiet = quiet or not workers.is_chief
    with contextlib.ExitStack() as lock:
        record, first_epoch = _open(config, files, workers, lock)
        # Before the data are loaded: of a finished run nothing but the record is needed.
        if first_epoch == _NOTHING_LEFT:
            if not quiet:
                print(
                    f"{files.directory} holds the finished run: nothing is left to do. "
                    "Give a larger --epochs to train it further."
                )
            return record
        if first_epoch > 0:
            flags = files.read()["flags"]
            planned = flags.get("schedule_epochs") or flags["epochs"]
            config = dataclasses.replace(config, schedule_epochs=planned)
        try:
            data = load_training_data(config) if data is None else data
            with _dtype_policy(config):
                training = _Training(config, files, workers, data, first_epoch, quiet)
                return training.run(record, callbacks)
        except tf.errors.UnavailableError as error:
            raise ConnectionError(
                "another process of --strategy=multi_worker has ended or cannot be reached: start "
                "all of them again with --resume"
            ) from error


def run_training(options: TrainingOptions) -> dict:
    """Trains as the flags of `bin/train_cifar` say; see `train`."""
    return train(options.training)


@contextlib.contextmanager
def _dtype_policy(config: TrainingConfig) -> Iterator[None]:
    """The policy of a training. It is global: what is built later must not get it."""
    policy = keras.config.dtype_policy()
    try:
        if config.mixed_precision != "none":
            keras.config.set_dtype_policy(config.mixed_precision)
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def _dry_run(config: TrainingConfig) -> dict:
    """Prints what would be trained; returns what is known of the record."""
    given = {name: value for name, value in dataclasses.asdict(config).items() if value}
    print("\n".join(f"{name}: {value}" for name, value in given.items()), flush=True)
    try:
        data = load_training_data(dataclasses.replace(config, download=False))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. A dry run does not download them") from error
    batches = data.training_batches(config.augmentation, 0)
    images, _ = next(iter(batches))
    make_repeatable(config.seed)
    with _dtype_policy(config):
        plain_model, _ = build_models(config, data)
        record = {"data": data.describe(), "parameters": plain_model.count_params()}
        # Before the steps, for which the memory may not be enough.
        print_plan(record, data.steps_per_epoch, config.epochs, images.shape)
        seconds = mean_step_seconds(config, data, batches)
        print_estimate(seconds, data.steps_per_epoch * config.epochs)
    return record


def _open(
    config: TrainingConfig, files: RunFiles, workers: Workers, lock: contextlib.ExitStack
) -> tuple[dict | None, int]:
    """Returns the record of the run to go on with, and the epoch to resume from."""
    record, first_epoch = None, _CANNOT_START
    try:
        if workers.is_chief:
            files.open(dataclasses.asdict(config), config.resume)  # Refuses, and leaves no lock.
            lock.enter_context(folder_lock(files.directory))
            # Again, as another training may have written until now.
            record = files.open(dataclasses.asdict(config), config.resume)
            finished = record is not None and record["status"] == "finished"
            if record and not finished:
                _check_same_network(record, config, files)
            backup = finished_epochs(files.backup) if record else 0
            if record and not backup and record["flags"].get("schedule_epochs"):
                raise ValueError(
                    f"{files.backup} is gone, without which a finished run cannot be trained "
                    "further: give another --output_dir"
                )
            first_epoch = _NOTHING_LEFT if finished else backup
    finally:
        # Also when the chief has an error to raise: the others wait for its number.
        first_epoch = int(workers.from_chief(first_epoch))
    # In the chief itself, its own error has left this function before.
    if first_epoch == _CANNOT_START:
        raise ValueError("the chief could not start: see its message")
    if first_epoch > 0 and finished_epochs(files.backup) != first_epoch:
        raise ValueError(
            f"--output_dir={files.directory} is not the folder that the chief writes to, which "
            f"has a backup of {first_epoch} epochs: all processes need the same one"
        )
    return files.read() if first_epoch == _NOTHING_LEFT else record, first_epoch


@dataclasses.dataclass(frozen=True)
class _Training:
    """The rest of a training, from `first_epoch` on; see `train` for the other fields."""

    config: TrainingConfig
    files: RunFiles
    workers: Workers
    data: TrainingData
    first_epoch: int
    quiet: bool

    def run(self, record: dict | None, callbacks: Sequence[keras.callbacks.Callback]) -> dict:
        """Trains and evaluates the network; returns its record."""
        make_repeatable(self.config.seed)
        _check_same_data(record, self.data.describe(), self.files, self.workers)
        # After the seed, so that the first weights are the same however the data were loaded.
        with self.workers.strategy.scope():
            plain_model, model = build_models(self.config, self.data)
        record = self._started(record, plain_model)
        self.files.write_record(record)
        self.files.trim_history(self.first_epoch)
        if not self.quiet:
            print_start(record, self.files.directory, self.first_epoch)
        try:
            self._fit(plain_model, model, callbacks)
        except _UNREADABLE:
            self.data.check_files()  # Its error names the image, TensorFlow's own does not.
            raise
        record |= self._finished(model)
        self.files.write_record(record)
        if not self.quiet:
            print_end(record, self.files.directory)
        return record

    def _started(self, record: dict | None, plain_model: keras.Model) -> dict:
        """Returns the record as it is before the first step."""
        if record is not None:
            resumed = {"after_epochs": self.first_epoch, **provenance()}
            return record | {"resumed": [*record["resumed"], resumed]}
        return {
            "status": "running",
            "flags": dataclasses.asdict(self.config),
            "seed": self.config.seed,
            **provenance(),
            "replicas": self.workers.replicas,
            "resumed": [],
            **network_settings(self.config.arch),
            "data": self.data.describe(),
            "parameters": plain_model.count_params(),
        }

    def _fit(
        self,
        plain_model: keras.Model,
        model: keras.Model,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> None:
        config, data = self.config, self.data
        past = self.files.read_history(self.first_epoch) if self.first_epoch else {}
        target = self._target(plain_model, past)
        model.fit(
            self.workers.shared(data.training_batches(config.augmentation, self.first_epoch)),
            validation_data=self.workers.shared(data.evaluation_batches("validation")),
            initial_epoch=self.first_epoch,
            # A training that was stopped at its target is only restored.
            epochs=self.first_epoch if any(stop.reached for stop in target) else config.epochs,
            steps_per_epoch=data.steps_per_epoch,
            shuffle=False,  # The batches are shuffled.
            callbacks=[
                # The order matters: what adds to an epoch's logs stands before what writes them.
                StopWhenDiverged(),
                _schedule(config, past.get("loss", [])),
                *target,
                Progress(self.first_epoch, self.quiet),
                *([] if self.files.read_only else self._writers(plain_model, past)),
                *callbacks,
                # Last, when the others have seen the epoch.
                AtomicBackup(self.files.backup, self.files.read_only),
            ],
            verbose=0,
        )

    def _writers(
        self, plain_model: keras.Model, past: dict[str, list[float | None]]
    ) -> list[keras.callbacks.Callback]:
        """Returns the callbacks that write files."""
        files, by_validation = self.files, self.config.validation_size
        monitor, mode, best_of = (
            ("val_accuracy", "max", max) if by_validation else ("loss", "min", min)
        )
        past_best = best_of(past.get(monitor, []), default=None)
        options = {"monitor": monitor, "mode": mode, "initial_value_threshold": past_best}
        return [
            keras.callbacks.TensorBoard(str(files.tensorboard), write_graph=False),
            keras.callbacks.CSVLogger(str(files.history), append=True),
            PlainModelCheckpoint(plain_model, files.last),
            PlainModelCheckpoint(plain_model, files.best, save_best_only=True, **options),
        ]

    def _target(
        self, plain_model: keras.Model, past: dict[str, list[float | None]]
    ) -> list[StopAtLoss]:
        """Returns the callback that stops at `target_loss` or `target_error`, if there is one."""
        config, workers = self.config, self.workers
        if config.target_loss is None and config.target_error is None:
            return []
        name = "excess_loss" if config.target_error is None else "error_percent"
        target = config.target_loss or config.target_error
        classifier = Classifier(plain_model)
        trained_on, smoothing = self.data.examples("train", "confusion"), config.label_smoothing

        def measure() -> float:
            # The others need not round as the chief does, but must stop where it stops.
            if not workers.is_chief:
                return workers.from_chief(0.0)
            fit = evaluate_data_loss(classifier, trained_on, label_smoothing=smoothing)
            values = {"excess_loss": fit.excess_loss, "error_percent": 100 * fit.error}
            return workers.from_chief(values[name])

        steps = self.data.steps_per_epoch
        return [StopAtLoss(target, measure, steps, past.get(name, []), name)]

    def _finished(self, model: keras.Model) -> dict:
        """Evaluates the network; returns what the record gets at the end."""
        start = time.monotonic()
        classifier = Classifier(model)
        results = {
            part: _evaluate(classifier, self.data, part, self.config.label_smoothing)
            for part in PARTS
            if len(getattr(self.data, part)[1])
        }
        history = self.files.read_history()
        return results | {
            "status": "finished",
            "wall_time_s": sum(history["seconds"]) + time.monotonic() - start,
            "seconds_per_epoch": statistics.median(history["seconds"]),
            "history": history,
        }


def _schedule(config: TrainingConfig, past_losses: list[float]) -> keras.callbacks.Callback:
    if config.schedule == "plateau":
        return PlateauSchedule(config.learning_rate, past_losses)
    recipe, epochs = recipe_of(config.arch), config.schedule_epochs or config.epochs
    return keras.callbacks.LearningRateScheduler(
        lambda epoch, _: learning_rate_at(recipe, epoch, epochs, config.learning_rate)
    )


def _evaluate(
    classifier: Classifier, data: TrainingData, part: str, label_smoothing: float
) -> dict[str, float]:
    """Returns loss and errors on a part of the data, in inference mode."""
    # Not Keras' own `evaluate`: its float32 mean keeps three digits of a loss close to zero.
    fit = evaluate_data_loss(classifier, data.examples(part), part, label_smoothing)
    return {
        "loss": fit.loss + float(sum(classifier.model.losses)),
        "cross_entropy": fit.hard_label_loss,
        "error_percent": round(100 * fit.error, 4),
        "calibration_error": fit.calibration_error,
    }


def _check_same_network(record: dict, config: TrainingConfig, files: RunFiles) -> None:
    """Checks that the code of a user's network is that of the record, if it has it."""
    now = network_settings(config.arch).get("network")
    if record.get("network", now) != now:
        raise ValueError(
            f"cannot resume {files.directory}: the code of --arch={config.arch} is not what it "
            "was when the training started. Undo the change, or give another --output_dir"
        )


def _check_same_data(record: dict | None, given: dict, files: RunFiles, workers: Workers) -> None:
    """Checks that data are those of the record, and of all processes."""
    stored = given if record is None else record["data"]
    # Before either error: all processes take part in it, and would wait for one that has left.
    # Only numbers can be sent: a checksum stands for the data, and -1, which is none, for others.
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
