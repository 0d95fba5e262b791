"""Logs of metrics: of published records, and of runs."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from wsbench.records import METRICS_SUFFIX
from wsbench.run.folder import METRICS
from wsbench.run.lines import read_metrics

Series = Mapping[str, Mapping[int, float]]
Logs = Mapping[str, Series]
"""``{record: {metric: {step: value}}}``"""


def find_logs(folders: Sequence[Path], only: Collection[str] | None = None) -> Logs:
    """``{record: its log of metrics}`` of published records and of runs.

    Args:
        folders: where they lie.
        only: records whose logs are read; None: all.
    """
    paths: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob(f"*{METRICS_SUFFIX}")):
            paths.setdefault(path.name.removesuffix(METRICS_SUFFIX), path)
        for path in sorted(folder.rglob(METRICS)):
            paths.setdefault(path.parent.name, path)
    return {name: read_metrics(path) for name, path in paths.items() if only is None or name in only}
