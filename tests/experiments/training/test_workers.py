"""`train_cifar --strategy` on two devices of one process, and in two processes on loopback."""

import json
import os
import re
import signal

import numpy as np
import pytest
import tensorflow as tf
from marks import nightly
from processes import ROOT, cluster_of, finish, start, wait_for
from test_training import assert_same_weights, weights

from fisher_keras.experiments.training.train import TrainingConfig, train
from fisher_keras.experiments.training.workers import Workers

SETTINGS = {
    "dataset": "digits",
    "arch": "tiny_network:tiny",
    "epochs": 4,
    "batch_size": 150,
    "train_size": 440,  # The last batch is short.
    "seed": 5,
}
# Ends a process that writes into the folder of the run.
NO_WRITING = """
import os, sys
def hook(event, arguments):
    write = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
    if (write or event in ("os.mkdir", "os.rename", "os.remove")) and OUTPUT in str(arguments[0]):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(99)
sys.addaudithook(hook)
"""
# Before TensorFlow's first use. It confuses what several strategies of a process reduce.
SET_TWO_DEVICES = """
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import fisher_keras.devices
strategy = tf.distribute.MirroredStrategy()
tf.distribute.MirroredStrategy = lambda: strategy
"""
# What bin/train_cifar does, for each list of flags; images stay in files, however small they are.
TRAIN = """
import json, sys
from fisher_keras.datasets import stored_images
from fisher_keras.experiments.command_line.main import main
in_memory = stored_images.IN_MEMORY_BYTES
for flags, keep_in_files in json.loads(sys.argv[1]):
    stored_images.IN_MEMORY_BYTES = 0 if keep_in_files else in_memory
    try:
        main(["train_cifar", *flags])
    except SystemExit as end:
        assert not end.code, end.code
"""
PATH = (ROOT, ROOT / "tests")


def flags(output_dir, *more):
    values = {**SETTINGS, "output_dir": output_dir}
    return [*(f"--{name}={value}" for name, value in values.items()), "--resume", *more]


def start_workers(output_dir, *more):
    """Starts two processes; the second one ends as soon as it writes into the folder."""
    watched = output_dir.with_name(f"{output_dir.name}_watched")
    watched.mkdir(exist_ok=True)
    (watched / "sitecustomize.py").write_text(f"OUTPUT = {str(output_dir)!r}\n{NO_WRITING}")
    return [
        start(
            ROOT / "bin" / "train_cifar",
            *flags(output_dir, "--strategy=multi_worker", *more),
            PYTHONPATH=os.pathsep.join(map(str, [*[watched] * index, *PATH])),
            TF_CONFIG=config,
        )
        for index, config in enumerate(cluster_of(2))
    ]


def finish_all(workers):
    results = [finish(worker) for worker in workers]
    assert [status for status, _, _ in results] == [0] * len(results), results
    return results


def train_and_kill(run, kills):
    """Trains in two processes, killed at some epochs; returns what the last ones printed."""
    for victim, epoch in kills:
        workers = start_workers(run, "--regularize")
        wait_for(run / "backup" / f"epoch_{epoch}", workers[victim])
        workers[victim].send_signal(signal.SIGKILL)
        assert finish(workers[victim])[0] == -signal.SIGKILL
        status, _, stderr = finish(workers[1 - victim])
        assert status == 1
        assert re.search(
            r"^[^\n]*another process of --strategy=multi_worker has ended", stderr, re.M
        )
        assert json.loads((run / "run.json").read_text())["status"] == "running"
    return finish_all(start_workers(run, "--regularize"))


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """The folder of a run in two processes, both started again after the chief was killed."""
    run = tmp_path_factory.mktemp("workers") / "killed"
    return run, train_and_kill(run, [(0, 1)])


@pytest.fixture(scope="module")
def photo_flags(tmp_path_factory):
    """Flags of a training on 22 images of a folder."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(28):
        split, name = ("train", "test")[number >= 22], "ab"[number % 2]
        path = folder / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (9, 10, 3)).astype(np.uint8)
        path.write_bytes(tf.io.encode_png(pixels).numpy())
    data = ["--dataset=folder", f"--data_dir={folder}", "--image_size=8", "--label_smoothing=0.1"]
    network = [f"--arch={SETTINGS['arch']}", "--method=fisher", "--num_sub_batches=2"]
    return [*data, *network, "--epochs=2", "--batch_size=8"]


def start_training(script, trainings, **variables):
    path = os.pathsep.join(map(str, PATH))
    return start("-c", script, json.dumps(trainings), PYTHONPATH=path, **variables)


@pytest.fixture(scope="module")
def devices(tmp_path_factory, photo_flags):
    """The folders of trainings on two devices, all by one process: it starts once."""
    folder = tmp_path_factory.mktemp("devices")
    images = [*photo_flags, "--strategy=mirrored"]
    trainings = [
        (flags(folder / "digits", "--regularize", "--strategy=mirrored"), False),
        ([*images, f"--output_dir={folder / 'memory'}"], False),
        ([*images, f"--output_dir={folder / 'files'}"], True),
    ]
    finish_all([start_training(SET_TWO_DEVICES + TRAIN, trainings)])
    return folder


def assert_close_weights(run, other, **tolerances):
    for mine, right in zip(
        weights(run / "last.keras"), weights(other / "last.keras"), strict=True
    ):
        np.testing.assert_allclose(mine, right, **tolerances)


def records_of(*runs):
    return [json.loads((run / "run.json").read_text()) for run in runs]


def test_the_chief_alone_prints_and_writes(workers):
    output_dir, [(_, stdout, _), (_, other_stdout, other_stderr)] = workers
    assert "epoch 4/4" in stdout
    assert not other_stdout
    assert "os.mkdir" not in other_stderr
    (record,) = records_of(output_dir)
    assert record["status"] == "finished"
    assert record["resumed"]
    assert record["replicas"] == 2
    assert len(record["history"]["loss"]) == 4
    for part in ("train", "validation"):
        # One of each start.
        assert len(list((output_dir / "tensorboard" / part).iterdir())) == 2


def test_two_processes_do_what_two_devices_do(workers, devices):
    """Also where the chief was killed in between, and all were started again."""
    runs = devices / "digits", workers[0]
    assert_close_weights(*runs, rtol=1e-4, atol=1e-6)
    records = records_of(*runs)
    for name in ("loss", "val_loss", "val_accuracy", "fisher_trace", "gradient_norm"):
        first, second = (record["history"][name] for record in records)
        np.testing.assert_allclose(first, second, rtol=1e-3, err_msg=name)
    assert records[0]["test"]["loss"] == pytest.approx(records[1]["test"]["loss"], rel=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("kills", [[(0, 1)], [(1, 1), (0, 2)]])
def test_killed_and_started_again_they_end_with_the_same_weights(tmp_path, kills):
    """To the last bit; the chief, or after an other process the chief."""
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    train_and_kill(run, kills)
    train_and_kill(undisturbed, [])
    for name in ("last.keras", "best.keras"):
        assert_same_weights(run / name, undisturbed / name)


def test_devices_share_images_in_files_as_those_in_memory(devices):
    """The last batch of an epoch is short."""
    runs = devices / "memory", devices / "files"
    assert_close_weights(*runs, rtol=1e-5, atol=1e-7)
    records = records_of(*runs)
    assert records[0]["replicas"] == records[1]["replicas"] == 2
    assert records[0]["test"]["loss"] == pytest.approx(records[1]["test"]["loss"], rel=1e-5)
    # Another kind of data: those in their files are known by these alone.
    assert records[0]["data"]["fingerprint"] != records[1]["data"]["fingerprint"]


@pytest.mark.nightly
def test_processes_share_images_in_files_as_devices_do(photo_flags, devices, tmp_path):
    flags = [*photo_flags, "--strategy=multi_worker", f"--output_dir={tmp_path / 'run'}"]
    processes = [start_training(TRAIN, [(flags, True)], TF_CONFIG=c) for c in cluster_of(2)]
    finish_all(processes)
    assert_close_weights(devices / "files", tmp_path / "run", rtol=1e-4, atol=1e-6)


class InTurn:
    """Stands for `Workers` of two processes that start one after the other, the chief first."""

    strategy = tf.distribute.get_strategy()

    def __init__(self, told):
        self.is_chief = not told
        self.told = told

    def from_chief(self, value):
        if self.is_chief:
            self.told.append(value)
        return self.told[-1]


def train_in_turn(output_dir, monkeypatch, **changes):
    """Returns the record or the error of both processes."""
    settings = SETTINGS | {"strategy": "multi_worker", "regularize": True} | changes
    config = TrainingConfig(**settings, output_dir=str(output_dir), resume=True)
    told, results = [], []
    monkeypatch.setattr(Workers, "start", lambda strategy: InTurn(told))
    for _ in range(2):
        try:
            results.append(train(config))
        except ValueError as error:
            results.append(str(error))
    return results


def test_a_finished_run_is_told_to_all_others(workers, monkeypatch, capsys):
    output_dir, _ = workers
    record = json.loads((output_dir / "run.json").read_text())
    assert train_in_turn(output_dir, monkeypatch) == [record, record]
    printed = f"{output_dir} holds the finished run: nothing is left to do. Give a larger"
    assert capsys.readouterr().out.startswith(printed)


def test_what_the_chief_refuses_is_told_to_all_others(workers, monkeypatch):
    refused, told = train_in_turn(workers[0], monkeypatch, learning_rate=0.5)
    assert "cannot resume" in refused
    assert "the chief could not start" in told


@pytest.mark.nightly
def test_a_finished_run_is_told_to_all(workers):
    results = finish_all(start_workers(workers[0], "--regularize"))
    assert "nothing is left to do" in results[0][1]


@pytest.mark.nightly
def test_what_the_chief_refuses_ends_the_others(workers):
    results = [finish(w) for w in start_workers(workers[0], "--regularize", "--learning_rate=0.5")]
    assert [status for status, _, _ in results] == [1, 1]
    assert "cannot resume" in results[0][2]
    assert "the chief could not start" in results[1][2]


@pytest.mark.parametrize("method", ["clipped", nightly("sam"), nightly("plain")])
def test_one_mirrored_device_trains_as_no_strategy_does(tmp_path, method):
    folders = {strategy: tmp_path / strategy for strategy in ("none", "mirrored")}
    for strategy, folder in folders.items():
        settings = SETTINGS | {"epochs": 2, "method": method, "strategy": strategy}
        train(TrainingConfig(**settings, output_dir=str(folder)), quiet=True)
    pair = [weights(folder / "last.keras") for folder in folders.values()]
    for mine, other in zip(*pair, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)


def test_several_workers_need_tf_config(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=r"^[^\n]*needs the environment variable TF_CONFIG"):
        Workers.start("multi_worker")


@pytest.mark.parametrize("tf_config", ["no JSON", '{"cluster": 3}'])
def test_a_tf_config_that_cannot_be_read(monkeypatch, tf_config):
    monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(ValueError, match="--strategy=multi_worker cannot start"):
        Workers.start("multi_worker")


def test_xla_is_refused():
    with pytest.raises(ValueError, match="--jit_compile is not for --strategy=mirrored"):
        TrainingConfig(strategy="mirrored", jit_compile=True)
