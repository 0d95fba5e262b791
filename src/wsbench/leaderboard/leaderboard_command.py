"""``python -m wsbench leaderboard``."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator

from rich.markup import escape
from rich.table import Table

from wsbench.leaderboard.check import check
from wsbench.leaderboard.compare import comparisons
from wsbench.leaderboard.derive import update
from wsbench.leaderboard.naming import LeaderboardError, find_records
from wsbench.leaderboard.spread import Spread
from wsbench.leaderboard.submit import submit
from wsbench.leaderboard.wide import Group, changes, groups, value_of
from wsbench.registry import TASKS
from wsbench.run.report import console


class CheckFailedError(LeaderboardError):
    """The leaderboards are wrong; what, was printed."""

    exit_status = 1


def _tables(grouped: list[Group]) -> Iterator[Table]:
    """A table for each leaderboard: what the runs changed of the recipe is a column where it differs."""
    for name in dict.fromkeys(group.table for group in grouped):
        mine = [group for group in grouped if group.table == name]
        metric = TASKS[mine[0].first.task].headline
        differ, same = changes(mine)
        table = Table(title=escape(f"{name}: {metric}, over seeds, final weights"),
                      caption=escape(", ".join(f"{o}={v}" for o, v in same.items())) or None)  # fmt: skip
        table.add_column("norm")
        for column in (*differ, "batch", "seeds", "mean", "sd", "95 %"):
            table.add_column(escape(column.removeprefix("model.").removeprefix("trainer.")), justify="right")
        for group in mine:
            over = group.spread(metric)
            if over is not None:
                changed = [value_of(group, option) for option in differ]
                table.add_row(*map(escape, (group.first.labelled_norm, *changed, *_numbers(group, over))))
        yield table


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _batch(group: Group) -> str:
    return f"{group.first.batch.micro_batch} of {group.first.batch.effective_batch}"


def _numbers(group: Group, over: Spread) -> tuple[str, ...]:
    interval = "-" if over.low is None else f"{over.low:.2f} to {over.high:.2f}"
    std = "-" if over.std is None else f"{over.std:.2f}"
    return (_batch(group), str(over.n), f"{over.mean:.2f}", std, interval)


def _derive(args: argparse.Namespace) -> None:
    folders = [folder for folder in args.records if folder.is_dir()]
    written = update(folders, args.out, cited=args.cited)
    grouped = groups(find_records(folders))
    for table in _tables(grouped):
        console().print(table)
    if not grouped:
        console().print(
            f"no records below {', '.join(map(str, args.records))}; --cited writes the published rows alone"
        )
    for path in written:
        console().print(f"wrote {path}", soft_wrap=True)


def _check(args: argparse.Namespace) -> None:
    if not (args.leaderboards / "records").is_dir():
        raise LeaderboardError(f"'{args.leaderboards}' holds no records")
    problems = check(args.leaderboards, args.base)
    for problem in problems:
        print(f"wrong: {problem}")
    if problems:
        raise CheckFailedError(f"{len(problems)} thing(s) wrong in '{args.leaderboards}'")
    print(f"{args.leaderboards}: {len(find_records([args.leaderboards / 'records']))} records, every table as they say")


def _submit(args: argparse.Namespace) -> None:
    written = [path for path in submit(args.run, args.leaderboards, args.note) if path.suffix != ".csv"]
    for path in written:
        console().print(f"wrote {path}", soft_wrap=True)
    if len(args.run) > 1:
        console().print(f"{len(written) // 2} of {len(args.run)} runs published; the others were before")


def _compare(args: argparse.Namespace) -> None:
    if args.first == args.second:
        raise LeaderboardError(f"{args.first} is compared with itself; name two norms")
    records = find_records(args.records)
    folders = ", ".join(f"'{folder}'" for folder in args.records)
    if not records:
        raise LeaderboardError(f"there are no records below {folders}; name a folder that holds some by --records")
    names = {record.labelled_norm for record in records}
    for norm in (args.first, args.second):
        if norm not in names:
            raise LeaderboardError(f"there are no runs of {norm} below {folders}; there are those of "
                                   f"{', '.join(sorted(names))}")  # fmt: skip
    compared = comparisons(groups(records), [(args.first, args.second)], together=True)
    if not compared:
        raise LeaderboardError(f"no two groups of runs of {args.first} and {args.second} share two seeds in a table at "
                               "the same batch and settings")  # fmt: skip
    family = Counter(one.first.first.tuning is not None for one in compared)
    for name in dict.fromkeys(one.first.table for one in compared):
        of_table = [one for one in compared if one.first.table == name]
        of_table.sort(key=lambda one: (one.first.first.batch.effective_batch, one.first.first.batch.micro_batch))
        first, second = (group.first.labelled_norm for group in (of_table[0].first, of_table[0].second))
        table = Table(title=escape(f"{name}: {of_table[0].metric}, {first} minus {second}"))
        for column in ("batch", "seeds", "difference", "95 %", "effect", "p", "verdict"):
            left, whole = column == "verdict", column not in ("95 %", "effect")
            table.add_column(column, justify="left" if left else "right", no_wrap=whole)
        for one in of_table:
            over = one.test
            table.add_row(*map(escape, (
                _batch(one.first), str(over.n), f"{over.mean:+.2f}",
                f"{over.low:+.2f} to {over.high:+.2f}",
                "-" if over.effect is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*over.effect), _p(one.p),
                one.words(),
            )))  # fmt: skip
        console().print(table)
    parts = [f"{family[own]} at {rates}" for own, rates in ((True, "own rates"), (False, "one rate")) if family[own]]
    console().print(f"p is corrected (Holm) for all lines above: {' and, apart from them, '.join(parts)}; "
                    "the page corrects for those of other pairs in the same table", markup=False)  # fmt: skip


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "leaderboard": _derive, "leaderboard check": _check, "leaderboard submit": _submit, "leaderboard compare": _compare,
}  # fmt: skip


def main(command: str, args: argparse.Namespace) -> int:
    """Derive tables, or check, submit, compare; returns 0."""
    COMMANDS[command](args)
    return 0
