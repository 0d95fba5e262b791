"""Grids of cells that take a few seconds each."""

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import TINY

#: the fields of a run that takes a second
OPTIONS = dict(zip((name.removeprefix("--") for name in TINY[::2]), map(yaml.safe_load, TINY[1::2]), strict=True))


def write_grid(folder: Path, data: Path, axes: dict[str, list[Any]], **options: Any) -> str:
    """A definition on the tiny VOC under ``data``; its path."""
    fields = {k: v for k, v in OPTIONS.items() if k != "recipe"} | {"data.root": str(data)} | options
    content = {"about": "A test", "grids": {"mini": {"options": fields, "axes": axes}}}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def folders(runs: Path = Path("runs")) -> list[Path]:
    """Of all runs."""
    return sorted((runs / "voc").iterdir())
