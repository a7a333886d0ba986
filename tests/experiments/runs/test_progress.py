"""Progress of runs where there is no terminal."""

import pytest
from fake_experiment import fake_runs

from fisher_keras.experiments.runs import progress
from fisher_keras.experiments.runs.progress import RunReports, last_line
from fisher_keras.experiments.runs.store import ExperimentStore


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ""),
        (b"begun\nepoch 3/20  loss 0.5\n\n  \n", "epoch 3/20  loss 0.5"),
        (b"train.py:3: UserWarning: mind\n  model.fit(\n", "train.py:3: UserWarning: mind"),
        (b"\r50%\r100%\n", "50%\r100%"),
        (b"x" * 9000 + b"\n" + b"y" * 300, "y" * 100),
        (b"a\n\xff\n", "\ufffd"),
    ],
)
def test_the_last_line_of_a_log(tmp_path, content, expected):
    (tmp_path / "log").write_bytes(content)
    assert last_line(tmp_path / "log") == expected


def test_a_log_that_is_not_there_yet_has_no_last_line(tmp_path):
    assert last_line(tmp_path / "log") == ""


def test_running_runs_are_reported_every_few_minutes(tmp_path, monkeypatch, capsys):
    store, runs, seconds = ExperimentStore(tmp_path), fake_runs(2), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    store.run_directory(runs[0]).mkdir(parents=True)
    store.log(runs[0]).write_text("epoch 3/20  loss 0.5\n")
    reports = RunReports(store)
    printed = []
    for time in (1.0, 299.0, 301.0, 302.0, 602.0):
        seconds[0] = time
        reports.print_due(runs)
        printed.append(capsys.readouterr().out)
    lines = "running: size 0 seed 0: epoch 3/20  loss 0.5\nrunning: size 0 seed 1: \n"
    assert printed == ["", "", lines, "", lines]
