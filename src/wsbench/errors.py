"""What a user can mend: one base class, whose message is the whole of what is printed, caught once: at the door."""

import os
import re
import sys
from collections.abc import Callable

#: how torch wraps an exception of a DataLoader's worker: where it happened, and the worker's traceback as text
_WRAPPED = re.compile(r"Caught (?P<name>\w+) in .+?\.\nOriginal Traceback", re.DOTALL)
#: characters of somebody else's message, at most
_LONGEST = 400


class UserError(Exception):
    """A mistake in options, files or data; the message names the thing, what was expected, and how to fix it.

    In a worker process of a DataLoader torch replaces the message by a traceback; the message is taken out of it again,
    so that a mistake reads the same whichever process finds it.
    """

    #: before the message
    label = "error: "
    #: of the process
    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__(_message(str(message)))


def _message(text: str) -> str:
    wrapped = _WRAPPED.match(text)
    if wrapped is None:
        return text
    said = [*re.finditer(rf"^[\w.]*\b{wrapped['name']}: ", text, re.MULTILINE)]
    return text[said[-1].end() :].rstrip("\n") if said else text


def shortened(text: str) -> str:
    """Somebody else's message as one line that is not too long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST else f"{flat[:_LONGEST]} ..."


def for_the_user(error: BaseException) -> UserError | None:
    """What is to be said about an error; None where it is a defect, whose traceback is wanted.

    Beside wsbench's own errors: what the system says about a file or a disk, memory that is used up, and what Lightning
    says about its options.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        files = " and ".join(f"'{name}'" for name in named)
        return UserError(f"{files}: {error.strerror}" if files else f"{error.strerror} (WSBENCH_DEBUG=1 shows where)")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = shortened(str(error)).partition(". ")[0]
        where = f" ({first})" if first else ""
        return UserError(f"memory is used up{where}; lower --data.micro_batch, the size of samples, or the network")
    if type(error).__name__ == "MisconfigurationException" and type(error).__module__.startswith("lightning"):
        return UserError(f"Lightning refuses its options: {shortened(str(error))}")
    return None


def exit_status(work: Callable[[], int]) -> int:
    """Do ``work`` and return its exit status; or where it raises for the user, say that in a line and return its own.

    Under WSBENCH_DEBUG=1 there is a traceback.
    """
    try:
        return work()
    except BrokenPipeError:
        raise
    except Exception as error:
        said = for_the_user(error)
        if said is None or os.environ.get("WSBENCH_DEBUG"):
            raise
        print(f"wsbench: {said.label}{said}", file=sys.stderr)
        return said.exit_status
