"""Uncommitted changes and the data's origin: said below tables, and refused by presets."""

import dataclasses
import types

import pytest

from fisher_keras.experiments.runs import experiment
from fisher_keras.experiments.runs.experiment import ExperimentOptions, execute_runs
from fisher_keras.experiments.runs.provenance_notes import mixture_notes, provenance_notes
from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run
from fisher_keras.experiments.scenarios.runs import SCENARIOS, scenario_runs
from fisher_keras.experiments.statistics.text_tables import publish_table
from fisher_keras.experiments.training import provenance

PRESET = dataclasses.replace(SCENARIOS["scenario_confusion"]["smoke"], num_seeds=1)


def record(revision, dataset="cifar10", data="0eea5fd087074c92"):
    config = {"training": {"dataset": dataset}}
    return Record("key", "test", 1, config, 0, 1.0, {"git_revision": revision, "data": data})


def test_runs_without_a_commit_and_of_several_are_counted():
    records = [record("abc"), record("abc-dirty"), record("def-dirty"), record(None)]
    whole, resumed = record("abc"), record("abc")
    whole.result["git_revisions"] = ["abc"]
    resumed.result["git_revisions"] = ["abc", "def-dirty", "fed"]
    assert provenance_notes([*records, whole, resumed]) == [
        "Data: cifar10, high-quality JPEG copies of the original images, in another order "
        "(fingerprint 0eea5fd087074c92).",
        "3 of 6 runs are of a tree with uncommitted changes.",
        "1 of 6 runs are of a tree with no known commit.",
        "1 of 6 runs went on under another commit.",
        "The runs are of 5 commits.",
    ]


def test_runs_of_several_versions_are_told():
    records = [record("abc"), record("abc"), record("abc")]
    for one, version in zip(records, ("3.14.0", "3.15.1", "3.15.1"), strict=True):
        one.result["versions"] = {"keras": version, "numpy": "2.0"}
    assert mixture_notes(records[1:]) == []
    assert (
        provenance_notes(records)[1:]
        == mixture_notes(records)
        == ["The runs are of several versions of keras: 3.14.0, 3.15.1."]
    )


def test_metrics_that_were_computed_later_are_named():
    later = record("abc")
    added = {"names": ["soft_rank", "mean_margin"], "git_revision": "0123456789abcdef"}
    later.result["added_metrics"] = [added, {"names": ["trace"], "git_revision": None}]
    assert provenance_notes([record("abc"), later, later])[1:] == [
        "In 2 of 3 runs these metrics were computed later, from the saved networks (commit "
        "0123456789ab): soft_rank, mean_margin.",
        "In 2 of 3 runs these metrics were computed later, from the saved networks (commit not "
        "known): trace.",
    ]


def test_all_data_are_named():
    notes = provenance_notes([record("abc"), record("abc", "digits", "f00")])
    assert len(notes) == 2
    assert notes[1] == "Data: digits, of an origin that is not known (fingerprint f00)."


def test_tables_have_the_notes_below(tmp_path, capsys):
    publish_table(tmp_path, "table", [["a"], ["1 %"]], notes=["50 % known.", "Second."])
    markdown = (tmp_path / "table.md").read_text()
    assert markdown.endswith("| 1 % |\n\n50 % known. Second.\n")
    assert markdown in capsys.readouterr().out
    assert (tmp_path / "table.tex").read_text().endswith("tabular}\n% 50 % known.\n% Second.\n")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts an experiment; returns whether its runs would have been executed."""
    started = []
    for name in ("run_experiment", "print_plan"):
        monkeypatch.setattr(experiment, name, lambda *given: started.append(given))
    monkeypatch.setattr(experiment, "_check_datasets", lambda *_: None)

    def start(preset, **options):
        given = ExperimentOptions(preset=preset, output_dir=str(tmp_path), **options)
        execute_runs(scenario_runs("scenario_confusion", PRESET), PRESET, given)
        return len(started)

    return start


def test_presets_for_results_refuse_a_tree_with_uncommitted_changes(start, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git_revision", lambda: "abc-dirty")
    for preset in ("paper", "laptop"):
        with pytest.raises(ValueError, match=f"--preset={preset} is for results, .* commit them"):
            start(preset)
    assert start("smoke") == 1
    assert start("laptop", dry_run=True) == 2
    store = ExperimentStore(tmp_path)
    for run in scenario_runs("scenario_confusion", PRESET):
        store.write_definition(run, record)
        store.finish(run, {}, 1.0)
    assert start("laptop") == 3  # There is nothing to execute: the table may be made.


@pytest.mark.parametrize("revision", ["abc", None])
def test_a_commit_and_an_installed_package_start(start, monkeypatch, revision):
    monkeypatch.setattr(provenance, "git_revision", lambda: revision)
    assert start("paper") == 1


@pytest.mark.parametrize("name", ["cifar10", "folder"])
def test_runs_of_other_images_are_not_gone_on_with(name, monkeypatch):
    images = types.SimpleNamespace(fingerprint="b")
    monkeypatch.setattr(experiment, "load_dataset", lambda *_: images)
    missing = [Run("test", {"training": {"dataset": name}}, 1, 1, "missing")]
    others = [dataclasses.replace(record("abc", name, "a"), experiment="another")]
    others += [record("abc", "digits", "a"), record("abc", name, "b"), record("abc", name, None)]
    loaded = experiment.cached_loader("photos", False)
    experiment._check_same_images(missing, others, loaded)
    with pytest.raises(ValueError, match=f"--dataset={name} has other images here"):
        experiment._check_same_images(missing, [record("abc", name, "a")], loaded)
