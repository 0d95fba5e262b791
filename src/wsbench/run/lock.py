"""A run's folder belongs to one process at a time; the kernel lets go of it when that process ends, however it ends.

Not ``filelock``, since whoever waits has to read who holds a folder and since when, which it does not write; and a
folder that a failed run made goes with its lock, in which window another process may take it again.
"""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsbench.errors import UserError

LOCK = "run.lock"
#: seconds that a process waits: somebody who only looks has the lock for a moment
PATIENCE = 2.0

_held: dict[Path, int] = {}
#: folders that were not there before; only these go again
_made: set[Path] = set()


class RunBusyError(UserError, RuntimeError):
    """Another process runs this very run."""

    exit_status = 75  # EX_TEMPFAIL: nothing is wrong, but not now


def hold(folder: Path) -> None:
    """Take ``folder`` for this process, until :func:`release` or the end of the process.

    The lock is ``flock``'s: no dead process holds it. On a network file system it holds between hosts where that file
    system has locks (NFS does; Lustre with the mount option ``flock``).

    Raises:
        RunBusyError: a living process has it.
    """
    path = (folder / LOCK).absolute()
    if path in _held:
        return
    deadline = time.monotonic() + PATIENCE
    while (handle := _try(path)) is None:
        if time.monotonic() > deadline:
            raise RunBusyError(f"'{folder}' is being run by {_words(_content(path))}; wait for it or end it")
        time.sleep(0.05)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"pid": os.getpid(), "host": platform.node(), "since": now}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(content).encode(), 0)
    _held[path] = handle


def _try(path: Path) -> int | None:
    """A handle on the locked file; None if somebody else has it, or has just removed it."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    _made.update(missing)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:  # the folder went between the two lines: a run that failed leaves none
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


def discard(started: Sequence[str]) -> None:
    """Of the folders that this process has and made, empty those in which nothing but ``started`` was written."""
    for path in _held:
        folder = path.parent
        if folder not in _made or not folder.is_dir():
            continue
        written = [entry for entry in folder.iterdir() if entry != path]
        if all(entry.name in started or entry.name.startswith("events.out.") for entry in written):
            for entry in written:
                entry.unlink()


def release() -> None:
    """Let go of every folder that this process has; one that it made and wrote nothing in goes too."""
    while _held:
        path, handle = _held.popitem()
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: then it stays
            for folder in path.parents:
                if folder not in _made:
                    break
                folder.rmdir()
                _made.discard(folder)
        fcntl.flock(handle, fcntl.LOCK_UN)  # for data loading workers that inherited the handle, too
        os.close(handle)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Have the file ``path`` locked for a while; False, at once, if somebody else has it."""
    handle = _try(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            fcntl.flock(handle, fcntl.LOCK_UN)  # for data loading workers that inherited the handle, too
            os.close(handle)


def remove_if_free(path: Path) -> None:
    """Remove the lock file of a process that was killed; one that somebody has stays."""
    if path.exists():
        with claimed(path):
            pass


def holder(folder: Path) -> str | None:
    """Who has ``folder``; None if nobody has."""
    path = (folder / LOCK).absolute()
    return _words(_content(path)) if is_locked(path) else None


def is_locked(path: Path) -> bool:
    """Whether somebody has the file ``path``."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # it is just being written
        return {}
    return content if isinstance(content, dict) else {}


def _words(content: dict[str, Any]) -> str:
    if not content:
        return "another process"
    return f"process {content.get('pid')} on {content.get('host')} since {content.get('since')}"
