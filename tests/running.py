"""Runs of a second each, for tests of the command line."""

from pathlib import Path

from tests.conftest import TINY
from wsbench.__main__ import main


def fit(root: Path, *options: str) -> int:
    """``fit`` of the miniature's recipe on the tiny VOC under ``root``."""
    return main(["fit", *TINY, "--data.root", str(root), *options])


def only_run() -> Path:
    """The one run folder below the current folder."""
    (folder,) = (p for p in Path("runs/voc").iterdir())
    return folder
