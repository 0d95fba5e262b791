"""What the verifications of all datasets share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsbench.datamodules.errors import DatasetError


@dataclass(frozen=True)
class Finding:
    """One line of a verification."""

    what: str
    expected: str
    found: str
    ok: bool
    hint: str = ""
    """What to do if it is not well."""


def count(what: str, expected: int, found: int, hint: str, unit: str = "files") -> Finding:
    """A number of things."""
    return Finding(what, f"{expected:,} {unit}", f"{found:,} {unit}", found == expected, hint)


def missing(what: str, paths: Sequence[Path], hint: str) -> Finding:
    """Files that must be there, the first missing ones named."""
    absent = [p for p in paths if not p.exists()]
    found = f"{len(paths) - len(absent):,} files"
    if absent:
        found += f", missing {', '.join(p.name for p in absent[:3])}{' ...' if len(absent) > 3 else ''}"
    return Finding(what, f"{len(paths):,} files", found, not absent, hint)


def readable(what: str, paths: Sequence[Path], read: Callable[[Path], Any], hint: str, most: int = 50) -> Finding:
    """Some files, evenly from the whole list, read completely."""
    tried = [p for p in paths[:: max(1, len(paths) // most)] if p.exists()]
    broken = []
    for path in tried:
        try:
            read(path)
        except DatasetError:
            broken.append(path.name)
    found = f"{len(tried) - len(broken)}" + "".join(f", broken: {name}" for name in broken[:3])
    return Finding(what, f"{len(tried)} of {len(tried)} tried", found, not broken, hint)


def next_step(task: str, root: Path, findings: Sequence[Finding]) -> str:
    """What to do now: the first hint, or the command that trains."""
    wrong = [f for f in findings if not f.ok]
    if not wrong:
        return f"ready: python -m wsbench fit --task {task} --norm gn+ws --data.root {root}"
    return next((f.hint for f in wrong if f.hint), f"repair: {', '.join(f.what for f in wrong)}")
