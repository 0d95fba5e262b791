"""``python -m wsbench leaderboard``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wsbench.leaderboard.tables import PAPER, find_records, summary, update
from wsbench.records import RecordError


def main(argv: Sequence[str]) -> int:
    """Derive the CSV files and print mean and standard deviation over seeds."""
    parser = argparse.ArgumentParser(
        prog="wsbench leaderboard",
        description="Derive leaderboards from result records: one CSV for each task, recipe and dataset, and the "
        "paper's own rows beside those of its recipe.",
    )
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        default=[Path("leaderboards/records"), Path("runs")],
        help="folders to look for records in (default: leaderboards/records runs)",
    )
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="where the CSV files go")
    args = parser.parse_args(argv)
    folders = [folder for folder in args.records if folder.is_dir()]
    try:
        records = find_records(folders)
    except RecordError as error:
        print(f"wsbench: error: {error}", file=sys.stderr)
        return 2
    table = Table(title="mean and standard deviation over seeds, final weights")
    for column in ("table", "norm", "metric", "seeds", "mean", "sd"):
        table.add_column(column, justify="left" if column in ("table", "norm", "metric") else "right")
    for task in sorted({record.task for record in records}):
        metric = PAPER[task].headline
        for name, norm, seeds, mean, sd in summary([r for r in records if r.task == task], metric):
            table.add_row(name, norm, metric, str(seeds), f"{mean:.2f}", "-" if sd is None else f"{sd:.2f}")
    console = Console()
    if records:
        console.print(table)
    else:
        console.print(f"no records below {', '.join(map(str, args.records))}; only the paper's rows are written")
    for path in update(folders, args.out):
        console.print(f"wrote {path}", soft_wrap=True)
    return 0
