"""Cells as tasks of a Ray cluster; one whose node or worker is lost runs again, from its last checkpoint."""

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsbench.extras import ray as ray_module
from wsbench.grid.attempt import Outcome, attempt
from wsbench.grid.cells import Cell, note_queued
from wsbench.grid.launcher import Event, LauncherError, Say

#: how often a cell is started again because its worker or node was lost; a failure of its own is --retries' matter
_LOSSES = 5
_POLL = 0.5


def _run(cell: Cell, folder: str) -> Outcome:
    """In a worker: the cell, in the folder that the sweep was started in."""
    if not Path(folder).is_dir():
        return Outcome(1, f"'{folder}' is not on node {os.uname().nodename}: a sweep's folder must be shared by all")
    os.chdir(folder)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Ray's workers ignore it, and so lose the exit status of the run
    # a run whose worker was lost may have outlived it; then it is waited for
    while (outcome := attempt(cell, RayLauncher.name)).busy:
        time.sleep(_POLL)
    return outcome


class RayLauncher:
    """Tasks.

    Args:
        address: of a cluster; None starts one on this machine and ends it behind the sweep.
        jobs: cells at a time; None: what the resources allow.
        devices: devices of a cell, on one node; GPUs where the cluster has any, else cores.
        retries: further attempts at a cell that failed, each from its last checkpoint.
    """

    name = "ray"

    def __init__(self, address: str | None = None, jobs: int | None = None, devices: int = 1, retries: int = 0) -> None:
        ray_module()
        self.address, self.jobs, self.devices, self.retries = address, jobs, devices, retries

    def options(self) -> list[str]:
        """``--trainer.devices`` where a cell gets several."""
        return ["--trainer.devices", str(self.devices)] if self.devices > 1 else []

    def run(self, cells: Sequence[Cell], say: Say) -> None:
        """Run them; Ray places them, and starts those again whose node is lost."""
        ray = ray_module()
        started_here = self._connect(ray)
        try:
            self._run_all(ray, cells, say)
        finally:
            if started_here:
                ray.shutdown()

    def _connect(self, ray: Any) -> bool:
        """Whether a cluster was started for this; one that there is already is left as it is."""
        if ray.is_initialized():
            return False
        try:
            ray.init(self.address or "local", include_dashboard=False, log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LauncherError(f"no Ray cluster at --address {self.address}: {error}") from error
        return True

    def _resources(self, ray: Any) -> dict[str, float]:
        available = ray.cluster_resources()
        gpus, cores = available.get("GPU", 0), available.get("CPU", 0)
        if gpus and gpus < self.devices:
            raise LauncherError(f"--devices {self.devices}: the Ray cluster has {gpus:.0f} GPU(s)")
        if not gpus and cores < self.devices:
            raise LauncherError(f"--devices {self.devices}: the Ray cluster has no GPU and {cores:.0f} core(s)")
        return {"num_cpus": float(self.devices), "num_gpus": float(self.devices if gpus else 0)}

    def _run_all(self, ray: Any, cells: Sequence[Cell], say: Say) -> None:
        # a new worker for each cell: what a run leaves behind in a process is of no concern to the next
        task = ray.remote(max_calls=1, max_retries=_LOSSES, **self._resources(ray))(_run)
        queue = deque((cell, self.retries) for cell in cells)
        tasks: dict[Any, tuple[Cell, int]] = {}
        folder = str(Path.cwd())
        try:
            while queue or tasks:
                while queue and len(tasks) < (self.jobs or len(cells)):
                    cell, retries = queue.popleft()
                    note_queued(cell.folder, "a task of Ray")
                    tasks[task.remote(cell, folder)] = (cell, retries)
                    say(Event(cell, "submitted", where="to Ray"))
                (reference,), _ = ray.wait(list(tasks))
                cell, retries = tasks.pop(reference)
                outcome = _result(ray, reference)
                if outcome.reason and retries:
                    say(Event(cell, "retried", outcome))
                    queue.append((cell, retries - 1))
                else:
                    say(Event(cell, "ended", outcome))
        except KeyboardInterrupt:
            for reference in tasks:
                ray.cancel(reference, force=True)
            raise


def _result(ray: Any, reference: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Outcome(1, f"Ray: {str(error).strip().splitlines()[0]}")
    return outcome
