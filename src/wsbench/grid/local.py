"""Cells on this machine: a pool of processes among which its devices are divided."""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from wsbench.grid.attempt import Outcome, attempt
from wsbench.grid.cells import Cell
from wsbench.grid.launcher import Event, LauncherError, Say
from wsbench.grid.resources import cores, memory
from wsbench.run.signals import Echo

#: memory that a miniature takes, with room; how many fit decides how many run on a machine without GPUs
_MEMORY = 2 * 2**30
#: seconds that cells have to end by themselves when the sweep is interrupted
_GRACE = 30.0
_POLL = 0.5


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def default_jobs(gpus: Sequence[str], devices: int) -> int:
    """Cells at a time: as many as the GPUs allow; without GPUs one a core, as far as memory goes."""
    if gpus:
        return max(1, len(gpus) // devices)
    return max(1, min(cores() // devices, memory() // _MEMORY))


def options_of(devices: int) -> list[str]:
    """``--trainer.devices`` where a cell gets several."""
    return ["--trainer.devices", str(devices)] if devices > 1 else []


class LocalLauncher:
    """A process pool.

    Args:
        jobs: cells at a time; None: what the devices allow.
        devices: devices of a cell; more than one trains by DDP.
        retries: further attempts at a cell that failed, each from its last checkpoint.
    """

    name = "local"

    def __init__(self, jobs: int | None = None, devices: int = 1, retries: int = 0) -> None:
        gpus = visible_gpus()
        if gpus and devices > len(gpus):
            raise LauncherError(f"--devices {devices}: this machine has {len(gpus)} GPU(s)")
        self.devices, self.retries = devices, retries
        self.jobs = jobs or default_jobs(gpus, devices)
        slots = [gpus[i : i + devices] for i in range(0, len(gpus) - devices + 1, devices)]
        if gpus and self.jobs > len(slots):
            slots = [slots[i % len(slots)] for i in range(self.jobs)]  # asked for: several cells on a device
        self._slots: list[list[str]] = slots[: self.jobs] or [[]] * self.jobs
        self._threads = max(1, cores() // (self.jobs * devices))
        self._queue: deque[tuple[Cell, int]] = deque()
        self._busy: set[str] = set()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def options(self) -> list[str]:
        """``--trainer.devices`` where a cell gets several."""
        return options_of(self.devices)

    def run(self, cells: Sequence[Cell], say: Say) -> None:
        """Run them, ``jobs`` at a time; a cell that another process runs is waited for, behind the others."""
        self._queue = deque((cell, self.retries) for cell in cells)
        workers = [threading.Thread(target=self._work, args=(slot, say), daemon=True) for slot in self._slots]
        terminated = signal.signal(signal.SIGTERM, _interrupt_once())
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        except KeyboardInterrupt:
            self._end()
            for worker in workers:
                worker.join()
            raise
        finally:
            signal.signal(signal.SIGTERM, terminated)

    def _environment(self, slot: Sequence[str]) -> dict[str, str]:
        if slot:
            return {"CUDA_VISIBLE_DEVICES": ",".join(slot)}
        return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(self._threads)}

    def _work(self, slot: Sequence[str], say: Say) -> None:
        while not self._stop.is_set():
            with self._lock:
                if not self._queue:
                    return
                cell, retries = self._queue.popleft()
            outcome = attempt(cell, self.name, self._environment(slot), lambda p, c=cell: self._started(p, c, say))  # type: ignore[misc]
            if outcome.busy:
                self._wait_for(cell, retries, say)
            elif outcome.reason and retries and not self._stop.is_set():
                say(Event(cell, "retried", outcome))
                with self._lock:
                    self._queue.append((cell, retries - 1))
            else:
                say(Event(cell, "ended", outcome))

    def _wait_for(self, cell: Cell, retries: int, say: Say) -> None:
        if cell.id not in self._busy:
            self._busy.add(cell.id)
            say(Event(cell, "waits", Outcome(0, "")))
        with self._lock:
            self._queue.append((cell, retries))
        time.sleep(_POLL)

    def _started(self, process: "subprocess.Popen[bytes]", cell: Cell, say: Say) -> None:
        self._processes.add(process)
        say(Event(cell, "started", where=f"process {process.pid}"))
        if self._stop.is_set():
            _signal(process, signal.SIGTERM)

    def _end(self) -> None:
        """Ask the cells to end, then end them."""
        self._stop.set()
        deadline = time.monotonic() + _GRACE
        for process in self._processes:
            _signal(process, signal.SIGTERM)
        while time.monotonic() < deadline and any(p.poll() is None for p in self._processes):
            time.sleep(0.1)
        for process in self._processes:
            _signal(process, signal.SIGKILL)


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """To a cell and the processes it started, if it lives."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def _interrupt_once() -> Callable[..., None]:
    """A handler that interrupts, and takes no echo for a second wish."""
    echo = Echo()

    def interrupt(*args: object) -> None:
        if not echo():
            raise KeyboardInterrupt

    return interrupt
