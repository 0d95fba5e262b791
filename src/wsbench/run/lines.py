"""Append-only files of one JSON object a line; torch-free."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a JSON object as a line of its own, and see it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
            file.write(b"\n")  # a kill tore the last line; do not append to it
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of such a file; those that a kill tore, and what else is no object, are passed over."""
    for line in path.read_bytes().splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """``{metric: {step: value}}`` of a log; the last of a step counts, lines that a kill tore are passed over."""
    series: dict[str, dict[int, float]] = {}
    for values in read_lines(path):
        step = values.pop("step", None)
        if not isinstance(step, int):
            continue
        for name, value in values.items():
            with contextlib.suppress(TypeError, ValueError, OverflowError):  # somebody else's line
                series.setdefault(name, {})[step] = float(value)  # infinity is text in JSON
    return series
