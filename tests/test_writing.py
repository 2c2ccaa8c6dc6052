"""Files that are whole or not there."""

import os

import pytest

from vae_jax import writing


def test_a_file_is_replaced_by_what_was_written(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with writing.atomically(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half():
        with writing.atomically(path) as file:
            file.write(b"half of the n")
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_was_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        seen.append("flushed")
        fsync(descriptor)

    def renamed(*names):
        seen.append("renamed")
        replace(*names)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    with writing.atomically(tmp_path / "a.txt") as file:
        file.write(b"a")
    assert seen == ["flushed", "renamed", "flushed"]


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=r"No space left on device.*a\.txt"),
        writing.atomically(tmp_path / "a.txt") as file,
    ):
        file.write(b"a")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_missing_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"there/a\.txt"),
        writing.atomically(tmp_path / "there" / "a.txt"),
    ):
        pass
