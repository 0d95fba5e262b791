"""An append-only log of metrics that survives being resumed (Lightning's CSVLogger deletes its file then)."""

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from wsbench.errors import UserError
from wsbench.run.folder import METRICS
from wsbench.run.lines import append_line, read_lines


def _place(line: Mapping[str, Any]) -> str:
    """What a line is about: its step and its metrics."""
    return f"{line.get('step')} {' '.join(sorted(line))}"


class LogError(UserError, OSError):
    """A log that cannot be written; the message says why, and how to resume the run."""


class JSONLLogger(Logger):
    """One JSON object a line: ``{"step": 12, "train/loss": 0.5}``; nothing is ever removed.

    A run that was killed and resumed repeats the steps since its checkpoint. A line that is there is not written again;
    of lines that differ :func:`wsbench.run.lines.read_metrics` takes the last.

    Args:
        folder: the run's folder, where ``metrics.jsonl`` is appended to.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        path = folder / METRICS
        self._there: dict[str, str] = {}
        for line in read_lines(path) if path.is_file() else ():
            self._there[_place(line)] = json.dumps(line, sort_keys=True)

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
    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        line = {"step": step} | {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        text = json.dumps(line, sort_keys=True)
        if self._there.get(_place(line)) == text:
            return
        if not self._folder.is_dir():
            raise LogError(
                f"the run's folder '{self._folder}' is gone, removed while it ran; start the same command again"
            )
        try:
            append_line(self._folder / METRICS, line)
        except OSError as error:
            raise LogError(f"the log '{self._folder / METRICS}' cannot be written: {error.strerror}; make room (or the "
                           "folder writable) and start the same command with --ckpt_path auto") from error  # fmt: skip
        self._there[_place(line)] = text
