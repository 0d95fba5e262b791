"""A cell of a grid: an argv and a folder; how it stands is read from its folder, never from a launcher's memory."""

import datetime
import itertools
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import wsbench
from wsbench import plugins
from wsbench.grid.definition import ALIASES
from wsbench.records import (
    METRICS_SUFFIX,
    RECORD_NAME,
    RecordError,
    RunRecord,
    Tuning,
    read_record,
    write_atomically,
    write_record,
)
from wsbench.run.folder import LAST, METRICS, resumable
from wsbench.run.identity import IDENTIFIED, id_of
from wsbench.run.lines import append_line, read_lines
from wsbench.run.lock import holder, is_locked

LOG = "cell.log"
ATTEMPTS = "attempts.jsonl"
#: whoever starts a cell has this locked until it has ended; the run itself locks its folder some seconds later
CLAIM = "attempt.lock"
#: how the reason of an attempt begins that was told to stop: by a signal of the user's or the scheduler's, or its time
INTERRUPTED = "interrupted by "

State = Literal["done", "running", "stopped", "failed", "missing", "stale"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Resolved:
    """What a ``fit`` command line would run."""

    task: str
    recipe: str
    runs: Path
    id: str | None
    """None where the dataset is not there: the identity of the data belongs to it."""
    problem: str | None
    """Why it cannot run now."""
    steps: int | None


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Args:
        options: its fields under full names, as the grid has them.
        argv: the arguments of ``fit``.
        resolved: what they mean.
        renew: whether a finished run is run again.
        published: folder of published records in which a record of this run counts as the run.
        imports: modules with norms that the run needs.
    """

    options: dict[str, Any]
    argv: tuple[str, ...]
    resolved: Resolved
    renew: bool = False
    published: Path | None = None
    imports: tuple[str, ...] = field(default_factory=lambda: tuple(plugins.requested()))

    @property
    def id(self) -> str:
        """The run's id."""
        return self.resolved.id or "?"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.resolved.runs / self.resolved.task / self.id

    def command(self) -> list[str]:
        """The command line now: resumes what lies unfinished in the folder, starts a stale run over."""
        recorded = (self.folder / RECORD_NAME).exists()
        further: tuple[str, ...] = ()
        if recorded and self.renew:
            further = ("--overwrite", "true")
        elif not recorded and resumable(self.folder) is not None:
            further = ("--ckpt_path", "last")
        imports = [word for name in self.imports for word in (plugins.OPTION, name)]
        return ["fit", *self.argv, *imports, *further]

    def record(self) -> RunRecord | None:
        """The record of the finished run, its own or a published one.

        Raises:
            RecordError: there is one that cannot be read, or it is of another run.
        """
        path = self.folder / RECORD_NAME
        if path.exists():
            record = read_record(path)
            if record.id != self.id:
                raise RecordError(f"'{path}' is the record of run {record.id}, not of {self.id}")
            return record
        if self.published:
            return published_records(self.published / self.resolved.task).get(self.id)
        return None

    def renew_tuning(self, tuning: Tuning) -> bool:
        """Let the record of a finished run say how its rate was chosen, where that has had further trials since.

        The run's own folder gets the record; a published one stays as it is until it is submitted again.

        Returns:
            Whether it said otherwise.
        """
        record = self.record()
        if record is None or record.tuning == tuning:
            return False
        if not (self.folder / RECORD_NAME).exists() and self.published:
            log = self.published / self.resolved.task / f"{record.id}{METRICS_SUFFIX}"
            if log.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self.folder / METRICS, log.read_bytes())
        write_record(record.model_copy(update={"tuning": tuning}), self.folder / RECORD_NAME)
        return True

    def finished(self) -> bool:
        """Whether there is nothing to run."""
        try:
            return self.record() is not None and not self.renew
        except RecordError:
            return False


@cache
def published_records(folder: Path) -> dict[str, RunRecord]:
    """Records of a task that others published, under the ids that their runs have today.

    Raises:
        RecordError: one cannot be read.
    """
    records = {path: read_record(path) for path in sorted(folder.glob("*.json"))}
    published: dict[str, RunRecord] = {}
    for path, record in records.items():
        identity = id_of(record)
        if record.schema_version >= IDENTIFIED and identity != record.id:
            raise RecordError(f"'{path}' says that it is run {record.id}; what it holds is run {identity}")
        published[identity or record.id] = record
    return published


@dataclass(frozen=True)
class Status:
    """How a cell stands."""

    state: State
    note: str = ""
    seconds: float | None = None
    """How long it ran, over all attempts; of a running one, since its start."""
    when: str = ""
    """When it ended or, if it runs, started: UTC, ISO 8601."""


def label(cell: Cell, fields: Sequence[str]) -> str:
    """A cell as text: the values of ``fields``, the self-explaining ones without their name."""
    short = {full: name for name, full in ALIASES.items()}
    parts = []
    for name in fields:
        value = cell.options.get(name)
        if value is not None:
            parts.append(
                str(value) if name in ("task", "norm", "model.network") else f"{short.get(name, name)} {value}"
            )
    return " ".join(parts) or cell.id


def varying(cells: Sequence[Cell]) -> list[str]:
    """The fields in which cells differ, in the order of the command line."""
    names = [name for cell in cells for name in cell.options]
    order = {"task": 0, "model.network": 1, "norm": 2, "seed_everything": 4}
    distinct = sorted(dict.fromkeys(names), key=lambda n: (order.get(n, 3), n))
    chosen = [n for n in distinct if len({json.dumps(c.options.get(n)) for c in cells}) > 1]
    return chosen or [n for n in ("task", "norm") if n in distinct]


# -- attempts --------------------------------------------------------------------------------------------------------


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def note_start(folder: Path, launcher: str, pid: int, job: str = "") -> None:
    """Write down that a cell is started, by a launcher, as a process, in a job of a cluster."""
    line = {"event": "start", "time": now(), "launcher": launcher, "host": platform.node(), "pid": pid}
    append_line(folder / ATTEMPTS, line | ({"job": job} if job else {}))


def note_queued(folder: Path, where: str) -> None:
    """Write down that a cell waits in somebody's queue."""
    append_line(folder / ATTEMPTS, {"event": "queued", "time": now(), "where": where})


def note_end(folder: Path, status: int, reason: str) -> None:
    """Write down how an attempt ended: its exit status (negative: the signal), and why as text."""
    append_line(folder / ATTEMPTS, {"event": "end", "time": now(), "status": status, "reason": reason})


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Starts and ends, in order."""
    path = folder / ATTEMPTS
    lines = list(read_lines(path)) if path.exists() else []
    return [line for line in lines if _is_event(line)]


def _is_event(line: Mapping[str, Any]) -> bool:
    """Whether a line is one that this file is made of; others, whoever wrote them, say nothing."""
    needed = {"start": ("pid", "host"), "queued": ("where",), "end": ("status", "reason")}.get(str(line.get("event")))
    if needed is None or any(name not in line for name in needed):
        return False
    try:
        return datetime.datetime.fromisoformat(str(line.get("time"))).tzinfo is not None
    except ValueError:
        return False


def _seconds(start: str, end: str) -> float:
    return (datetime.datetime.fromisoformat(end) - datetime.datetime.fromisoformat(start)).total_seconds()


def _step(cell: Cell) -> str:
    """``step 40 of 800`` by the metrics that were logged."""
    path = cell.folder / METRICS
    if not path.exists():
        return "no step logged yet"
    steps = [line["step"] for line in read_lines(path) if isinstance(line.get("step"), int)]
    of = f" of {cell.resolved.steps}" if cell.resolved.steps else ""
    return f"step {max(steps)}{of}" if steps else "no step logged yet"


def status(cell: Cell, former: Mapping[str, str] | None = None) -> Status:
    """How a cell stands, by its folder.

    Args:
        cell: it.
        former: ``{options as JSON: id}`` of earlier plans of the sweep, by which a changed cell is told from a new one.
    """
    events = attempts(cell.folder)
    by = None
    if not (cell.folder / RECORD_NAME).exists():  # else the process that holds the folder is just ending
        by = holder(cell.folder) or ("it is being started" if is_locked(cell.folder / CLAIM) else None)
    if by is not None:
        start = next((e["time"] for e in reversed(events) if e["event"] == "start"), None)
        return Status("running", f"{_step(cell)}; {by}", _seconds(start, now()) if start else None, start or "")
    try:
        record = cell.record()
    except RecordError as error:
        return Status("failed", str(error))
    if record is not None:
        when = record.provenance.finished
        if record.provenance.wsbench != wsbench.__version__:
            note = f"by wsbench {record.provenance.wsbench}, this is {wsbench.__version__}; --rerun-stale runs it again"
            return Status("stale", note, record.cost.total_seconds, when)
        return Status("done", "", record.cost.total_seconds, when)
    if events:
        return _unfinished(cell, events)
    if resumable(cell.folder) is not None:
        return Status("missing", f"an unfinished run, {_step(cell)}, will be resumed")
    old = (former or {}).get(json.dumps(cell.options, sort_keys=True))
    if old and old != cell.id and (replace_id(cell, old).folder / RECORD_NAME).exists():
        return Status("stale", f"its configuration or data changed since run {old}; it will be run")
    return Status("missing", cell.resolved.problem or "")


def replace_id(cell: Cell, identity: str) -> Cell:
    """The cell as it was under another id."""
    return replace(cell, resolved=replace(cell.resolved, id=identity))


def _unfinished(cell: Cell, events: Sequence[Mapping[str, Any]]) -> Status:
    total = 0.0
    for before, after in itertools.pairwise(events):
        if before["event"] == "start" and after["event"] in ("end", "queued"):
            total += _seconds(before["time"], after["time"])
    last = events[-1]
    resumes = f"; resumes from {LAST}, {_step(cell)}" if resumable(cell.folder) is not None else ""
    if last["event"] == "queued":
        return Status("missing", f"queued as {last['where']}{resumes}", total or None, last["time"])
    if last["event"] == "start":
        return Status("failed", f"process {last['pid']} on {last['host']} died{resumes}", total or None, last["time"])
    state: State = "stopped" if str(last["reason"]).startswith(INTERRUPTED) else "failed"
    return Status(state, f"{last['reason']}{resumes}", total, last["time"])
