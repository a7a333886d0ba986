"""Files written in one go, and differences between definitions."""

import os

import pytest

from fisher_keras.files import differences, replacing, write_text


def test_a_text_takes_the_place_of_the_old_one_whole(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"

    def full(*_):
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="full"):
            write_text(path, "new")
    assert path.read_bytes() == b"old\r\n"
    write_text(path, "γ")
    assert path.read_text(encoding="utf-8") == "γ"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_several_processes_have_a_hidden_file_each(tmp_path):
    path = tmp_path / "file.txt"
    with replacing(path, shared=True) as first, replacing(path, shared=True) as second:
        assert first != second
        assert {part.parent for part in (first, second)} == {tmp_path}
        assert {part.suffix for part in (first, second)} == {".txt"}
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # Its block was the last to end.


def test_differences_are_named_in_order():
    stored, given = {"b": 1, "a": "x", "same": [1], "gone": 3}, {"a": "y", "b": 2, "same": [1]}
    assert differences(stored, given, "--") == [
        "--a was x, is y",
        "--b was 1, is 2",
        "--gone was 3, is None",
    ]
    assert differences(stored, dict(stored)) == []
