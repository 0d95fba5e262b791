"""Logs of metrics: of published records, and of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from wsbench.run.folder import METRICS
from wsbench.run.lines import read_metrics

#: of the log beside a published record
METRICS_SUFFIX = ".metrics.jsonl"

Series = Mapping[str, Mapping[int, float]]
Logs = Mapping[str, Series]
"""``{record: {metric: {step: value}}}``"""


def find_logs(folders: Sequence[Path]) -> Logs:
    """``{record: its log of metrics}`` of published records and of runs."""
    found: dict[str, Series] = {}
    for folder in folders:
        for path in sorted(folder.rglob(f"*{METRICS_SUFFIX}")):
            found.setdefault(path.name.removesuffix(METRICS_SUFFIX), read_metrics(path))
        for path in sorted(folder.rglob(METRICS)):
            found.setdefault(path.parent.name, read_metrics(path))
    return found
