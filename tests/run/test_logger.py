"""The log of a run: nothing twice, nothing lost silently."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.running import fit, only_run
from wsbench.run import lines, logger
from wsbench.run.folder import METRICS
from wsbench.run.logger import JSONLLogger, LogError


def test_a_resumed_run_does_not_log_again_what_is_there(tmp_path: Path) -> None:
    """Killed between its last evaluation and its record, a run evaluates again."""
    first = JSONLLogger(tmp_path)
    first.log_metrics({"train/loss": 0.5}, 1)
    first.log_metrics({"val/miou": 40.0}, 2)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 3, "train')
    second = JSONLLogger(tmp_path)
    second.log_metrics({"val/miou": 40.0}, 2)
    second.log_metrics({"val/miou": 41.0}, 4)
    found = list(lines.read_lines(tmp_path / METRICS))
    assert found == [{"step": 1, "train/loss": 0.5}, {"step": 2, "val/miou": 40.0}, {"step": 4, "val/miou": 41.0}]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    log = JSONLLogger(tmp_path / "run")
    with pytest.raises(LogError, match=r"'.*run' is gone, removed while it ran"):
        log.log_metrics({"train/loss": 0.5}, 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JSONLLogger(tmp_path)

    def refuse(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(logger, "append_line", refuse)
    with pytest.raises(LogError, match=rf"metrics.jsonl' cannot be written: {os.strerror(number)}; .*--ckpt_path auto"):
        log.log_metrics({"train/loss": 0.5}, 1)


def test_a_run_whose_folder_is_removed_ends_with_a_sentence(
    root: Path, in_a_folder: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = lines.append_line

    def then_remove(path: Path, line: Any) -> None:
        write(path, line)
        shutil.rmtree(path.parent)

    monkeypatch.setattr(logger, "append_line", then_remove)
    assert fit(root, "--trainer.log_every_n_steps", "1", "--tensorboard", "false") == 2
    said = capsys.readouterr().err
    assert "is gone, removed while it ran" in said
    assert "Traceback" not in said


def test_tables_are_derived_at_the_next_start(root: Path, in_a_folder: None) -> None:
    """A run that was killed between its record and the tables."""
    assert fit(root) == 0
    tables = Path("runs/leaderboards")
    before = {path.name: path.read_bytes() for path in tables.iterdir()}
    shutil.rmtree(tables)
    assert fit(root) == 0
    assert {path.name: path.read_bytes() for path in tables.iterdir()} == before
    assert only_run().is_dir()
