"""Interleaved timing: every contender once a round, medians over rounds, so that a drifting machine drifts for all."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of returning it to the system; whether that could be done.

    Otherwise a large result costs page faults each time it is allocated, or does not, depending on what was freed
    before: on a CPU that doubled the time of one and the same operator from run to run.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4
    return bool(libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_max, 0))


def return_freed_memory() -> None:
    """Let glibc return every large block as soon as it is freed, so that resident memory is what is in use."""
    if sys.platform.startswith("linux"):
        mmap_threshold = -3
        ctypes.CDLL(None).mallopt(mmap_threshold, 2**16)


def peak_resident_mib(reset: bool = False) -> float:
    """Peak resident memory of this process; a child's ``ru_maxrss`` would begin with its parent's. Linux."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def clock() -> float:
    """Seconds, once the default device has done what it was told."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each contender.

    Args:
        contenders: name to a function that does the work once.
        rounds: counted rounds.
        warmup: rounds that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.disable()
    try:
        for i in range(warmup + rounds):
            for name, work in contenders.items():
                start = clock()
                work()
                if i >= warmup:
                    times[name].append(clock() - start)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that reach a kernel; views do not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
