"""``python -m wsbench sweep``."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsbench.choose import RECIPES, ChoiceError
from wsbench.errors import exit_status
from wsbench.grid import plan as plans
from wsbench.grid import show
from wsbench.grid.cells import Cell, Status, now, status
from wsbench.grid.definition import GridError, load, parse_values, sweep_names
from wsbench.grid.launcher import Launcher, LauncherError
from wsbench.parts import MissingPartError
from wsbench.records import RecordError
from wsbench.run.lines import append_line
from wsbench.run.progress import duration
from wsbench.run.report import console

LAUNCHERS = ("local", "slurm", "ray")
HISTORY = "history.jsonl"
ERRORS = (ChoiceError, GridError, LauncherError, MissingPartError, RecordError)


class UnfinishedError(RuntimeError):
    """Some cells are not done; the table has said which."""

    exit_status = 1


class StoppedError(RuntimeError):
    """The sweep was interrupted."""

    exit_status = 128 + signal.SIGINT


def _values(text: str) -> tuple[str, list[Any]]:
    try:
        return parse_values(text)
    except GridError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsbench sweep",
        usage="%(prog)s NAME|FILE.yaml [options] [-- options of fit for every cell]\n"
        "       %(prog)s status [NAME|FILE.yaml] [options]\n       %(prog)s list",
        description="Run a grid unattended. A cell is one run, found by its resolved configuration: finished ones are "
        "not run again, changed ones are, interrupted ones are resumed. docs/sweeps.md explains grids and launchers.",
        epilog=f"sweeps: {', '.join(sweep_names())}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words", nargs="+", metavar="NAME", help="a sweep or a YAML file; or `status [NAME]`; or `list`"
    )
    what = parser.add_argument_group("which cells")
    what.add_argument("--recipe", choices=RECIPES, help="default: paper where its datasets are there, else mini")
    what.add_argument(
        "--axis", type=_values, action="append", default=[], metavar="FIELD=V,V", help="replace or add one"
    )
    what.add_argument(
        "--only", type=_values, action="append", default=[], metavar="FIELD=V,V", help="leave the others out"
    )
    what.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders (default: runs)")
    what.add_argument("--records", type=Path, help="a record in this folder counts as done: leaderboards/records")
    what.add_argument("--rerun-stale", action="store_true", help="run again what another version of wsbench has run")
    what.add_argument("--dry-run", action="store_true", help="print every cell's command and run nothing")
    how = parser.add_argument_group("how")
    how.add_argument("--launcher", choices=LAUNCHERS, default="local", help="(default: local)")
    how.add_argument("--jobs", type=int, help="cells at a time; default: what the devices allow (slurm: no limit)")
    how.add_argument("--devices", type=int, default=1, help="devices of a cell on one node; more than 1 is DDP")
    how.add_argument("--retries", type=int, default=0, help="further attempts at a failed cell (default: 0)")
    slurm = parser.add_argument_group("slurm")
    slurm.add_argument("--partition", help="Slurm's partition")
    slurm.add_argument("--time", type=int, default=24 * 60, metavar="MINUTES", help="limit of a job (default: a day)")
    slurm.add_argument("--nodes", type=int, default=1, help="nodes of a cell (default: 1)")
    slurm.add_argument("--cpus", type=int, metavar="N", help="CPU cores a device")
    slurm.add_argument("--memory", type=float, metavar="GB", help="memory of a node's part")
    slurm.add_argument("--no-gpus", action="store_true", help="cells train on CPUs")
    slurm.add_argument(
        "--slurm", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="further: account, qos, ..."
    )
    slurm.add_argument("--no-wait", action="store_true", help="submit and return; `sweep status` says how it goes")
    ray = parser.add_argument_group("ray")
    ray.add_argument("--address", help="of a Ray cluster, for instance auto; default: start one here")
    return parser


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form KEY=VALUE")
    return key, value


def _launcher(args: argparse.Namespace) -> Launcher:
    for name in ("devices", "jobs", "nodes", "time"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise GridError(f"--{name} {getattr(args, name)}: at least 1")
    if args.retries < 0:
        raise GridError(f"--retries {args.retries}: at least 0")
    if args.launcher != "slurm" and args.nodes > 1:
        raise GridError(f"--nodes {args.nodes} is for --launcher slurm")
    if args.launcher == "slurm":
        from wsbench.grid.slurm import Job, SlurmLauncher

        job = Job(
            partition=args.partition, minutes=args.time, nodes=args.nodes, devices=args.devices, cpus=args.cpus,
            gigabytes=args.memory, gpus=not args.no_gpus, at_once=args.jobs, further=dict(args.slurm),
        )  # fmt: skip
        return SlurmLauncher(job, args.retries, wait=not args.no_wait)
    if args.launcher == "ray":
        from wsbench.grid.ray import RayLauncher

        return RayLauncher(args.address, args.jobs, args.devices, args.retries)
    from wsbench.grid.local import LocalLauncher

    return LocalLauncher(args.jobs, args.devices, args.retries)


def _choice(args: argparse.Namespace, name: str, further: Sequence[str]) -> plans.Choice:
    if args.records is not None and not args.records.is_dir():
        raise GridError(f"--records '{args.records}' is not a folder")
    return plans.Choice(
        name, args.recipe, dict(args.axis), dict(args.only), args.runs, further, args.rerun_stale, args.records
    )


def _statuses(plan: plans.Plan) -> dict[str, Status]:
    former = plans.former_ids(plan.folder)
    return {cell.id: status(cell, former) for cell in plan.cells}


def _is_stale(cell: Cell) -> bool:
    return status(cell).state == "stale"


def _dry_run(plan: plans.Plan) -> None:
    show.commands(plan)
    for problem in plan.problems():
        print(f"wsbench: note: cannot run here: {problem}", file=sys.stderr)
    print(f"{len(plan.cells)} cells of {plan.name}, recipe {plan.recipe} ({plan.reason})", file=sys.stderr)


def _run(plan: plans.Plan, launcher: Launcher) -> None:
    problems = plan.problems()
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GridError(f"nothing is run: {problems[0]}{more}")
    before = _statuses(plan)
    todo = [cell for cell in plan.cells if not cell.finished()]
    out = console()
    out.print(f"{plan.name}: {plan.about}")
    out.print(f"recipe {plan.recipe} ({plan.reason}); {show.counts(list(before.values()))}; {len(todo)} to run")
    plans.write(plan)
    began, start = now(), time.monotonic()
    interrupted = False
    try:
        if todo:
            launcher.run(todo, show.Progress(plan, todo))
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; the same command goes on from the last checkpoints", file=sys.stderr)
    after = _statuses(plan)
    seconds = time.monotonic() - start
    history = {
        "began": began,
        "ended": now(),
        "launcher": launcher.name,
        "ran": len(todo),
        "seconds": round(seconds, 1),
    }
    append_line(plan.folder / HISTORY, history | {"states": show.counts(list(after.values()))})
    show.table(plan, after, all_of_them=False)
    out.print(f"this sweep took {duration(seconds)}; logs: {plan.runs}/TASK/RUN/cell.log; plan: {plan.folder}")
    if interrupted:
        raise StoppedError("interrupted")
    unfinished = sum(s.state in ("failed", "missing", "running") for s in after.values())
    if unfinished and not getattr(launcher, "detached", False):
        raise UnfinishedError(f"{unfinished} of {len(after)} cells are not done")


def _status(args: argparse.Namespace, names: Sequence[str], further: Sequence[str], resolve: plans.Resolve) -> None:
    out = console()
    if names:
        plan = plans.make(_choice(args, names[0], further), resolve, _launcher(args).options())
        show.table(plan, _statuses(plan), all_of_them=True)
        current = {cell.id for cell in plan.cells}
        earlier = plans.read(plan.folder)
        left = [c for c in (*earlier.get("cells", []), *earlier.get("left", [])) if c["id"] not in current]
        if left and not (args.only or args.axis):
            ids = " ".join(dict.fromkeys(f"{c['task']}/{c['id']}" for c in left))
            out.print(f"no longer cells of this sweep, kept: {ids}", soft_wrap=True)
        return
    folders = sorted(path.parent for path in (args.runs / plans.SWEEPS).glob(f"*/{plans.PLAN}"))
    if not folders:
        out.print(f"no sweep was run in '{args.runs}'; `wsbench sweep list` names some")
    for folder in folders:
        history = folder / HISTORY
        last = json.loads(history.read_text(encoding="utf-8").splitlines()[-1]) if history.exists() else {}
        out.print(f"{folder.name}: {last.get('states', 'being run')}, last ended {last.get('ended', '-')}")


def _list() -> None:
    for name in sweep_names():
        definition = load(name)
        print(f"{name:8} {definition.about} ({', '.join(definition.grids)})")


def main(argv: Sequence[str], resolver: Callable[[], plans.Resolve], user_errors: tuple[type[Exception], ...]) -> int:
    """Run, look at, or list sweeps.

    Args:
        argv: the command line, ``sweep`` first.
        resolver: makes what says which run a command line of ``fit`` is.
        user_errors: what resolving raises for the user.
    """
    words, further = _split(argv[1:])
    args = _parser().parse_args(words)

    def work() -> None:
        if args.words == ["list"]:
            return _list()
        if args.words[0] == "status":
            if len(args.words) > 2:
                raise GridError(f"status of one sweep at a time, not of {', '.join(args.words[1:])}")
            return _status(args, args.words[1:], further, resolver())
        if len(args.words) > 1:
            raise GridError(f"one sweep at a time, not {', '.join(args.words)}; options of fit go behind --")
        choice = _choice(args, args.words[0], further)
        launcher = _launcher(args)
        plan = plans.make(choice, resolver(), launcher.options(), _is_stale)
        return _dry_run(plan) if args.dry_run else _run(plan, launcher)

    return exit_status(work, (*ERRORS, *user_errors, UnfinishedError, StoppedError))


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and behind ``--``."""
    line = list(argv)
    if "--" not in line:
        return line, []
    at = line.index("--")
    return line[:at], line[at + 1 :]
