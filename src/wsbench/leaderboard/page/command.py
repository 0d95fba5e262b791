"""``python -m wsbench report``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from wsbench.leaderboard.check import METRICS_SUFFIX
from wsbench.leaderboard.page.charts import Logs, Series, figures
from wsbench.leaderboard.page.render import render
from wsbench.leaderboard.tables import LeaderboardError, find_records
from wsbench.leaderboard.wide import groups
from wsbench.parts import vl_convert
from wsbench.records import write_atomically, write_text_atomically
from wsbench.run.folder import METRICS
from wsbench.run.lines import read_metrics
from wsbench.run.report import console

#: pixels: the width of a column of a paper at 300 dpi is about this, doubled
_WIDTH, _SCALE = 420, 3


def find_logs(folders: Sequence[Path]) -> Logs:
    """``{record: its log of metrics}`` of published records and of runs."""
    found: dict[str, Series] = {}
    for folder in folders:
        for path in sorted(folder.rglob(f"*{METRICS_SUFFIX}")):
            found.setdefault(path.name.removesuffix(METRICS_SUFFIX), read_metrics(path))
        for path in sorted(folder.rglob(METRICS)):
            found.setdefault(path.parent.name, read_metrics(path))
    return found


def report(records: Sequence[Path], out: Path, png: Path | None) -> list[Path]:
    """Write the page, and its figures where they are asked for; returns what was written.

    Raises:
        LeaderboardError: there is no record.
        MissingPartError: Altair, vl-convert or Jinja is not installed.
    """
    folders = [folder for folder in records if folder.is_dir()]
    runs = find_records(folders)
    if not runs:
        raise LeaderboardError(f"no records below {', '.join(map(str, records))}; run `fit` or `sweep` first")
    found, logs = groups(runs), find_logs(folders)
    write_text_atomically(out, render(found, logs))
    written = [out]
    if png is not None:
        convert = vl_convert()
        for figure in figures(found, logs, _WIDTH):
            picture = convert.vegalite_to_png(figure.chart.to_dict(), scale=_SCALE)
            write_atomically(png / f"{figure.name}.png", picture)
            written.append(png / f"{figure.name}.png")
    return written


def main(args: argparse.Namespace) -> int:
    """Write the report; returns 0."""
    for path in report(args.records, args.out, args.png):
        console().print(f"wrote {path}", soft_wrap=True, markup=False)
    return 0
