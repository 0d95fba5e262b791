"""``python -m wsbench sweep``."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wsbench.errors import UserError, printable
from wsbench.grid import plan as plans
from wsbench.grid import show
from wsbench.grid.cells import CLAIM, Cell, Status, now, status
from wsbench.grid.definition import RESERVED, Definition, GridError, load, sweep_names
from wsbench.grid.launcher import Launcher
from wsbench.grid.local import LocalLauncher, options_of
from wsbench.grid.tuned import DIVERGED, Protocol, methods
from wsbench.run.lines import append_line, read_lines
from wsbench.run.lock import LOCK, remove_if_free
from wsbench.run.report import console, duration

HISTORY = "history.jsonl"


class UnfinishedError(UserError, RuntimeError):
    """Some cells are not done; the table has said which."""

    exit_status = 1


class StoppedError(UserError, RuntimeError):
    """The sweep was interrupted."""

    exit_status = 128 + signal.SIGINT


def _options(args: argparse.Namespace) -> list[str]:
    """What the launcher adds to a cell's options."""
    _require_numbers(args)
    return options_of(args.devices) if args.launcher == "local" else list(_launcher(args).options())


def _require_numbers(args: argparse.Namespace) -> None:
    for name in ("devices", "jobs", "nodes", "time"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise GridError(f"--{name} {getattr(args, name)}: at least 1")
    if args.retries < 0:
        raise GridError(f"--retries {args.retries}: at least 0")
    if args.launcher != "slurm" and args.nodes > 1:
        raise GridError(f"--nodes {args.nodes} is for --launcher slurm")


def _launcher(args: argparse.Namespace) -> Launcher:
    _require_numbers(args)
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
    return LocalLauncher(args.jobs, args.devices, args.retries)


def _choice(args: argparse.Namespace, name: str, further: Sequence[str]) -> plans.Choice:
    for option in RESERVED:
        if any(word.split("=")[0] == f"--{option}" for word in further):
            raise GridError(f"--{option} may not stand behind --; the sweep sets it")
    twice = next((name for name, _ in args.axis if [n for n, _ in args.axis].count(name) > 1), None)
    if twice is not None:
        raise GridError(f"--axis {twice} is said twice")
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
    for cell in plan.cells:
        for name in (CLAIM, LOCK):  # of processes that were killed
            remove_if_free(cell.folder / name)
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


def _status(
    args: argparse.Namespace, names: Sequence[str], further: Sequence[str], resolver: Callable[[], plans.Resolve]
) -> None:
    out = console()
    if names:
        choice, options = _choice(args, names[0], further), _options(args)
        definition = load(names[0])
        if definition.tuned:
            protocol, recipe = protocol_of(choice, definition, resolver(), options)
            stage = protocol.stage()
            plan = plan_of(choice, definition, recipe, protocol.cells(stage))
            show.table(plan, _statuses(plan), all_of_them=True)
            return show.tuned(protocol, stage)
        written = None if args.resolve else plans.as_written(choice, options)
        if written is None:
            plan = plans.make(choice, resolver(), options)
        else:
            plan, when = written
            out.print(f"cells as of {when}; --resolve finds out what has changed in configurations and data since")
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
        last = ([*read_lines(history)] or [{}])[-1] if history.exists() else {}
        line = f"{folder.name}: {last.get('states', 'being run')}, last ended {last.get('ended', '-')}"
        out.print(printable(line), markup=False)


def _list() -> None:
    for name in sweep_names():
        definition = load(name)
        print(f"{name:8} {definition.about} ({', '.join(definition.grids or definition.tuned)})")


def main(args: argparse.Namespace, further: Sequence[str], resolver: Callable[[], plans.Resolve]) -> int:
    """Run, look at, or list sweeps; returns the exit status.

    Args:
        args: the command line.
        further: what stands behind ``--``.
        resolver: makes what says which run a command line of ``fit`` is.
    """
    if args.words == ["list"]:
        _list()
        return 0
    if args.runs.exists() and not args.runs.is_dir():
        raise GridError(f"--runs '{args.runs}' is a file; name a folder")
    if args.words[0] == "status":
        if len(args.words) > 2:
            raise GridError(f"status of one sweep at a time, not of {', '.join(args.words[1:])}")
        _status(args, args.words[1:], further, resolver)
    elif len(args.words) > 1:
        raise GridError(f"one sweep at a time, not {', '.join(args.words)}; options of fit go behind --")
    else:
        definition = load(args.words[0])  # whose faults are said before anything heavy is imported
        choice = _choice(args, args.words[0], further)
        launcher = _launcher(args)
        if definition.tuned:
            tune(choice, definition, resolver(), launcher, args.dry_run)
            return 0
        plan = plans.make(choice, resolver(), launcher.options(), _is_stale)
        _dry_run(plan) if args.dry_run else _run(plan, launcher)
    return 0


# -- tuned ------------------------------------------------------------------------------------------------------------


def protocol_of(
    choice: plans.Choice, definition: Definition, resolve: plans.Resolve, options: Sequence[str]
) -> tuple[Protocol, str]:
    """The protocol of a tuned sweep, and its recipe.

    Raises:
        GridError: it has no grid of that recipe, or one that makes no sense.
    """
    recipe = choice.recipe or next(iter(definition.tuned))
    if recipe not in definition.tuned:
        raise GridError(f"sweep '{choice.name}' tunes nothing for --recipe {recipe}; there is "
                        f"{', '.join(definition.tuned)}")  # fmt: skip
    grid = definition.tuned[recipe]
    asked = methods(grid, choice.axes, choice.only)
    return Protocol(grid, asked, lambda o: plans.cell_of(o, recipe, choice, resolve, [*DIVERGED, *options])), recipe


def plan_of(choice: plans.Choice, definition: Definition, recipe: str, cells: Sequence[Cell]) -> plans.Plan:
    """The plan of a stage."""
    return plans.Plan(Path(choice.name).stem, recipe, "tuned", definition.about, tuple(cells), choice.runs)


def tune(
    choice: plans.Choice, definition: Definition, resolve: plans.Resolve, launcher: Launcher, dry_run: bool
) -> None:
    """Run both stages, from where the records say that they are."""
    protocol, recipe = protocol_of(choice, definition, resolve, launcher.options())
    while True:
        stage = protocol.stage()
        plan = plan_of(choice, definition, recipe, [cell for _, cell in stage.cells])
        if dry_run:
            _dry_run(plan)
            runs = len(protocol.methods) * len(protocol.grid.seeds)
            print(f"stage {stage.number} as far as it is known; stage 2 has {runs} runs at the chosen rates",
                  file=sys.stderr)  # fmt: skip
            return
        protocol.write_tunings(stage)
        _run(plan, launcher)
        if getattr(launcher, "detached", False):
            console().print("submitted; the same command goes on when these have ended")
            return
        if stage.number == 2:
            return show.tuned(protocol, stage)
