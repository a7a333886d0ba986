"""A comparison on a user's own model and data, from its arguments to its runs."""

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.arguments import whole_number
from fisher_keras.classifier.labels import LabelledData, labelled_data
from fisher_keras.experiments.comparisons.compare import Method
from fisher_keras.experiments.comparisons.compare_options import CompareOptions
from fisher_keras.experiments.comparisons.comparison import Comparison
from fisher_keras.experiments.comparisons.own_training import (
    NAMED_METHODS,
    Inputs,
    classifier_of,
    evaluation_options,
    train_in_a_process,
    train_network,
    weights_fingerprint,
)
from fisher_keras.experiments.runs.experiment import free_gpus
from fisher_keras.experiments.runs.run_options import EngineOptions
from fisher_keras.experiments.runs.runner import run_experiment
from fisher_keras.experiments.runs.store import ExperimentStore, Run
from fisher_keras.experiments.user_code import import_module, load_function
from fisher_keras.metrics.trials import json_ready

EXPERIMENT = "compare"
RECIPE_VERSION = 1  # To be raised when the same settings no longer give the same networks.
_BATCH_SIZE = 32  # Keras' own.
# What a wrapper's configuration has besides the method's options.
_NOT_OPTIONS = {"model", "name", "seed", "dtype", "trainable"}


@dataclasses.dataclass(frozen=True, eq=False)
class OwnModel:
    """A comparison that can be carried out.

    Attributes:
        inputs: Model, methods and data.
        seeds: The number of seeds.
        settings: What all runs have in common, for JSON.
    """

    inputs: Inputs
    seeds: int
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls, make_model: Any, train: Any, test: Any, methods: Any, seeds: int, **sizes: int | None
    ) -> "OwnModel":
        """Checks the arguments of `compare`, and reads the data.

        The `sizes` are `epochs`, `batch_size`, `num_samples` and `num_trials`.

        Raises:
            ValueError: If an argument cannot be used.
        """
        if not callable(make_model) or isinstance(make_model, keras.Model):
            raise ValueError(
                "make_model must be a function that makes a new compiled classifier each time, as "
                f"each training needs its own. Given: {make_model!r}."
            )
        parts = {"train": train, "test": test}
        found = {name: _in_memory(data, name) for name, data in parts.items()}
        usual = {name: _batch_size(data, name) for name, data in parts.items()}
        if sizes["batch_size"] is None:
            sizes["batch_size"] = usual["train"]
        settings = {
            **{name: data.fingerprint for name, data in found.items()},
            **{name: whole_number(name, value, least=1) for name, value in sizes.items()},
        }
        inputs = Inputs(make_model, _methods(methods), **found)
        return cls(inputs, whole_number("seeds", seeds, least=2), settings)

    def runs(self) -> list[Run]:
        """Returns the runs, all methods of a seed before the next seed.

        Each method makes its model once, so that what cannot be compared is refused before any
        training.

        Raises:
            ValueError: If the models or the methods cannot be compared.
        """
        defined: dict[str, dict[str, Any]] = {}
        model = None
        for name in self.inputs.methods:
            last, model = model, self.inputs.classifier(seed=0)
            if model is last:
                raise ValueError(
                    "make_model returns the same model each time, and each training needs its "
                    "own: make it inside of the function"
                )
            defined[name] = self._definition(name, model)
        if len({definition["model"] for definition in defined.values()}) > 1:
            raise ValueError(
                "make_model makes another model or other initial weights each time: draw them "
                "from Keras' random numbers, which keras.utils.set_random_seed has reset"
            )
        return [
            Run(EXPERIMENT, definition, seed, RECIPE_VERSION, f"{name} seed {seed}")
            for seed in range(self.seeds)
            for name, definition in defined.items()
        ]

    def carry_out(
        self, output_dir: str | os.PathLike, engine: EngineOptions, modules: Sequence[str] = ()
    ) -> Comparison:
        """Trains what is missing, prints the table, and writes it and the figure.

        Args:
            output_dir: The folder.
            engine: Where the runs are executed; in this process if it does not say.
            modules: Modules that other processes import first.

        Raises:
            ValueError: If the models or the methods cannot be compared.
            OSError: If the folder cannot be read or written, or Dask is out of reach.
            FailedRunsError: If runs failed in processes of their own.
        """
        store = ExperimentStore(output_dir)
        usual = vars(EngineOptions()).items()
        alone = all(getattr(engine, name) == value for name, value in usual)
        # Before the first model is made, which would take the memory of all GPUs.
        gpus = [] if alone else free_gpus()
        runs = self.runs()
        function = functools.partial(train_network, inputs=self.inputs)
        if not alone:
            inputs = self.inputs.write(store.directory)
            # The working directory is not on the path of a command's script.
            path = [os.path.abspath(entry) for entry in (*sys.path, "")]
            function = functools.partial(
                train_in_a_process, inputs=inputs, search_path=path, modules=list(modules)
            )
        run_experiment(runs, function, store, None if alone else engine, gpus=gpus)
        comparison = Comparison.of(store, runs, tuple(self.inputs.methods))
        comparison.publish(store.directory)
        return comparison

    def _definition(self, name: str, model: keras.Model) -> dict[str, Any]:
        """Returns the settings of the runs of a method, given a model that was made for it."""
        classifier = classifier_of(model)
        evaluation_options(model, self.settings, 0).check(classifier, self.inputs.train)
        # Weights alone are no function. Few digits, as the last ones depend on the device.
        logits = classifier.logits(self.inputs.train.take(slice(8)).x)
        function = f"{float(tf.reduce_sum(tf.abs(logits))):.3g}"
        identity = _plain([_serialized(model), weights_fingerprint(model), function])
        trainer = self.inputs.trained_by(name, model)
        if trainer is model:  # The method may have changed it.
            changed = _plain([_serialized(model), weights_fingerprint(model)])
            options = {} if changed == identity[:2] else {"classifier": changed}
        else:
            options = _options(name, trainer)
        return json_ready(
            {
                **self.settings,
                **self.inputs.code(name, model, trainer),
                "method": name,
                "options": _plain(options),
                "model": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
                "compiled": _plain(trainer.get_compile_config()),
            }
        )


def run_comparison(options: CompareOptions) -> None:
    """Carries out the comparison of a command line, see `compare`."""
    for module in options.imports:
        import_module(module)
    train, test, _ = options.load()
    methods = {
        name: name if name in NAMED_METHODS else load_function(name, "--method")
        for name in options.methods
    }
    make_model = load_function(options.model, "--model")
    names = ("epochs", "batch_size", "num_samples", "num_trials")
    sizes = {name: getattr(options, name) for name in names}
    comparison = OwnModel.of(make_model, train, test, methods, options.seeds, **sizes)
    comparison.carry_out(options.output_dir, options, options.imports)


def _methods(methods: Any) -> dict[str, Method]:
    """Returns the functions of methods by name."""
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        methods = (methods,)
    if not isinstance(methods, Mapping):
        methods = [(getattr(one, "__name__", None) or str(one), one) for one in methods]
        if len({name for name, _ in methods}) < len(methods):
            raise ValueError(
                f"methods have the same name, {', '.join(name for name, _ in methods)}: give a "
                "dictionary with a name for each"
            )
    found = {}
    for name, method in dict(methods).items():
        if not callable(method) and method not in NAMED_METHODS:
            raise ValueError(
                f"A method must be one of {', '.join(NAMED_METHODS)}, or a function from a "
                f"classifier to the model that trains it. Given: {method!r}."
            )
        found[str(name)] = method if callable(method) else NAMED_METHODS[method]
    if len(found) < 2:
        raise ValueError(f"methods must be two or more, to be compared. Given: {list(found)}.")
    return found


def _in_memory(data: Any, name: str) -> LabelledData:
    """Returns labelled data that all trainings can take as a whole."""
    found = labelled_data(data, name)
    if not (isinstance(found, LabelledData) and found.in_memory):
        raise ValueError(
            f"compare takes data in memory, and {name} stays in files: give a part of it as "
            f"arrays. Given: {type(found).__name__} of {len(found)} examples."
        )
    return found


def _batch_size(data: Any, name: str) -> int:
    """Returns the batch size of data that are batches; refuses sample weights."""
    batch, size = data, _BATCH_SIZE
    if isinstance(data, LabelledData):
        batch = data.x, data.y, data.weights
    elif not isinstance(data, (tuple, list)):
        batch = next(iter(data)) if isinstance(data, tf.data.Dataset) else data[0]
        size = len(np.asarray(batch[1]))
    if keras.utils.unpack_x_y_sample_weight(tuple(batch))[2] is not None:
        raise ValueError(
            f"{name} has sample weights, which compare does not hand to the trainings: leave them "
            "out, or weigh the examples in the loss"
        )
    return size


def _serialized(model: keras.Model) -> dict[str, Any]:
    """Returns the architecture of a model, as Keras saves it."""
    try:
        config = keras.saving.serialize_keras_object(model)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"Keras cannot save {type(model).__name__}, but the folder keeps the networks, and "
            f"tells different models apart: give it a get_config ({error})"
        ) from error
    return {key: value for key, value in config.items() if key != "compile_config"}


def _options(name: str, trainer: keras.Model) -> dict[str, Any]:
    """Returns the class and the options of the model that trains by a method."""
    try:
        config = trainer.get_config()
    except NotImplementedError as error:
        raise ValueError(
            f"The method {name!r} gives a {type(trainer).__name__} without get_config, by which "
            "runs of other options are told apart: give it one"
        ) from error
    options = {key: value for key, value in config.items() if key not in _NOT_OPTIONS}
    return {"class": type(trainer).__name__, **options}


def _plain(config: Any) -> Any:
    """Returns a configuration as JSON has it."""
    # The name of a class alone, as the text of many objects has their place in memory.
    return json.loads(json.dumps(config, default=lambda value: type(value).__name__))
