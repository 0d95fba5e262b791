"""An append-only log of metrics that survives being resumed (Lightning's CSVLogger deletes its file then)."""

import json
import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from wsbench.run.folder import METRICS


class JSONLLogger(Logger):
    """One JSON object a line: ``{"step": 12, "train/loss": 0.5}``; nothing is ever removed.

    A run that was killed and resumed repeats the steps since its checkpoint; :func:`read_metrics` keeps the last.

    Args:
        folder: the run's folder, where ``metrics.jsonl`` is appended to.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._folder.name

    @property
    def version(self) -> str:
        """Empty: the folder is the version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line."""
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        line = {"step": step} | {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        append_line(self._folder / METRICS, line)


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
    """The lines of such a file; those that a kill tore are passed over."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """``{metric: {step: value}}`` of a log; the last of a step counts, lines that a kill tore are passed over."""
    series: dict[str, dict[int, float]] = {}
    for values in read_lines(path):
        step = values.pop("step")
        for name, value in values.items():
            series.setdefault(name, {})[step] = float(value)
    return series
