"""A run's folder belongs to one process, and goes again only where that process made it and wrote nothing."""

from pathlib import Path

import pytest

from wsbench.__main__ import main
from wsbench.run import lock


def test_folders_that_were_there_stay(tmp_path: Path) -> None:
    there = tmp_path / "runs"
    there.mkdir()
    lock.hold(there / "imagenet" / "id")
    lock.release()
    assert there.is_dir()
    assert not (there / "imagenet").exists()


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    lock.hold(tmp_path / "runs" / "id")
    (tmp_path / "runs" / "id" / "x").touch()
    lock.release()
    assert [p.name for p in (tmp_path / "runs" / "id").iterdir()] == ["x"]


def test_an_empty_working_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "mine"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["fit", "--task", "imagenet", "--recipe", "mini", "--runs", ".", "--model.lr", "-1"]) != 0
    assert here.is_dir()
