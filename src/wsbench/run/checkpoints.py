"""How checkpoints get onto the disk: whole, or the one before stays; and how a damaged one is replaced by that one."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wsbench.errors import UserError
from wsbench.run.folder import LAST, PREVIOUS

#: of the files that are being written; what a killed process left of them is removed by the next
PART = ".part-"


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, renames. ``last.ckpt`` keeps the one before as ``previous.ckpt``.

    Lightning's own writes into the temporary folder and moves: between file systems that truncates the good checkpoint
    and copies over it. Reading runs no code: weights_only. Removing removes checkpoints in the run's own folders only:
    which ones a callback takes for its own is restored from the checkpoint that a run resumes from, whoever made that.

    Args:
        folders: in which checkpoints may be removed; asked when one is to be.
    """

    def __init__(self, folders: Callable[[], Iterable[Any]] = tuple) -> None:
        super().__init__()
        self._folders = folders

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint of the run; anything else stays, with a warning."""
        target = Path(str(path))
        allowed = [Path(folder).resolve() for folder in self._folders() if folder]
        # the file's own name, in a folder that is one of these: no protocol, no link, no way up
        if (target.name in ("", "..") or target.parent.resolve() not in allowed or target.suffix != ".ckpt"
                or target.is_symlink() or not target.is_file()):  # fmt: skip
            if target.exists() or "://" in str(path):
                rank_zero_warn(f"'{path}' is no checkpoint in this run's folder, and is not removed")
            return
        target.unlink(missing_ok=True)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it.

        Raises:
            CheckpointError: there is no room, or the folder cannot be written to; what was there is there.
        """
        target = Path(path)
        part = target.with_name(f"{PART}{os.getpid()}-{target.name}")
        with _said(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _require_room(checkpoint, target)
            try:
                with part.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if target.name == LAST and target.exists():
                    _keep(target, target.with_name(PREVIOUS))
                os.replace(part, target)
                _flush_names(target.parent)
            finally:
                with contextlib.suppress(OSError):  # the first error is the one to see
                    part.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it, on the CPU unless ``map_location`` says otherwise; it holds tensors and plain values only."""
        where = (lambda storage, location: storage) if map_location is None else map_location
        content: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
        return content


def size_of(checkpoint: Any) -> int:
    """Bytes of the tensors; those that share memory are counted twice."""
    return sum(t.nbytes for t in tree_leaves(checkpoint) if isinstance(t, Tensor))


def _require_room(checkpoint: dict[str, Any], target: Path) -> None:
    needed, free = size_of(checkpoint), shutil.disk_usage(target.parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"it takes {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free")


def _keep(target: Path, name: Path) -> None:
    """Let ``name`` be the file that ``target`` is now, without a moment in which ``target`` is not there."""
    link = name.with_name(f"{PART}{os.getpid()}-{name.name}")
    link.unlink(missing_ok=True)
    try:
        os.link(target, link)
    except OSError:  # a file system without links: for a moment only the name before is there, which is read too
        os.replace(target, name)
        return
    try:
        os.replace(link, name)
    finally:
        link.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """So that after a power cut the folder, too, says what it said."""
    with contextlib.suppress(OSError):  # some network file systems do not know it
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _said(target: Path) -> Iterator[None]:
    """An error of the file system, or what torch makes of it, in a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) else _why(target.parent)
        existing = [name for name in (target.name, PREVIOUS) if target.with_name(name).is_file()]
        kept = f"'{target.with_name(existing[0])}' is as it was" if existing else "there is none before it"
        raise CheckpointError(
            f"the checkpoint '{target}' cannot be written: {reason}; {kept}. Make room (or the folder writable) and "
            "start the same command with --ckpt_path auto"
        ) from error


def _why(folder: Path) -> str:
    """Torch's writer does not say what the file system said."""
    if not os.access(folder, os.W_OK):
        return "the folder cannot be written to"
    return f"the file system took no more ({shutil.disk_usage(folder).free / 2**20:.0f} MiB are free)"


def remove_parts(folder: Path) -> None:
    """Remove what killed processes were writing; whoever calls this has the folder to itself."""
    for part in folder.glob(f"{PART}*"):
        with contextlib.suppress(OSError):
            part.unlink()
