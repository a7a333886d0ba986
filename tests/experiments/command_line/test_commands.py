"""Common behavior of all commands: help, one line an error, Ctrl-C."""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import tensorflow as tf
from marks import nightly

from fisher_keras import extras
from fisher_keras._version import __version__
from fisher_keras.experiments.command_line.errors import one_line_errors
from fisher_keras.experiments.command_line.quiet import without_notices
from fisher_keras.experiments.command_line.table import COMMANDS
from fisher_keras.experiments.training.train import TrainingConfig


def test_no_answer_waits_for_tensorflow():
    """Asked one after the other in one process: the first that waited would be seen."""
    code = """
import sys
from fisher_keras.experiments.command_line import main, table
answers = [(["--help"], 0), (["--version"], 0)]
answers += [([name, "--help"], 0) for name in table.COMMANDS]
answers += [([name, "--nosuch=1"], 2) for name in table.COMMANDS]
for arguments, expected in answers:
    try:
        main.main(arguments)
    except SystemExit as error:
        assert (error.code or 0) == expected, (arguments, error.code)
    assert "tensorflow" not in sys.modules, arguments
print(len(answers), "answers")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [f"{2 + 2 * len(COMMANDS)} answers"], done.stderr


def test_all_commands_are_listed(run_command):
    status, output, errors = run_command("--help")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert [line.split()[0] for line in lines[2:]] == sorted(COMMANDS)
    assert all(len(line) < 120 for line in lines)


def test_the_version_is_the_packages(run_command):
    assert run_command("--version") == (0, f"fisher_keras {__version__}\n", "")


def test_no_command_lists_them(run_command):
    status, output, _ = run_command()
    assert status == 2
    assert "  train_cifar  " in output


@pytest.mark.parametrize("name", ["train-cifr", "train_cifr"])
def test_a_wrong_name_is_guessed(run_command, name):
    status, _, errors = run_command(name, "--help")
    assert status == 1
    assert errors == (
        f"fisher-keras: no command {name!r} (did you mean train_cifar?); fisher-keras --help "
        "lists them\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run_command, name):
    status, output, errors = run_command(name, "--help")
    assert (status, errors) == (0, "")
    assert "\n  --" in output


def test_dashes_are_as_good_as_underscores(run_command):
    assert run_command("train-cifar", "--help") == run_command("train_cifar", "--help")


def test_help_groups_the_flags(run_command):
    _, output, _ = run_command("train_cifar", "--help")
    headings = re.findall(r"^(\w+):$", output, flags=re.MULTILINE)
    assert headings == ["preset", "model", "data", "regularizer", "training", "output"]
    for flag in set(TrainingConfig.__dataclass_fields__) - {"schedule_epochs"}:
        assert re.search(rf"^  --(\[no\])?{flag}:", output, flags=re.MULTILINE), flag
    # And in its own group.
    assert output.index("\nregularizer:") < output.index("--beta:") < output.index("\ntraining:")


def test_a_missing_extra_is_one_line(run_command, monkeypatch):
    """As after `pip install .`, with the extra's packages away."""
    find_spec = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util,
        "find_spec",
        lambda name: None if name == "optuna" else find_spec(name),
    )
    assert run_command("train_cifar") == (
        1,
        "",
        "train_cifar: no package optuna: run pip install 'fisher_keras[experiments]'\n",
    )


def test_every_mistake_gets_one_clear_line(run_command, tmp_path):
    run, file = tmp_path / "run", tmp_path / "file"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"flags": {}, "status": "running"}))
    file.touch()
    mistakes = {
        ("--ach=cnn",): (2, "there is no flag --ach (did you mean --arch?); --help lists"),
        ("--zzz",): (2, "there is no flag --zzz; --help lists the flags\n"),
        ("--arch=vgg",): (
            1,
            "--arch must be one of cnn, resnet, wide_resnet, densenet, keras.applications:NAME or",
        ),
        ("--epochs=two",): (2, "--epochs must be a whole number, 1 or greater, got 'two' (--help"),
        ("--width=x",): (2, "--width must be a number greater than 0, got 'x' (--help"),
        ("--label_smoothing=x",): (2, "--label_smoothing must be a number, 0 or greater, less"),
        ("--width=0",): (1, "--width must be a number greater than 0. Given: 0.0."),
        ("--download=maybe",): (2, "--download must be true or false, got 'maybe' (--help"),
        ("--epochs",): (2, "Missing value for flag --epochs (--help lists the flags)"),
        (f"--flagfile={tmp_path}/no",): (2, "the file of --flagfile cannot be read\n"),
        ("resnet",): (2, "unexpected argument 'resnet': flags start with -- (--help lists"),
        ("--beta=3",): (1, "--beta has no effect without --regularize"),
        (f"--output_dir={file}/run",): (1, "would lie in what is a file"),
        (f"--output_dir={run}",): (1, f"{run} already holds a run"),
        (f"--data_dir={tmp_path}", "--nodownload", f"--output_dir={tmp_path}/new"): (
            1,
            "--dataset=digits",
        ),
    }
    for given, (expected_status, message) in mistakes.items():
        status, _, errors = run_command("train_cifar", *given)
        assert status == expected_status, errors
        assert message in errors
        assert errors.startswith("train_cifar: ")
        assert errors.count("\n") == 1


def errors_of(capsys, error, program="train_cifar", arguments=(), resume_flag="--resume"):
    with pytest.raises(SystemExit) as exit_, one_line_errors(program, arguments, resume_flag):
        raise error
    return exit_.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("2 of 9 images hold NaN"), "2 of 9 images hold NaN"),
        (ArithmeticError("the loss became nan"), "the loss became nan"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), ": x cannot be read or written"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "no file or folder x"),
        (OSError(errno.EIO, "Input/output error", "x"), "train_cifar: x: Input/output error\n"),
        (ConnectionError("the Dask scheduler is out of reach"), ": the Dask scheduler is out"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when"), "smaller --batch_size"),
        (FileExistsError(errno.EEXIST, "File exists", "x"), "x is a file and cannot be a folder"),
        (NotADirectoryError(errno.ENOTDIR, "Not", "x/y"), "x/y would lie in what is a file"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "make room and go on with --res",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "disk that holds x is full; what"),
    ],
)
def test_an_error_is_one_line(capsys, error, message):
    status, errors = errors_of(capsys, error)
    assert status == 1
    assert message in errors
    assert errors.startswith("train_cifar: ")
    assert errors.count("\n") == 1
    assert "Errno" not in errors


def test_a_required_flag_is_named(run_command):
    assert run_command("plot_results") == (
        2,
        "",
        "plot_results: --store is required: Folder of a scenario's runs. (--help lists the "
        "flags)\n",
    )


@pytest.mark.parametrize(
    ("level", "notices"), [(None, False), ("2", False), ("3", False), ("0", True), ("1", True)]
)
def test_notices_are_kept_back_unless_they_are_asked_for(monkeypatch, capfd, level, notices):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    with without_notices():
        os.write(2, b"notice\n")  # As C++ does.
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == (level or "2")
    os.write(2, b"error\n")
    assert capfd.readouterr().err == "notice\n" * notices + "error\n"
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level


@pytest.mark.parametrize(("level", "notices"), [(None, False), nightly("0", True)])
def test_tensorflow_is_as_quiet_as_it_is_asked_to_be(tmp_path, level, notices):
    command = [sys.executable, "-m", "fisher_keras.experiments.command_line.main", "train_cifar"]
    command += ["--dataset=folder", f"--data_dir={tmp_path}/no", f"--output_dir={tmp_path}/run"]
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    if level is not None:
        environment["TF_CPP_MIN_LOG_LEVEL"] = level
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert (done.stderr.count("\n") > 1) == notices, done.stderr


def test_sigterm_names_the_command_that_goes_on(tmp_path):
    code = (
        "import time; from fisher_keras.experiments.command_line import main, table\n"
        "def wait(self): return lambda options: print('begun', flush=True) or time.sleep(60)\n"
        "table.Command.load_function = wait\n"
        "main.main(['evaluate_metrics', '--model=x'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors == (
        "evaluate_metrics: stopped; go on with: fisher-keras evaluate_metrics --model=x\n"
    )


@pytest.mark.parametrize("name", ["table1", "compare_methods", "pool", "tune_regularizer"])
def test_the_papers_days_have_to_be_asked_for(run_command, replace_function, name):
    done = []
    replace_function(done.append)
    assert run_command(name)[0] == 0
    assert run_command(name, "--preset=paper")[0] == 0
    assert [options.preset for options in done] == ["laptop", "paper"]


@pytest.mark.parametrize(
    "name", ["table1", "table2", "compare_methods", "crossed", "scenario_confusion"]
)
def test_a_command_calls_itself_by_its_name(run_command, tmp_path, name):
    flags = ["--preset=smoke", "--dry_run", f"--output_dir={tmp_path}/no"]
    status, output, _ = run_command(name, *flags)
    assert status == 0
    assert output.startswith(f"{name}, preset smoke: ")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train_cifar", ["--dataset=folder", "--data_dir=nowhere"]),
        ("train_cifar", ["--dataset=digits", "--train_size=100000"]),
        ("tune_regularizer", ["--preset=smoke", "--dataset=folder", "--data_dir=nowhere"]),
        ("table1", ["--preset=smoke", "--dashboard"]),
        ("evaluate_metrics", ["--model=no.keras"]),
    ],
)
def test_a_refused_command_leaves_no_folder(run_command, tmp_path, monkeypatch, name, flags):
    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *rest: n != "bokeh" and find_spec(n, *rest)
    )
    output = "--output" if name == "evaluate_metrics" else "--output_dir"
    assert run_command(name, *flags, f"{output}=new/inner")[0] == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    assert run_command(name, *flags, f"{output}=old/inner")[0] == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_sizes_that_do_not_go_together_are_said(run_command, tmp_path):
    flags = ["--dataset=digits", "--train_size=20", "--width=0.05", "--epochs=1"]
    flags += [f"--output_dir={tmp_path}/run", "--batch_size=32"]
    status, _, errors = run_command("train_cifar", *flags, "--regularize", "--num_sub_batches=33")
    assert status == 1
    assert errors == (
        "train_cifar: --num_sub_batches must be at most the 32 images of a batch, got 33\n"
    )
    status, output, _ = run_command("train_cifar", *flags)
    assert status == 0
    said = "\n--batch_size=32 is larger than the number of images: each step takes all 20.\n"
    assert said in output


def test_a_bug_keeps_its_traceback():
    with pytest.raises(TypeError), one_line_errors("train_cifar"):
        len(3)


@pytest.mark.parametrize(
    ("program", "name", "resume_flag", "added"),
    [
        ("'/a b/bin/train_cifar'", "train_cifar", "--resume", " --resume"),
        ("fisher-keras table1", "table1", None, ""),
    ],
)
def test_ctrl_c_names_the_command_that_goes_on(capsys, program, name, resume_flag, added):
    arguments = ["--output_dir=my run", *([resume_flag] if resume_flag else [])]
    status, errors = errors_of(capsys, KeyboardInterrupt(), program, arguments, resume_flag)
    assert status == 130
    assert errors == f"{name}: stopped; go on with: {program} '--output_dir=my run'{added}\n"


def test_a_script_is_named_as_it_was_started(run_command, replace_function, monkeypatch):
    def stopped(config):
        raise KeyboardInterrupt

    replace_function(stopped)
    monkeypatch.setenv("FISHER_KERAS_PROGRAM", "/a b/bin/train_cifar")
    status, _, errors = run_command("train_cifar", "--epochs=3")
    assert status == 130
    assert errors == (
        "train_cifar: stopped; go on with: '/a b/bin/train_cifar' --epochs=3 --resume\n"
    )
