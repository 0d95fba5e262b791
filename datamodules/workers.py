"""Processes that load data: signals to a whole group do not end them, the end of their run does."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable
from ctypes import c_bool
from functools import cache, partial
from types import FrameType
from typing import Any


@cache
def _leaving() -> Any:
    """Shared with the workers of this process: whether it is leaving."""
    value = multiprocessing.RawValue(c_bool, False)
    # registered after multiprocessing's own, and so run before it, which sends its children SIGTERM and waits for them
    atexit.register(setattr, value, "value", True)
    return value


def leave_signals() -> Callable[[int], None]:
    """A ``worker_init_fn``: a terminal and a scheduler signal all processes, but only the run decides when it ends.

    It still needs its samples then, to end with a whole step. Workers end when their loader, or the run, is gone; also
    where a run ends by an error whose traceback keeps the loader alive.
    """
    return partial(_leave_signals, _leaving())


def _leave_signals(leaving: Any, worker: int) -> None:
    def end_with_the_run(number: int, frame: FrameType | None) -> None:
        if leaving.value:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_with_the_run)
