"""Running a plan, or both stages of a tuned one: what is left of it, by a launcher, with what it says."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from wsbench.errors import UserError
from wsbench.grid import plan as plans
from wsbench.grid import show
from wsbench.grid.cells import CLAIM, Cell, Status, now, status
from wsbench.grid.definition import Definition, GridError
from wsbench.grid.launcher import Launcher
from wsbench.grid.tuned import DIVERGED, Protocol, Stage, methods
from wsbench.run.lines import append_line
from wsbench.run.lock import LOCK, remove_if_free
from wsbench.run.report import console, duration

HISTORY = "history.jsonl"


class UnfinishedError(UserError, RuntimeError):
    """Some cells are not done; the table has said which."""

    exit_status = 1


class StoppedError(UserError, RuntimeError):
    """The sweep was interrupted."""

    exit_status = 128 + signal.SIGINT


def statuses(plan: plans.Plan) -> dict[str, Status]:
    """How each cell stands, by id."""
    former = plans.former_ids(plan.folder)
    return {cell.id: status(cell, former) for cell in plan.cells}


def is_stale(cell: Cell) -> bool:
    """Whether another version of wsbench has run it."""
    return status(cell).state == "stale"


def print_commands(plan: plans.Plan) -> None:
    """Every cell's command, and why some cannot run here."""
    show.commands(plan)
    for problem in plan.problems():
        print(f"wsbench: note: cannot run here: {problem}", file=sys.stderr)
    print(f"{len(plan.cells)} cells of {plan.name}, recipe {plan.recipe} ({plan.reason})", file=sys.stderr)


def run(plan: plans.Plan, launcher: Launcher) -> None:
    """Run what is left of a plan.

    Raises:
        GridError: a cell cannot run here; nothing was started.
        StoppedError: it was interrupted.
        UnfinishedError: cells failed.
    """
    problems = plan.problems()
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GridError(f"nothing is run: {problems[0]}{more}")
    for cell in plan.cells:
        for name in (CLAIM, LOCK):  # of processes that were killed
            remove_if_free(cell.folder / name)
    before = statuses(plan)
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
        print("interrupted; the same command resumes from the last checkpoints", file=sys.stderr)
    after = statuses(plan)
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
    unfinished = sum(s.state not in ("done", "stale") for s in after.values())
    if unfinished and not getattr(launcher, "detached", False):
        raise UnfinishedError(f"{unfinished} of {len(after)} cells are not done")


#: options that decide what is trained at which rate and scored on what
_TUNED = ("--model.lr", "--data.tuning", "--seed_everything", "--on_divergence", "--norm", "--model", "--data",
          "--trainer", "--print_config")  # fmt: skip


def protocol_of(
    choice: plans.SweepRequest, definition: Definition, resolve: plans.Resolve, options: Sequence[str]
) -> tuple[Protocol, str]:
    """The protocol of a tuned sweep, and its recipe.

    Raises:
        GridError: it has no grid of that recipe, or one that makes no sense.
    """
    recipe = choice.recipe or next(iter(definition.tuned))
    if recipe not in definition.tuned:
        raise GridError(f"sweep '{choice.name}' tunes nothing for --recipe {recipe}; there is "
                        f"{', '.join(definition.tuned)}")  # fmt: skip
    for word in choice.further:
        if word.partition("=")[0] in _TUNED:
            raise GridError(f"{word.partition('=')[0]} may not come after --; a tuned sweep sets it by itself")
    grid = definition.tuned[recipe]
    asked = methods(grid, choice.axes, choice.only)
    return Protocol(grid, asked, lambda o: plans.cell_of(o, recipe, choice, resolve, [*DIVERGED, *options])), recipe


def plan_of(choice: plans.SweepRequest, definition: Definition, recipe: str, cells: Sequence[Cell]) -> plans.Plan:
    """The plan of a stage."""
    return plans.Plan(Path(choice.name).stem, recipe, "tuned", definition.about, tuple(cells), choice.runs)


def tune(
    choice: plans.SweepRequest, definition: Definition, resolve: plans.Resolve, launcher: Launcher, dry_run: bool
) -> tuple[Protocol, Stage] | None:
    """Run both stages, from where the records say that they are.

    Args:
        choice: what is asked of the sweep.
        definition: of the sweep.
        resolve: says which run a command line of ``fit`` is.
        launcher: runs the cells.
        dry_run: print the commands only.

    Returns:
        The finished protocol; None where that is not the end: a dry run, or jobs that were submitted.
    """
    protocol, recipe = protocol_of(choice, definition, resolve, launcher.options())
    while True:
        stage = protocol.stage()
        plan = plan_of(choice, definition, recipe, [cell for _, cell in stage.cells])
        if dry_run:
            print_commands(plan)
            runs = len(protocol.methods) * len(protocol.grid.seeds)
            print(f"stage {stage.number} as far as it is known; stage 2 has {runs} runs at the chosen rates, "
                  f"{len(stage.second)} of them here", file=sys.stderr)  # fmt: skip
            return None
        protocol.write_tunings(stage)
        run(plan, launcher)
        if getattr(launcher, "detached", False):
            console().print("submitted; the same command resumes when these have ended")
            return None
        if stage.number == 2:
            return protocol, stage
