"""What a user can mend: one base class, whose message is the whole of what is printed."""

import os
import re
import sys
from collections.abc import Callable

#: how torch wraps an exception of a DataLoader's worker: where it happened, and the worker's traceback as text
_WRAPPED = re.compile(r"Caught (?P<name>\w+) in .+?\.\nOriginal Traceback", re.DOTALL)


class UserError(Exception):
    """A mistake in options, files or data; the message names the thing, what was expected, and how to fix it.

    In a worker process of a DataLoader torch replaces the message by a traceback; the message is taken out of it again,
    so that a mistake reads the same whichever process finds it.
    """

    #: before the message
    label = "error: "

    def __init__(self, message: str) -> None:
        super().__init__(_message(str(message)))


def _message(text: str) -> str:
    wrapped = _WRAPPED.match(text)
    if wrapped is None:
        return text
    said = [*re.finditer(rf"^[\w.]*\b{wrapped['name']}: ", text, re.MULTILINE)]
    return text[said[-1].end() :].rstrip("\n") if said else text


def exit_status(work: Callable[[], object], errors: tuple[type[Exception], ...] = (UserError,)) -> int:
    """Do ``work`` and return the exit status.

    0, or where it raised one of ``errors`` that error's ``exit_status`` (2 if it has none), said in a line (with a
    traceback under WSBENCH_DEBUG=1).
    """
    try:
        work()
    except errors as error:
        if os.environ.get("WSBENCH_DEBUG"):
            raise
        print(f"wsbench: {getattr(error, 'label', 'error: ')}{error}", file=sys.stderr)
        return int(getattr(error, "exit_status", 2))
    return 0
