"""Interleaved timing: every contender once a round, medians over rounds, so that a drifting machine drifts for all."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping


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
                start = time.perf_counter()
                work()
                if i >= warmup:
                    times[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}
