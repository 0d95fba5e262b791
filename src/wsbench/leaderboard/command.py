"""``python -m wsbench leaderboard``."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from wsbench.errors import exit_status
from wsbench.leaderboard.check import check
from wsbench.leaderboard.compare import comparisons
from wsbench.leaderboard.derive import update
from wsbench.leaderboard.submit import submit
from wsbench.leaderboard.tables import PAPER, LeaderboardError, find_records
from wsbench.leaderboard.wide import Group, groups
from wsbench.records import RecordError
from wsbench.run.report import console

ERRORS = (LeaderboardError, RecordError)


class CheckFailedError(LeaderboardError):
    """The leaderboards are wrong; what, was printed."""

    exit_status = 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsbench leaderboard",
        description="Leaderboards from result records: for each task, recipe and dataset a long CSV (a row a metric) "
        "and a wide one (a row for each norm, over its seeds), beside the paper's rows. docs/leaderboards.md explains "
        "every column.",
        epilog="leaderboard check - are the published tables what their records say?   leaderboard submit RUN - "
        "publish a run   leaderboard compare A B - is a difference more than noise?",
    )
    parser.add_argument(
        "--records", type=Path, nargs="+", default=[Path("leaderboards/records"), Path("runs")],
        help="folders to look for records in (default: leaderboards/records runs)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="where the CSV files go")
    return parser


def _line(group: Group, metric: str) -> tuple[str, ...]:
    over = group.spread(metric)
    assert over is not None
    batch = group.first.batch
    norm = group.first.labelled_norm + (f" ({group.overrides})" if group.overrides else "")
    interval = "-" if over.low is None else f"{over.low:.2f} to {over.high:.2f}"
    size = f"{batch.micro_batch} of {batch.effective_batch}"
    std = "-" if over.std is None else f"{over.std:.2f}"
    return (group.table, norm, metric, size, str(over.n), f"{over.mean:.2f}", std, interval)


def _derive(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)
    folders = [folder for folder in args.records if folder.is_dir()]
    written = update(folders, args.out)
    table = Table(title="mean, standard deviation and 95 % interval over seeds, final weights")
    for column in ("table", "norm", "metric", "batch", "seeds", "mean", "sd", "95 %"):
        table.add_column(column, justify="left" if column in ("table", "norm", "metric") else "right")
    found = groups(find_records(folders))
    for group in found:
        table.add_row(*_line(group, PAPER[group.first.task].headline))
    if found:
        console().print(table)
    else:
        console().print(f"no records below {', '.join(map(str, args.records))}; only published rows are written")
    for path in written:
        console().print(f"wrote {path}", soft_wrap=True)


def _check(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="wsbench leaderboard check", description="Are the published tables what their records say?"
    )
    parser.add_argument("--leaderboards", type=Path, default=Path("leaderboards"))
    parser.add_argument("--base", metavar="REVISION", help="of git: no row may be lost since, no mean move unsaid")
    args = parser.parse_args(argv)
    if not (args.leaderboards / "records").is_dir():
        raise LeaderboardError(f"'{args.leaderboards}' holds no records")
    problems = check(args.leaderboards, args.base)
    for problem in problems:
        print(f"wrong: {problem}")
    if problems:
        raise CheckFailedError(f"{len(problems)} thing(s) wrong in '{args.leaderboards}'")
    print(f"{args.leaderboards}: {len(find_records([args.leaderboards / 'records']))} records, every table as they say")


def _submit(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="wsbench leaderboard submit", description="Publish the record of a finished run, after checking it."
    )
    parser.add_argument("run", type=Path, nargs="+", help="folder of a run: runs/TASK/ID")
    parser.add_argument("--leaderboards", type=Path, default=Path("leaderboards"))
    parser.add_argument("--note", default="", help="why, where it renews a published record; stands in the record")
    args = parser.parse_args(argv)
    for run in args.run:
        for path in submit(run, args.leaderboards, args.note)[:2]:
            console().print(f"wrote {path}", soft_wrap=True)


def _compare(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="wsbench leaderboard compare",
        description="The paired t-test of two norms over the seeds that both have, in every table and batch size; p is "
        "corrected for the number of lines (Holm).",
    )
    parser.add_argument("first", help="a norm, for instance gn+ws")
    parser.add_argument("second", help="another")
    parser.add_argument("--records", type=Path, nargs="+", default=[Path("leaderboards/records")])
    args = parser.parse_args(argv)
    found = comparisons(groups(find_records(args.records)), [(args.first, args.second)], together=True)
    if not found:
        raise LeaderboardError(f"no two groups of runs of {args.first} and {args.second} share two seeds")
    table = Table(title=f"{args.first} minus {args.second}")
    for column in ("table", "batch", "metric", "seeds", "difference", "95 %", "p", "in words"):
        table.add_column(column, justify="left" if column in ("table", "metric", "in words") else "right")
    for one in found:
        over, batch = one.test, one.first.first.batch
        table.add_row(
            one.first.table, f"{batch.micro_batch} of {batch.effective_batch}", one.metric, str(over.n),
            f"{over.mean:+.2f}", f"{over.low:+.2f} to {over.high:+.2f}", f"{one.p:.3f}", one.words(),
        )  # fmt: skip
    console().print(table)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"check": _check, "submit": _submit, "compare": _compare}


def main(argv: Sequence[str]) -> int:
    """Derive tables, or check, submit, compare."""
    chosen = COMMANDS.get(argv[0]) if argv else None
    return exit_status(lambda: chosen(argv[1:]) if chosen else _derive(argv), ERRORS)
