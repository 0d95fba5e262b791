"""``python -m wsbench sweep``."""

import argparse
from collections.abc import Callable, Sequence

from wsbench.errors import printable
from wsbench.grid import drive, show
from wsbench.grid import plan as plans
from wsbench.grid.definition import RESERVED, GridError, load, sweep_names
from wsbench.grid.launcher import Launcher
from wsbench.grid.local import LocalLauncher, options_of
from wsbench.run.lines import read_lines
from wsbench.run.report import console


def _options(args: argparse.Namespace) -> list[str]:
    """What the launcher adds to a cell's options."""
    _require_numbers(args)
    return options_of(args.devices) if args.launcher == "local" else list(launcher_of(args).options())


def _require_numbers(args: argparse.Namespace) -> None:
    for name in ("devices", "jobs", "nodes", "time"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise GridError(f"--{name} {getattr(args, name)}: at least 1")
    if args.retries < 0:
        raise GridError(f"--retries {args.retries}: at least 0")
    if args.launcher != "slurm" and args.nodes > 1:
        raise GridError(f"--nodes {args.nodes} is for --launcher slurm")


def launcher_of(args: argparse.Namespace) -> Launcher:
    """The launcher that the options of :func:`wsbench.cli.arguments.launching` ask for.

    Raises:
        GridError: a number makes no sense.
    """
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


def _choice(args: argparse.Namespace, name: str, further: Sequence[str]) -> plans.SweepRequest:
    for option in RESERVED:
        if any(word.split("=")[0] == f"--{option}" for word in further):
            raise GridError(f"--{option} may not come after --; the sweep sets it")
    twice = next((name for name, _ in args.axis if [n for n, _ in args.axis].count(name) > 1), None)
    if twice is not None:
        raise GridError(f"--axis {twice} is said twice")
    if args.records is not None and not args.records.is_dir():
        raise GridError(f"--records '{args.records}' is not a folder")
    return plans.SweepRequest(
        name, args.recipe, dict(args.axis), dict(args.only), args.runs, further, args.rerun_stale, args.records
    )


def _status(
    args: argparse.Namespace, names: Sequence[str], further: Sequence[str], resolver: Callable[[], plans.Resolve]
) -> None:
    out = console()
    if names:
        choice, options = _choice(args, names[0], further), _options(args)
        definition = load(names[0])
        if definition.tuned:
            protocol, recipe = drive.protocol_of(choice, definition, resolver(), options)
            stage = protocol.stage()
            plan = drive.plan_of(choice, definition, recipe, protocol.cells(stage))
            show.table(plan, drive.statuses(plan), all_of_them=True)
            return show.tuned(protocol, stage)
        written = None if args.resolve else plans.as_written(choice, options)
        if written is None:
            plan = plans.make(choice, resolver(), options)
        else:
            plan, when = written
            out.print(f"cells as of {when}; --resolve finds out what has changed in configurations and data since")
        show.table(plan, drive.statuses(plan), all_of_them=True)
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
        history = folder / drive.HISTORY
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
        raise GridError(f"one sweep at a time, not {', '.join(args.words)}; options of fit come after --")
    else:
        definition = load(args.words[0])  # whose faults are said before anything heavy is imported
        choice = _choice(args, args.words[0], further)
        launcher = launcher_of(args)
        if definition.tuned:
            ended = drive.tune(choice, definition, resolver(), launcher, args.dry_run)
            if ended is not None:
                show.tuned(*ended)
            return 0
        plan = plans.make(choice, resolver(), launcher.options(), drive.is_stale)
        drive.print_commands(plan) if args.dry_run else drive.run(plan, launcher)
    return 0
