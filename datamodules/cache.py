"""What is derived from a dataset and kept outside it, each file saying what it was derived from."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsbench.datamodules.mini.store import cache_root
from wsbench.records import write_text_atomically


def stamp(path: Path) -> list[int]:
    """Size, times of change and number of a file: while they are the same, its content is taken to be.

    The time of change of the content can be set by anybody (archives and copies do), that of the file itself cannot.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


#: of what is kept; what earlier code derived otherwise must not be taken for what this one would
FORMAT = 1


def _file(kind: str, place: Path) -> Path:
    name = hashlib.sha256(str(place.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_root() / f"{kind}-{FORMAT}" / f"{name}.json"


def read_kept(kind: str, place: Path) -> dict[str, Any]:
    """What was kept of ``place``; empty if nothing was, or if it cannot be read: it can be derived again."""
    path = _file(kind, place)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def keep(kind: str, place: Path, content: dict[str, Any]) -> None:
    """Keep it; a cache that cannot be written costs time at the next start, and nothing else."""
    try:
        write_text_atomically(_file(kind, place), json.dumps(content))
    except OSError:
        return


def derived(kind: str, path: Path, derive: Callable[[], Any]) -> Any:
    """What ``derive()`` makes of one file, kept until the file changes."""
    kept = read_kept(kind, path)
    now = stamp(path)
    if kept.get("stamp") == now:
        return kept["value"]
    value = derive()
    keep(kind, path, {"stamp": now, "value": value})
    return value
