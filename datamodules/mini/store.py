"""Where miniatures live: made once, in one piece, and checked by checksum each time they are opened."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from wsbench.records import sha256_of

MANIFEST = "manifest.json"


def cache_root() -> Path:
    """``$WSBENCH_CACHE``, or ``wsbench`` in the user's cache folder."""
    if explicit := os.environ.get("WSBENCH_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsbench"


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}


def is_intact(folder: Path) -> bool:
    """Whether ``folder`` holds exactly the files that were written into it."""
    manifest = folder / MANIFEST
    return manifest.is_file() and json.loads(manifest.read_text()) == _checksums(folder)


def ensure(name: str, write: Callable[[Path], None], root: Path | None = None) -> Path:
    """The folder of miniature ``name``, made by ``write(folder)`` if it is not there or not intact.

    It is written beside its place and renamed, so a reader never sees half of it; of two writers one wins.
    """
    folder = (root or cache_root()) / "mini" / name
    if is_intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        write(temporary)
        (temporary / MANIFEST).write_text(json.dumps(_checksums(temporary), indent=0))
        if folder.exists() and not is_intact(folder):
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError:
            if not is_intact(folder):  # else another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
