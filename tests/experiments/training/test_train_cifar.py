"""bin/train_cifar as a user runs it, from the shell."""

import csv
import functools
import json
import pathlib
import re
import shlex
import signal

import processes
import pytest
from marks import nightly
from processes import ROOT, finish, wait_for
from test_training import assert_same_weights

from fisher_keras.experiments.training.train import TrainingConfig, train

start = functools.partial(processes.start, ROOT / "bin" / "train_cifar", TF_CPP_MIN_LOG_LEVEL=None)


def history_without_times(output_dir):
    with (output_dir / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"]
    return rows


@pytest.mark.parametrize("kills", [[], nightly([1])])
def test_killed_or_stopped_and_resumed_it_ends_with_the_same_weights(tmp_path, run_command, kills):
    settings = {"dataset": "digits", "width": 0.125, "epochs": 5, "batch_size": 50, "seed": 5}
    straight, resumed = tmp_path / "straight", tmp_path / "my run"
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += ["--regularize", f"--output_dir={resumed}", "--resume"]

    for epoch in kills:
        process = start(*flags)
        wait_for(resumed / "backup" / f"epoch_{epoch}", process)
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        assert json.loads((resumed / "run.json").read_text())["status"] == "running"
    process = start(*flags)
    wait_for(resumed / "backup" / "epoch_3", process)
    process.send_signal(signal.SIGINT)
    status, _, stderr = finish(process)
    assert status == 130
    said, command = re.fullmatch(r"(train_cifar: .*; go on with: )(.*)\n", stderr).groups()
    assert said == "train_cifar: stopped; go on with: "
    script, *words = shlex.split(command)
    assert script.endswith("train_cifar")
    assert words == flags
    status, stdout, stderr = run_command("train_cifar", *flags)

    assert (status, stderr) == (0, "")
    assert re.search(r"epoch 5/5 .* loss .* left", stdout)
    train(TrainingConfig(**settings, regularize=True, output_dir=str(straight)))
    for name in ("last.keras", "best.keras"):
        assert_same_weights(resumed / name, straight / name)
    rows = history_without_times(resumed)
    assert rows == history_without_times(straight)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4"]
    record = json.loads((resumed / "run.json").read_text())
    assert len(record["resumed"]) == len(kills) + 1
    assert record["test"] == json.loads((straight / "run.json").read_text())["test"]


# No proxy is there, so that no host can be reached.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")


def test_without_network_one_line_names_the_ways_out(tmp_path):
    variables = {"HOME": str(tmp_path / "home"), **NO_NETWORK}
    process = start("--arch=densenet", f"--output_dir={tmp_path / 'run'}", **variables)
    status, stdout, stderr = finish(process)
    assert (status, stdout) == (1, "")
    assert stderr.startswith("train_cifar: cannot load cifar10 from TensorFlow Datasets' default")
    assert stderr.count("\n") == 1
    for way in ("--data_dir=PATH", "--dataset=folder", "--dataset=digits"):
        assert way in stderr
    assert not (tmp_path / "home" / "tensorflow_datasets").exists()


@pytest.mark.nightly
def test_prepared_data_need_neither_network_nor_a_home(tmp_path, cifar10_dir):
    (tmp_path / "file").touch()
    variables = {"HOME": str(tmp_path / "file" / "home"), **NO_NETWORK}
    flags = ["--width=0.05", "--train_size=20", "--validation_size=20", "--epochs=1"]
    flags += [f"--data_dir={cifar10_dir}", f"--output_dir={tmp_path / 'run'}"]
    before = sorted(pathlib.Path(cifar10_dir).rglob("*"))
    status, stdout, stderr = finish(start(*flags, **variables))
    assert (status, stderr) == (0, "")
    assert stdout.startswith("Settings: ")
    assert sorted(pathlib.Path(cifar10_dir).rglob("*")) == before


@pytest.mark.nightly
def test_a_folder_of_images_leaves_nothing_on_stderr(tmp_path, image_folder):
    flags = ["--dataset=folder", f"--data_dir={image_folder}", "--width=0.05", "--epochs=1"]
    assert finish(start(*flags, f"--output_dir={tmp_path / 'run'}"))[::2] == (0, "")
