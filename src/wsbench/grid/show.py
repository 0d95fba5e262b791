"""What a sweep says: cells as commands, as a table, and as a line when something happens."""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from wsbench.errors import printable
from wsbench.grid.cells import INTERRUPTED, LOG, STATES, Cell, Status
from wsbench.grid.launcher import Event
from wsbench.grid.plan import Plan
from wsbench.grid.tuned import Protocol, Stage
from wsbench.run.report import console, duration

_COLOUR = {
    "done": "green",
    "running": "cyan",
    "stopped": "yellow",
    "failed": "red",
    "missing": "yellow",
    "stale": "magenta",
}


def commands(plan: Plan) -> None:
    """Every cell's command, ready for a shell."""
    for cell in plan.cells:
        print(shlex.join(["python", "-m", "wsbench", *cell.command()]))


def counts(statuses: Sequence[Status]) -> str:
    """``3 done, 1 failed``."""
    number = Counter(status.state for status in statuses)
    return ", ".join(f"{number[state]} {state}" for state in STATES if number[state]) or "no cells"


def table(plan: Plan, statuses: Mapping[str, Status], all_of_them: bool) -> None:
    """A row a cell: how it stands, how long it took, why.

    Args:
        plan: the sweep.
        statuses: by id.
        all_of_them: also those that are done.
    """
    out = console()
    chosen = [cell for cell in plan.cells if all_of_them or statuses[cell.id].state != "done"]
    if chosen:
        labels = plan.labels()
        rows = Table(title=f"{plan.name}, recipe {plan.recipe}")
        for column in ("cell", "state", "time", "ended (UTC)", "run", "note"):
            rows.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
        for cell in chosen:
            status = statuses[cell.id]
            took = duration(status.seconds) if status.seconds is not None else "-"
            when = status.when[:16].replace("T", " ") or "-"
            state = f"[{_COLOUR[status.state]}]{status.state}[/]"
            text = (labels[cell.id], took, when, cell.id, status.note)
            name, took, when, identity, note = (escape(printable(part)) for part in text)
            rows.add_row(name, state, took, when, identity, note)
        out.print(rows)
    total = sum(s.seconds or 0 for s in statuses.values() if s.state == "done")
    out.print(f"{counts(list(statuses.values()))}; the finished ones ran {duration(total)} in all")


class Progress:
    """A line when a cell starts or ends, with how many are left and about how long that takes.

    Args:
        plan: the sweep.
        cells: those to run.
    """

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self._labels = plan.labels()
        self._total = len(cells)
        self._ended = 0
        self._start = time.monotonic()
        self._began: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Print a line for a cell that started, ended or failed."""
        name = self._labels[event.cell.id]
        if event.kind == "started":
            self._began[event.cell.id] = time.monotonic()
            return self._print(f"started  {name}: {event.where}, log {event.cell.folder / LOG}")
        if event.kind == "submitted":
            return self._print(f"submitted  {name}: {event.where}")
        if event.kind == "waits":
            return self._print(f"waits  {name}: another process runs it")
        reason = event.outcome.reason if event.outcome else ""
        if event.kind == "retried":
            return self._print(f"again  {name}: {reason}")
        self._ended += 1
        now = time.monotonic()
        began = self._began.get(event.cell.id)
        took = "" if began is None else f" in {duration(now - began)}"
        left = (now - self._start) / self._ended * (self._total - self._ended)
        rest = f", about {duration(left)} left" if self._ended < self._total else ""
        failed = "stopped" if reason.startswith(INTERRUPTED) else "FAILED"
        word = f"{failed}  {name}: {reason}" if reason else f"done  {name}{took}"
        self._print(f"[{self._ended}/{self._total}] {word}{rest}")
        return None

    def _print(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")  # one write: several threads say something
        sys.stdout.flush()


def tuned(protocol: Protocol, stage: Stage) -> None:
    """What was chosen, and what came of it as far as it has run."""
    if not stage.second:
        return
    table = Table(title="rate chosen on held-out training data; results on val with fresh seeds")
    for column in ("method", "rate", "trials", "metric", "seeds", "mean", "lowest", "highest"):
        table.add_column(column, justify="left" if column in ("method", "metric") else "right")
    for method in dict.fromkeys(method for method, _ in stage.second):
        tuning = protocol.tuning(method, stage.rates[method.setting])
        records = [cell.record() for one, cell in stage.second if one == method]
        values = [record.metrics[tuning.metric].value for record in records if record is not None]
        name = " ".join(str(v) for k, v in method.options if k in ("task", "norm", "model.network"))
        row = [name, f"{tuning.rate:g}", str(len(tuning.trials)), tuning.metric, str(len(values))]
        row += [f"{x:.2f}" for x in (sum(values) / len(values), min(values), max(values))] if values else ["-"] * 3
        table.add_row(*row)
    console().print(table)
