"""Comparison of training methods on a user's own model and data."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from fisher_keras.extras import require

if TYPE_CHECKING:
    from fisher_keras.experiments.comparisons.comparison import Comparison

# From a classifier to the model whose `fit` trains it.
Method = Callable[[keras.Model], keras.Model]


def compare(
    make_model: Callable[[], keras.Model],
    train: Any,
    test: Any,
    methods: Sequence[str | Method] | Mapping[str, str | Method] = ("plain", "sam", "fisher"),
    seeds: int = 8,
    *,
    epochs: int,
    batch_size: int | None = None,
    num_samples: int = 100,
    num_trials: int = 20,
    output_dir: str | os.PathLike = "results/comparison",
    num_workers: int | None = None,
    scheduler: str | None = None,
) -> "Comparison":
    """Trains a classifier by several methods from several seeds, and compares the results.

    Optimizer, learning rate, loss and all else are those that `make_model` compiles: nothing is
    tuned. A seed has the same initial weights and the same batches in the same order for all
    methods. So the differences of two methods are taken seed by seed.

    The folder keeps the finished networks. Stopped and started again with the same arguments, the
    comparison resumes, also within a training; with more seeds or methods it trains only what is
    missing. Other code of yours, in `make_model`, in a method or in what these use, makes other
    runs, which are trained anew. The folder also gets the table and the figure.

    TensorFlow's op determinism is on, and TensorFloat-32 off, in the process that trains. That is
    this one, unless `num_workers` or `scheduler` is given.

    Args:
        make_model: Makes the compiled classifier, with new weights from Keras' random numbers.
        train: The training data: a pair (x, y) of arrays, or a finite `tf.data.Dataset` or
            `keras.utils.PyDataset` of batches (x, y), which is read into memory. Augmentation
            belongs into the model, as layers.
        test: The test data, likewise.
        methods: A method is a name or a function. The names, with the defaults of their classes:
            "plain", as `make_model` compiles it; "sam", in a `SharpnessAwareModel`; "fisher", in a
            `FisherRegularizedModel`; "clipped", plain with gradients clipped as those of "fisher";
            "ghost", clipped, with batch normalization over sub-batches. A function takes the
            classifier and returns the model whose `fit` trains it: `lambda classifier:
            FisherRegularizedModel(classifier, strength=0.5)`. If it does not compile that model,
            it is compiled as the classifier was. A mapping gives names to methods. Differences are
            to "plain", or to the first one if "plain" is not among them.
        seeds: The number of seeds, at least 2; they are 0, 1, ...
        epochs: Passes over the training data.
        batch_size: Examples a step; by default that of the batches in `train`, 32 for arrays.
        num_samples: N', how many training examples a trial of the metrics samples.
        num_trials: T, how many trials the metrics of a network have.
        output_dir: The folder.
        num_workers: Trainings at once, each in a process of its own; by default one after the
            other in this process. Functions and data are then handed on by cloudpickle.
        scheduler: Address of a Dask scheduler whose workers train, instead of `num_workers`; they
            must see `output_dir`.

    Returns:
        The comparison; `str` of it is the table that was printed.

    Raises:
        ImportError: If a package of the extra `experiments` is missing.
        ValueError: If an argument cannot be used, or another comparison works in the folder.
        OSError: If the folder cannot be read or written, or Dask is out of reach.
        TrainingDivergedError: If a training loss becomes infinite or NaN.
        FailedRunsError: If trainings in processes of their own failed; all others are finished.

    Examples:
        >>> def make_model():
        ...     model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ...     model.compile(keras.optimizers.SGD(0.1), loss)
        ...     return model
        >>> data = np.random.normal(size=(60, 8)), np.arange(60) % 3
        >>> comparison = compare(  # doctest: +SKIP
        ...     make_model, data, data, seeds=2, epochs=2, num_samples=20
        ... )
        >>> comparison.difference("fisher", "test_error").mean  # doctest: +SKIP
    """
    require("distributed", "filelock", "matplotlib")
    # Only now, as these import what was required.
    from fisher_keras.experiments.comparisons.own_model import OwnModel
    from fisher_keras.experiments.runs.run_options import EngineOptions

    sizes = {"epochs": epochs, "batch_size": batch_size}
    sizes |= {"num_samples": num_samples, "num_trials": num_trials}
    comparison = OwnModel.of(make_model, train, test, methods, seeds, **sizes)
    engine = EngineOptions(num_workers=num_workers, scheduler=scheduler)
    return comparison.carry_out(output_dir, engine)
