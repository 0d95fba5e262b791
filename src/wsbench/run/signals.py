"""A signal and its echo: `timeout` and schedulers send one to a process and then to its group."""

import math
import time

#: seconds in which a second signal is the first one again
SAME_SIGNAL = 1.0


class Echo:
    """Says of each signal whether it repeats the one before."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self) -> bool:
        """Of a signal that comes now."""
        before, self._last = self._last, time.monotonic()
        return self._last - before < SAME_SIGNAL
