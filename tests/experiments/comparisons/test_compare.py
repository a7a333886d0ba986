"""`compare` on small networks, against networks trained and evaluated by hand."""

import dataclasses
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import fisher_keras
from fisher_keras.classifier.labels import LabelledData
from fisher_keras.experiments.comparisons import own_training
from fisher_keras.experiments.comparisons.comparison import QUANTITIES, Comparison
from fisher_keras.experiments.comparisons.own_model import OwnModel
from fisher_keras.experiments.runs import process
from fisher_keras.experiments.runs.store import ExperimentStore
from fisher_keras.experiments.training.training_callbacks import TrainingDivergedError
from fisher_keras.metrics import evaluate_local_minimum

random = np.random.default_rng(0)
X = random.normal(size=(90, 6)).astype("float32")
Y = (X @ random.normal(size=(6, 3)) + random.normal(size=(90, 3))).argmax(axis=1)
TRAIN, TEST = (X[:50], Y[:50]), (X[50:], Y[50:])
SIZES = {"epochs": 3, "batch_size": 16, "num_samples": 10, "num_trials": 2}


def make_model(learning_rate=0.1, activation="tanh", **compiled):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), loss, **compiled)
    return model


def plain_steps(classifier):
    """Trains plainly, in a model of its own: beta is 0."""
    return fisher_keras.FisherRegularizedModel(classifier, beta=0.0)


def definition(make=make_model, train=TRAIN, methods=("plain", "sam"), **changes):
    return OwnModel.of(make, train, TEST, methods, 2, **SIZES | changes)


def keys(*arguments, **changes):
    return {run.key for run in definition(*arguments, **changes).runs()}


def test_examples_are_taken_if_they_are_in_memory(tmp_path):
    settings = definition().settings
    # As the package's own data sets come, from the shell.
    assert definition(train=LabelledData(*TRAIN)).settings == settings
    np.save(tmp_path / "x.npy", X[:50])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r"), Y[:50]
    with pytest.raises(ValueError, match="compare takes data in memory, and train stays in files"):
        definition(train=mapped)


def test_a_method_that_changes_the_classifier_is_known_by_the_change():
    def frozen(number):
        def method(classifier):
            for layer in classifier.layers[:number]:
                layer.trainable = False
            return classifier

        return method

    found = [keys(methods={"plain": "plain", "frozen": frozen(number)}) for number in (0, 1, 3)]
    assert [len(found[0] & others) for others in found] == [4, 2, 2]
    assert len(found[1] & found[2]) == 2


def test_smoothing_and_logits_are_those_of_the_loss_in_a_list():
    model = make_model()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model.compile("sgd", [loss])
    assert own_training.evaluation_options(model, SIZES, 0).label_smoothing == 0.1
    assert own_training.classifier_of(model).from_logits is True


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compared")
    methods = {"plain": "plain", "other plain": plain_steps, "sam": "sam"}
    result = fisher_keras.compare(
        make_model, TRAIN, TEST, methods, 2, **SIZES, output_dir=directory
    )
    return directory, result


def networks(compared, method):
    directory, result = compared
    return [
        keras.models.load_model(directory / network.path / "network.keras")
        for network in result.networks[method].values()
    ]


def test_plain_training_is_that_of_keras(compared):
    for seed, network in enumerate(networks(compared, "plain")):
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed)
        model = make_model()
        rows = [
            rows.numpy()
            for epoch in range(3)
            for (rows, _) in own_training.batches(
                own_training.LabelledData(np.arange(50), Y[:50]), 16, seed, epoch
            ).take(4)
        ]
        assert [len(r) for r in rows] == 3 * [16, 16, 16, 2]
        for epoch in range(3):
            of_epoch = np.concatenate(rows[4 * epoch : 4 * epoch + 4])
            np.testing.assert_array_equal(np.sort(of_epoch), np.arange(50))
        for batch in rows:
            model.train_on_batch(X[batch], Y[batch])
        for mine, theirs in zip(model.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_methods_start_alike_and_see_the_same_batches(compared):
    plain, other = (networks(compared, method) for method in ("plain", "other plain"))
    for first, second in zip(plain, other, strict=True):
        for mine, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)
    directory, _ = compared
    records = ExperimentStore(directory).records()
    initial = {record.seed: set() for record in records}
    for record in records:
        initial[record.seed].add(record.result["initial_weights"])
    assert [len(found) for found in initial.values()] == [1, 1]
    assert len(set().union(*initial.values())) == 2


def test_results_are_those_of_the_networks(compared):
    _, result = compared
    errors = {}
    for method in ("plain", "sam"):
        found = networks(compared, method)
        errors[method] = [
            100 * np.mean(n.predict(TEST[0], verbose=0).argmax(axis=1) != TEST[1]) for n in found
        ]
        reports = [
            evaluate_local_minimum(n, TRAIN, 10, 2, seed, progress=False)
            for seed, n in enumerate(found)
        ]
        for name, metric in (
            ("gamma_hat", "log_determinant"),
            ("log_determinant_margins", "log_determinant_margins"),
        ):
            expected = [report.metrics[metric].mean for report in reports]
            np.testing.assert_allclose(result.values(method, name), expected, rtol=1e-5)
    np.testing.assert_allclose(result.values("sam", "test_error"), errors["sam"])
    difference = result.difference("sam", "test_error")
    pairs = scipy.stats.ttest_rel(errors["sam"], errors["plain"]).confidence_interval(0.95)
    np.testing.assert_allclose([difference.low, difference.high], pairs)
    assert difference.mean == pytest.approx(np.mean(errors["sam"]) - np.mean(errors["plain"]))


def test_the_folder_has_table_and_figure(compared, capsys):
    directory, result = compared
    again = fisher_keras.compare(
        make_model,
        tf.data.Dataset.from_tensor_slices(TRAIN).batch(16),
        TEST,
        {"plain": "plain", "other plain": plain_steps, "sam": "sam"},
        2,
        **SIZES | {"batch_size": None},
        output_dir=directory,
    )
    printed = capsys.readouterr().out
    assert "6 of 6 runs are finished." in printed
    assert "run 6/6" not in printed  # Nothing was trained again.
    assert str(again) == str(result)
    assert str(again) in printed
    text = (directory / "comparison.md").read_text()
    assert all(quantity.title in text for quantity in QUANTITIES.values())
    assert (directory / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert not list(directory.glob("runs/*/backup"))


def test_the_cost_of_a_step_is_a_ratio_of_medians(compared):
    _, result = compared
    times = {"plain": (1.0, 3.0, 2.0), "sam": (7.0, 1.0, 3.0)}
    groups = {
        method: {
            seed: dataclasses.replace(result.networks[method][0], seconds_per_step=time)
            for seed, time in enumerate(of_method)
        }
        for method, of_method in times.items()
    }
    assert Comparison(groups).cost("sam") == 1.5


def test_a_cut_training_goes_on_to_the_same_weights(tmp_path, monkeypatch, compared):
    class Stopped(own_training.StopWhenDiverged):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch, logs)
            if epoch == 2:
                raise KeyboardInterrupt

    def cut(folder, remove=shutil.rmtree, **options):
        if pathlib.Path(folder).name != "backup":
            return remove(folder, **options)
        next(folder.rglob("*.weights.h5")).unlink()
        raise KeyboardInterrupt

    commits = iter(["started", "changed"])
    monkeypatch.setattr(process, "git_revision", lambda: next(commits, "later"))
    monkeypatch.setattr(own_training, "_BACKUP_S", -1.0)
    arguments = (make_model, TRAIN, TEST, ("plain", "sam"), 2)
    # In the training, and later as what it resumes from is removed.
    for target, name, other in (
        (own_training, "StopWhenDiverged", Stopped),
        (shutil, "rmtree", cut),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, other)
            with pytest.raises(KeyboardInterrupt):
                fisher_keras.compare(*arguments, **SIZES, output_dir=tmp_path)
        epoch = "epoch_2" if target is own_training else "epoch_3"
        assert len(list(tmp_path.glob(f"runs/*/backup/{epoch}"))) == 1
    resumed = fisher_keras.compare(*arguments, **SIZES, output_dir=tmp_path)
    found = [record.result["git_revisions"] for record in ExperimentStore(tmp_path).records()]
    assert sorted(found) == [["later"]] * 3 + [["started", "changed"]]
    for method in ("plain", "sam"):
        pairs = zip(
            networks((tmp_path, resumed), method), networks(compared, method), strict=False
        )
        for cut, whole in pairs:
            for mine, theirs in zip(cut.get_weights(), whole.get_weights(), strict=True):
                np.testing.assert_array_equal(mine, theirs)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(16 * index, min(16 * index + 16, 50))
        return X[rows], Y[rows]


def test_all_forms_of_data_are_the_same_data():
    forms = [TRAIN, list(TRAIN), Batches(), tf.data.Dataset.from_tensor_slices(TRAIN).batch(16)]
    assert len({definition(train=form).settings["train"] for form in forms}) == 1
    sizes = [definition(train=form, batch_size=None).settings["batch_size"] for form in forms]
    assert sizes == [32, 32, 16, 16]


def test_what_decides_a_result_decides_the_runs():
    usual = keys()
    assert keys() == usual
    clipped = ("plain", "clipped")
    others = [
        keys(lambda: make_model(learning_rate=0.2)),
        keys(lambda: make_model(activation="relu")),
        keys(train=(X[:50] + 1, Y[:50])),
        *(keys(**{name: value - 1}) for name, value in SIZES.items()),
        keys(methods=clipped) - usual,
        keys(methods={"plain": "plain", "sam": lambda m: fisher_keras.SharpnessAwareModel(m, 0.2)})
        - usual,
    ]
    assert not any(usual & other for other in others)
    assert len(keys(methods=clipped) & usual) == 2  # Those of plain training.


def smoothed(share):
    def loss(y_true, y_pred):
        target = (1 - share) * keras.ops.one_hot(y_true, 3) + share / 3
        return keras.ops.categorical_crossentropy(target, y_pred, from_logits=True)

    return loss


def test_the_code_of_a_loss_decides_the_runs():
    """Keras' configuration has its name alone."""

    def made(share):
        def make():
            model = make_model()
            model.compile("sgd", smoothed(share), metrics=["accuracy"])
            return model

        return make

    usual, again, other = (keys(made(share)) for share in (0.1, 0.1, 0.2))
    assert usual == again
    assert not usual & other


OF_A_WORKER = """
import pickle, sys
from fisher_keras.experiments.comparisons.own_training import train_in_a_process
with open("run.pkl", "rb") as file:
    run = pickle.load(file)
import pathlib
train_in_a_process(run, pathlib.Path("runs/one").absolute(), sys.argv[1], ["."], [])
"""


@pytest.mark.nightly
def test_a_process_refuses_code_that_was_changed_since_the_start(tmp_path, monkeypatch):
    """It imports modules anew, and gets the functions of the main program as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    factor = tmp_path / "its_factor.py"
    factor.write_text("def factor():\n    return 1.0\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    main = {"__name__": "__main__", "keras": keras, "made": make_model(), "S": {"a", "b", "c"}}
    source = """
    def make():
        import its_factor
        def loss(y, p):
            assert S
            return its_factor.factor() * keras.losses.sparse_categorical_crossentropy(y, p, True)
        model = keras.models.clone_model(made)
        model.compile("sgd", loss)
        return model
    """
    exec(textwrap.dedent(source), main)
    comparison = definition(main["make"], epochs=1)
    run = comparison.runs()[2]  # Of another seed than the first one.
    file = comparison.inputs.write(tmp_path)
    (tmp_path / "run.pkl").write_bytes(pickle.dumps(run))
    (tmp_path / "runs" / "one").mkdir(parents=True)
    found = []
    for number in (1.0, 2.0):
        factor.write_text(f"def factor():\n    return {number}\n")
        command = [sys.executable, "-c", OF_A_WORKER, file]
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": path}
        found.append(subprocess.run(command, env=environment, capture_output=True, text=True))
    assert found[0].returncode == 0, found[0].stderr
    assert "plain seed 1: the code of make_model, of the method, or of what" in found[1].stderr


SHARED = make_model()


def unseeded():
    model = make_model()
    model.layers[0].set_weights([np.random.default_rng().normal(size=(6, 8)), np.zeros(8)])
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"make": SHARED}, "make_model must be a function"),
        ({"make": lambda: SHARED}, "returns the same model each time"),
        ({"make": lambda: None}, "must return a keras.Model that is compiled"),
        ({"make": lambda: keras.Sequential([keras.layers.Dense(3)])}, "that is compiled with"),
        ({"make": unseeded}, "other initial weights each time"),
        ({"methods": ("plain", "sgd")}, "must be one of plain, clipped, .* Given: 'sgd'"),
        ({"methods": "sam"}, "two or more, to be compared"),
        ({"methods": (lambda m: m, lambda m: m)}, "have the same name"),
        ({"methods": {"plain": "plain", "x": lambda m: 0}}, "'x' must return the keras.Model"),
        ({"train": (*TRAIN, np.ones(50))}, "train has sample weights"),
        ({"num_samples": 51}, "num_samples=51 examples cannot be sampled"),
        ({"train": (X[:50], Y[:50] + 1)}, "must be classes"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_training(changes, message):
    with pytest.raises(ValueError, match=message):
        definition(**changes).runs()


def test_a_diverged_training_is_named(tmp_path):
    with pytest.raises(TrainingDivergedError, match="plain seed 0: compile it with a lower"):
        fisher_keras.compare(
            lambda: make_model(1e30, "relu"), TRAIN, TEST, **SIZES, output_dir=tmp_path
        )


USER_CODE = """
import keras
import numpy as np
from fisher_keras import FisherRegularizedModel


@keras.saving.register_keras_serializable("mine")
class Half(keras.layers.Layer):
    def call(self, x):
        return x / 2


def make_model():
    model = keras.Sequential([keras.Input((6,)), Half(), keras.layers.Dense(3)])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    return model


def load_data():
    x = np.random.default_rng(0).normal(size=(90, 6)).astype("float32")
    y = np.eye(3)[x[:, :3].argmax(axis=1)]
    return (x[:50], y[:50]), (x[50:], y[50:])


def strong(classifier):
    return FisherRegularizedModel(classifier, strength=0.5)
"""


def test_the_command_trains_in_processes_what_a_users_module_makes(
    tmp_path, monkeypatch, run_command
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_a_user.py").write_text(USER_CODE)
    flags = [
        *("--model=of_a_user:make_model", "--dataset=of_a_user:load_data", "--epochs=2"),
        *("--method=plain", "--method=of_a_user:strong", "--num_samples=10"),
        *("--num_trials=2", "--output_dir=out"),
    ]
    status, output, errors = run_command("compare", *flags, "--seeds=2")
    assert (status, errors) == (0, "")
    assert "run 4/4" in output
    monkeypatch.delitem(sys.modules, "of_a_user")
    # Likewise in processes, to which the networks of another seed are left.
    status, output, errors = run_command("compare", *flags, "--seeds=3", "--num_workers=2")
    assert (status, errors) == (0, "")
    assert "4 of 6 runs are finished." in output
    assert "run 6/6" in output
    # The smoothing of the compiled loss counts: what it takes away at best is no excess.
    records = ExperimentStore("out").records()
    assert all(0 < record.result["train"]["excess_loss"] < 1 for record in records)
    status, _, errors = run_command("compare", "--model=of_a_user:no", *flags[1:])
    assert status == 1
    assert errors == "compare: --model=of_a_user:no: the module of_a_user has no function no\n"


def test_a_function_that_gives_no_pair_is_named(tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_another.py").write_text(textwrap.dedent("def load():\n    return 3\n"))
    flags = ["--model=of_another:load", "--dataset=of_another:load", "--epochs=1"]
    status, _, errors = run_command("compare", *flags)
    assert status == 1
    assert errors.startswith("compare: --dataset=of_another:load must return (train, test)")
