"""One attempt at a cell as a process of its own, with its log; the local and the Ray launcher share it."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from wsbench.grid.cells import CLAIM, INTERRUPTED, LOG, Cell, note_end, note_start, now
from wsbench.run.lock import RunBusyError, claimed, holder

BUSY = RunBusyError.exit_status
#: how much of a log's end is looked at for the reason of a failure
_TAIL = 20_000
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|MemoryError|Cannot allocate memory|memory is used up", re.IGNORECASE
)
#: how a run says that it was told to stop, and by what
_TOLD = re.compile(r"^wsbench: stopped by ([\w.-]+)", re.MULTILINE)
_ERROR = re.compile(r"^(?:wsbench: error: .*|[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)$")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    status: int
    """Exit status; negative: the signal that ended it."""
    reason: str
    """In words; empty if the cell is finished."""

    @property
    def busy(self) -> bool:
        """Whether another process runs the cell."""
        return self.status == BUSY and not self.reason.startswith(INTERRUPTED)


def header(line: list[str]) -> str:
    """What stands above an attempt in the log."""
    return f"== {now()}  {shlex.join(['python', '-m', 'wsbench', *line])}\n"


def says_out_of_memory(text: str) -> bool:
    """Whether what a process said, or why it ended, is that memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def reason(status: int, log: Path) -> str:
    """Why a process ended without a record, in a line: the signal, out of memory, or the last error of its log."""
    tail = ""
    if log.exists():
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            tail = file.read().decode(errors="replace").rpartition("\n== ")[2]
    memory = "out of memory: " if says_out_of_memory(tail) else ""
    told = _TOLD.findall(tail)
    if told and status not in (0, -signal.SIGKILL):
        return f"{memory}{INTERRUPTED}{told[-1]}"
    number = -status if status < 0 else status - 128  # the former before it could listen
    if number in (signal.SIGINT, signal.SIGTERM):
        return f"{memory}{INTERRUPTED}{signal.Signals(number).name}"
    if status < 0:
        name = signal.Signals(-status).name
        likely = " (the kernel does that when memory runs out)" if status == -signal.SIGKILL and not memory else ""
        return f"{memory}ended by {name}{likely}"
    errors = [line for line in tail.splitlines() if _ERROR.match(line)]
    last = errors[-1].removeprefix("wsbench: error: ") if errors else f"exit status {status}"
    if status == 0:
        last = "it ended without a record (interrupted, or --trainer.fast_dev_run)"
    return f"{memory}{last}"[:300]


def attempt(
    cell: Cell,
    launcher: str,
    environment: Mapping[str, str] | None = None,
    started: Callable[["subprocess.Popen[bytes]"], None] = lambda process: None,
) -> Outcome:
    """Run a cell once, to whatever end; writes its log and its attempts.

    Args:
        cell: what to run.
        launcher: its name, for the attempts.
        environment: of the process, on top of this one's.
        started: is told of the process.
    """
    if cell.finished():
        return Outcome(0, "")
    with claimed(cell.folder / CLAIM) as mine:
        if not mine or holder(cell.folder) is not None:
            return Outcome(BUSY, "another process runs it")
        return Outcome(0, "") if cell.finished() else _attempt(cell, launcher, environment, started)


def _attempt(
    cell: Cell,
    launcher: str,
    environment: Mapping[str, str] | None,
    started: Callable[["subprocess.Popen[bytes]"], None],
) -> Outcome:
    cell.folder.mkdir(parents=True, exist_ok=True)
    line = cell.command()
    with (cell.folder / LOG).open("ab") as log:
        log.write(header(line).encode())
        log.flush()
        process = _start(line, log, environment)
        note_start(cell.folder, launcher, process.pid)
        started(process)
        status = process.wait()
    return ended(cell, status)


def _start(line: list[str], log: IO[bytes], environment: Mapping[str, str] | None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "wsbench", *line],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        start_new_session=True,  # Ctrl-C is for the sweep, which then ends its cells in order
    )


def ended(cell: Cell, status: int) -> Outcome:
    """What an exit status means: a cell is done if its record is there, whatever the process said; notes the end."""
    finished = replace(cell, renew=cell.renew and status != 0).finished()
    outcome = Outcome(0, "") if finished else Outcome(status, reason(status, cell.folder / LOG))
    if outcome.busy:
        outcome = Outcome(BUSY, "another process runs it")
    note_end(cell.folder, outcome.status, outcome.reason)
    return outcome
