"""``python -m wsbench report``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from wsbench.extras import vl_convert
from wsbench.leaderboard.logs import find_logs
from wsbench.leaderboard.naming import LeaderboardError, find_records
from wsbench.leaderboard.page.charts import CONFIG, figures
from wsbench.leaderboard.page.render import render
from wsbench.leaderboard.page.tuned_charts import tuned_figures
from wsbench.leaderboard.verdict import verdicts
from wsbench.leaderboard.wide import groups
from wsbench.records import write_atomically, write_text_atomically
from wsbench.run.report import console

#: pixels: the width of a column of a paper at 300 dpi is about this, doubled
_WIDTH, _SCALE = 420, 3


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
    grouped, logs = groups(runs), find_logs(folders)
    write_text_atomically(out, render(grouped, logs))
    written = [out]
    if png is not None:
        convert = vl_convert()
        reported = [group for group in grouped if not group.is_trial]
        own_rate = [figure for _, each in tuned_figures(verdicts(grouped), logs, _WIDTH) for figure in each]
        for figure in (*figures(reported, logs, _WIDTH), *own_rate):
            image = convert.vegalite_to_png({**figure.chart.to_dict(), "config": CONFIG}, scale=_SCALE)
            write_atomically(png / f"{figure.name}.png", image)
            written.append(png / f"{figure.name}.png")
    return written


def main(args: argparse.Namespace) -> int:
    """Write the report; returns 0."""
    for path in report(args.records, args.out, args.png):
        console().print(f"wrote {path}", soft_wrap=True, markup=False)
    return 0
