"""Cells as jobs of a Slurm array, by submitit; a preempted one is queued again and resumes from its last checkpoint."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsbench.extras import submitit as submitit_module
from wsbench.grid.attempt import BUSY, Outcome, ended, header
from wsbench.grid.cells import CLAIM, LOG, Cell, attempts, note_end, note_queued, note_start
from wsbench.grid.launcher import Event, LauncherError, Say
from wsbench.run.lock import claimed, holder

#: below the folder of sweeps: what submitit keeps of its jobs
JOBS = "sweeps/slurm"
#: how often a job that reaches its time limit resumes
_TIMEOUTS = 20
#: how often an unreachable controller is asked again before the sweep gives up
_PATIENCE = 60


@dataclass(frozen=True)
class Job:
    """What every cell asks Slurm for."""

    partition: str | None = None
    minutes: int = 24 * 60
    nodes: int = 1
    devices: int = 1
    """On each node: as many tasks, one a device."""
    cpus: int | None = None
    """Cores of a task."""
    gigabytes: float | None = None
    """Memory of a node's part."""
    gpus: bool = True
    at_once: int | None = None
    """Cells of the array at a time."""
    further: Mapping[str, str] = field(default_factory=dict)
    """Options of ``sbatch``, without their dashes."""

    def parameters(self) -> dict[str, Any]:
        """In submitit's words."""
        values: dict[str, Any] = {
            "job_name": "wsbench", "partition": self.partition, "time": self.minutes, "nodes": self.nodes,
            "ntasks_per_node": self.devices, "cpus_per_task": self.cpus,
            "mem": f"{int(self.gigabytes * 1024)}MB" if self.gigabytes else None,
            "gpus_per_node": self.devices if self.gpus else None, "array_parallelism": self.at_once or 1000,
            # one task that fails ends the others; they would wait for it until NCCL's or gloo's timeout
            "srun_args": ["--kill-on-bad-exit=1"],
            "additional_parameters": {"requeue": True, **{k.replace("_", "-"): v for k, v in self.further.items()}},
        }  # fmt: skip
        return {name: value for name, value in values.items() if value is not None}


class SlurmCell:
    """A cell as submitit calls it, once in every task of a job; the run is in this very process.

    A child would not get the signal by which Slurm says that it will end the job.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self._queued_again = False

    def __call__(self) -> None:
        """Run it, or go on with it."""
        cell, rank = self.cell, int(os.environ.get("SLURM_PROCID", "0"))
        if cell.finished():
            return
        cell.folder.mkdir(parents=True, exist_ok=True)
        os.register_at_fork(after_in_child=_ignore_preemption)
        mine = nullcontext(True) if rank else claimed(cell.folder / CLAIM)
        with _output(cell.folder / (f"cell.{rank}.log" if rank else LOG)), mine as claim:
            if not claim or (not rank and holder(cell.folder) is not None):
                raise RuntimeError(f"another process runs it: {holder(cell.folder) or 'it is being started'}")
            line = cell.command()
            print(header(line), end="", flush=True)
            if not rank:
                note_start(cell.folder, SlurmLauncher.name, os.getpid(), os.environ.get("SLURM_JOB_ID", ""))
            status = self._run(line)
            if self._queued_again:
                sys.exit(-1)
            outcome = ended(cell, status) if not rank else Outcome(status, f"exit status {status}" if status else "")
        if outcome.reason:
            raise RuntimeError(outcome.reason)  # makes the task fail, which ends the others

    def _run(self, line: list[str]) -> int:
        """The door, as ``python -m wsbench`` opens it; its exit status."""
        sys.argv = ["wsbench", *line]
        try:
            runpy.run_module("wsbench", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:  # noqa: BLE001  # any defect is this cell's, and stands in its log
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    def checkpoint(self) -> Any:
        """What submitit queues when Slurm preempts the job or its time is up: the same; the folder has checkpoints."""
        self._queued_again = True
        note_queued(self.cell.folder, f"Slurm job {_job_id()} (preempted, or at its time limit)")
        return submitit_module().helpers.DelayedSubmission(SlurmCell(self.cell))


def _ignore_preemption() -> None:
    """In workers that load data: the signal is for the process that started them."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "?")


@contextmanager
def _output(path: Path) -> Iterator[None]:
    """This process's standard output and error, and those of its children, at the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(handle)


class SlurmLauncher:
    """Job arrays.

    Args:
        job: what a cell asks for.
        retries: further submissions of cells that failed, each going on from its last checkpoint.
        wait: whether to stay until all have ended; else cells are submitted, and ``sweep status`` tells.
        poll: seconds between two looks at the queue.
    """

    name = "slurm"

    def __init__(self, job: Job, retries: int = 0, wait: bool = True, poll: float = 5.0) -> None:
        submitit_module()
        missing = [tool for tool in ("sbatch", "srun", "squeue") if shutil.which(tool) is None]
        if missing:
            raise LauncherError(f"--launcher slurm needs Slurm's {', '.join(missing)}; run it where jobs are submitted")
        self.job, self.retries, self.detached, self.poll = job, retries, not wait, poll

    def options(self) -> list[str]:
        """``--trainer.devices`` and ``--trainer.num_nodes`` where a cell gets several."""
        devices = ["--trainer.devices", str(self.job.devices)] if self.job.devices > 1 else []
        return devices + (["--trainer.num_nodes", str(self.job.nodes)] if self.job.nodes > 1 else [])

    def run(self, cells: Sequence[Cell], say: Say) -> None:
        """Submit them as an array, and wait; what failed is submitted again, as often as there are retries."""
        for left in range(self.retries, -1, -1):
            jobs = self._submit(cells, say)
            if self.detached:
                return
            try:
                outcomes = self._wait(jobs, say, last=not left)
            except KeyboardInterrupt:
                ids = " ".join(sorted({job.job_id.partition("_")[0] for _, job in jobs}))
                print(f"the jobs go on; `scancel {ids}` ends them, `sweep status` says how they stand", file=sys.stderr)
                raise
            cells = [cell for cell, outcome in outcomes if outcome.reason and not outcome.busy]
            if not cells:
                return

    def _submit(self, cells: Sequence[Cell], say: Say) -> list[tuple[Cell, Any]]:
        submitit = submitit_module()
        folder = (cells[0].resolved.runs / JOBS).absolute()
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_TIMEOUTS)
        executor.update_parameters(**self.job.parameters())
        try:
            with executor.batch():
                jobs = [executor.submit(SlurmCell(cell)) for cell in cells]
            submitted = [(cell, job, job.job_id) for cell, job in zip(cells, jobs, strict=True)]
        except submitit.core.utils.FailedJobError as error:
            raise LauncherError(f"sbatch refused the cells: {' '.join(str(error).split())}") from error
        for cell, _, identity in submitted:
            note_queued(cell.folder, f"Slurm job {identity}")
            say(Event(cell, "submitted", where=f"Slurm job {identity}"))
        return [(cell, job) for cell, job, _ in submitted]

    def _wait(self, jobs: Sequence[tuple[Cell, Any]], say: Say, last: bool) -> list[tuple[Cell, Outcome]]:
        waiting = {job.job_id: (cell, job) for cell, job in jobs}
        running: set[str] = set()
        outcomes = []
        while waiting:
            time.sleep(self.poll)
            queue = self._queue(waiting)
            for identity, (cell, job) in list(waiting.items()):
                state = queue.get(identity)
                if state == "RUNNING" and identity not in running:
                    running.add(identity)
                    say(Event(cell, "started", where=f"Slurm job {identity}"))
                elif state == "PENDING":
                    running.discard(identity)
                if state is not None:
                    continue
                del waiting[identity]
                outcome = _outcome(cell, job)
                outcomes.append((cell, outcome))
                say(Event(cell, "retried" if outcome.reason and not last else "ended", outcome))
        return outcomes

    def _queue(self, identities: Mapping[str, Any]) -> dict[str, str]:
        """``{job: state}`` of those that are in the queue; sacct would know more, but many clusters have none."""
        arrays = sorted({identity.partition("_")[0] for identity in identities})
        command = ["squeue", "--noheader", "--array", "--format=%i %T", "--jobs", ",".join(arrays)]
        for _ in range(_PATIENCE):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not done.returncode or "Invalid job id" in done.stderr:  # long gone
                return dict(line.split() for line in done.stdout.splitlines())
            time.sleep(self.poll)
        raise LauncherError(f"squeue does not answer: {done.stderr.strip()}; the jobs go on, see `sweep status`")


def _outcome(cell: Cell, job: Any) -> Outcome:
    """Of a job that has left the queue; notes the end of one that could not do so itself."""
    if cell.finished():
        return Outcome(0, "")
    if holder(cell.folder) is not None:
        return Outcome(BUSY, "another process runs it")
    events = attempts(cell.folder)
    if events and events[-1]["event"] == "end":
        return Outcome(events[-1]["status"], events[-1]["reason"])
    outcome = Outcome(1, _last_words(Path(job.paths.stderr)) or f"job {job.job_id} ended silently")
    note_end(cell.folder, outcome.status, outcome.reason)
    return outcome


def _last_words(path: Path) -> str:
    """What Slurm says in a job's log: cancelled, out of memory, its time limit."""
    if not path.exists():
        return ""
    lines = path.read_text(errors="replace").splitlines()
    relevant = [line for line in lines if line.startswith(("slurmstepd:", "srun:", "slurmd:")) or "Error: " in line]
    return relevant[-1] if relevant else ""
