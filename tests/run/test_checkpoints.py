"""A checkpoint is whole, or the one before: whatever the file system does, and wherever a process is killed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.test_stopping import at_micro_step, kill, line, same, weights
from wsbench.__main__ import main
from wsbench.run.checkpoints import CheckpointError, WholeCheckpoints, remove_parts, size_of

Usage = namedtuple("Usage", "total used free")


def content(step: int) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((4, 4), float(step))}, "global_step": step}


def saved(folder: Path) -> dict[str, int]:
    return {p.name: torch.load(p, weights_only=True)["global_step"] for p in folder.glob("[!.]*.ckpt")}


def test_the_last_but_one_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        WholeCheckpoints().save_checkpoint(content(step), tmp_path / "last.ckpt")
        WholeCheckpoints().save_checkpoint(content(step), tmp_path / "best.ckpt")
    assert saved(tmp_path) == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 3}
    assert not [*tmp_path.glob(".part-*")]


def test_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    test_the_last_but_one_is_kept(tmp_path)


@pytest.mark.parametrize(
    ("place", "number"),
    [("save", errno.ENOSPC), ("fsync", errno.EDQUOT), ("replace", errno.EROFS), ("fsync", errno.EIO)],
)
def test_what_the_file_system_refuses(place: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WholeCheckpoints().save_checkpoint(content(1), tmp_path / "last.ckpt")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*{"save": (torch, "save"), "fsync": (os, "fsync"), "replace": (os, "replace")}[place], refuse)
    with pytest.raises(CheckpointError, match=rf"last.ckpt' cannot be written: {os.strerror(number)}; .*as it was"):
        WholeCheckpoints().save_checkpoint(content(2), tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert saved(tmp_path)["last.ckpt"] == 1
    assert not [*tmp_path.glob(".part-*")]


def test_room_is_looked_for_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {"state_dict": {"w": torch.zeros(1 << 20)}, "again": torch.zeros(4)}
    assert size_of(big) == (4 << 20) + 16
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 9, 1 << 20))
    monkeypatch.setattr(torch, "save", lambda *a: pytest.fail("it was begun"))
    with pytest.raises(CheckpointError, match="it takes 4 MiB, 1 MiB are free; there is none before it"):
        WholeCheckpoints().save_checkpoint(big, tmp_path / "last.ckpt")


#: a process whose children are killed, each at another system call by which a checkpoint gets onto the disk; it prints
#: how each ended
KILLED = """
import os, signal, sys
import torch
from pathlib import Path
from wsbench.run.checkpoints import WholeCheckpoints

def child(place, folder):
    folder.mkdir()
    seen = [0]
    def counted(function):
        def call(*args, **kwargs):
            seen[0] += 1
            if seen[0] == place:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    save = WholeCheckpoints().save_checkpoint
    save({"state_dict": {}, "global_step": 1}, folder / "last.ckpt")
    save({"state_dict": {}, "global_step": 2}, folder / "last.ckpt")
    for module, name in ((torch, "save"), (os, "fsync"), (os, "link"), (os, "replace"), (os, "open")):
        setattr(module, name, counted(getattr(module, name)))
    save({"state_dict": {}, "global_step": 3}, folder / "last.ckpt")

for place in range(1, 12):
    pid = os.fork()
    if not pid:
        try:
            child(place, Path(sys.argv[1], str(place)))
        except BaseException:
            os._exit(1)
        os._exit(9)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_killed_at_any_call(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, capture_output=True, text=True)
    for place, ended in enumerate(map(int, done.stdout.split()), start=1):
        assert ended in (-signal.SIGKILL, 9)
        folder = tmp_path / str(place)
        found = saved(folder)
        assert found["last.ckpt"] in (2, 3)
        assert found.get("previous.ckpt") in (1, 2)
        remove_parts(folder)
        assert not [*folder.glob(".part-*")]
        if ended == 9:  # it was not killed: that were all calls
            break
    else:
        pytest.fail("more calls than thought")
    assert place > 5


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": Evil()}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        WholeCheckpoints().load_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["cut off", "empty", "gone", "text"])
def test_a_damaged_last_one_is_replaced_by_the_one_before(
    damage: str, tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tiny_roots["imagenet"]
    try:
        assert main(line(root, "--runs", "whole")) == 0
        with monkeypatch.context() as patch:
            at_micro_step(patch, 11, kill(15))
            assert main([*line(root), "--checkpoint_every", "1"]) == 143
        (folder,) = Path("runs/imagenet").iterdir()
        last = folder / "last.ckpt"
        if damage == "gone":
            last.unlink()
        else:
            last.write_bytes({"cut off": last.read_bytes()[:-5000], "empty": b"", "text": b"hello"}[damage])
        (folder / ".part-123-last.ckpt").write_bytes(b"x")
        capsys.readouterr()
        assert main([*line(root), "--ckpt_path", "auto"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "resuming from the one before it" in said
        assert "resumes after step" in said
        assert not [*folder.glob(".part-*")]
        assert same(weights("runs"), weights("whole"))
    finally:
        torch.set_num_threads(before)


def test_what_a_checkpoint_names_is_not_removed_outside_the_run(tmp_path: Path) -> None:
    """Lightning's callbacks restore from a checkpoint which files are theirs, and remove those."""
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        folder.mkdir()
        (folder / "best.ckpt").write_text("x")
    (other / "docs").mkdir()
    (other / "notes.txt").write_text("x")
    (run / "link.ckpt").symlink_to(other / "best.ckpt")
    (run / "notes.txt").write_text("x")
    io = WholeCheckpoints(lambda: [run, None])
    for path in (
        other / "best.ckpt", other / "notes.txt", other / "docs", f"local://{other}/docs", f"file://{other}/best.ckpt",
        run / ".." / "other" / "best.ckpt", run / "link.ckpt", run / "notes.txt", run, run / "none.ckpt", "",
    ):  # fmt: skip
        io.remove_checkpoint(path)
    assert sorted(p.name for p in other.iterdir()) == ["best.ckpt", "docs", "notes.txt"]
    assert sorted(p.name for p in run.iterdir()) == ["best.ckpt", "link.ckpt", "notes.txt"]
    io.remove_checkpoint(run / "best.ckpt")
    assert not (run / "best.ckpt").exists()
    WholeCheckpoints().remove_checkpoint(other / "best.ckpt")
    assert (other / "best.ckpt").exists(), "without a folder of its own nothing is removed"


def test_a_strangers_checkpoint_removes_nothing(
    tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tiny_roots["imagenet"]
    with monkeypatch.context() as patch:
        at_micro_step(patch, 11, kill(15))
        assert main([*line(root), "--checkpoint_every", "1"]) == 143
    (folder,) = Path("runs/imagenet").iterdir()
    victim = tmp_path / "victim" / "best.ckpt"
    victim.parent.mkdir()
    victim.write_text("mine")
    content = torch.load(folder / "last.ckpt", weights_only=True)
    for state in content["callbacks"].values():
        if isinstance(state, dict) and "best_model_path" in state:
            named = str(folder / ".." / ".." / ".." / "victim" / "best.ckpt")
            state |= {
                "best_model_path": named,
                "kth_best_model_path": f"local://{victim.parent}",
                "best_k_models": {f"local://{victim.parent}": torch.tensor(99.0)},
                "last_model_path": named,
            }
            state.pop("dirpath", None)  # fmt: skip
    torch.save(content, tmp_path / "stranger.ckpt")
    assert main([*line(root), "--ckpt_path", str(tmp_path / "stranger.ckpt")]) == 0
    assert victim.read_text() == "mine"
