"""What a user can mend: one base class, whose message is the whole of what is printed, caught once: at the door."""

import os
import re
import sys
from collections.abc import Callable

#: how torch wraps an exception of a DataLoader's worker: where it happened, and the worker's traceback as text
_WRAPPED = re.compile(r"Caught (?P<name>\w+) in .+?\.\nOriginal Traceback", re.DOTALL)
#: characters that a terminal obeys, and halves of characters
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: characters of somebody else's message, at most
_LONGEST = 400


#: files whose complaints are about options: what wsbench hands on to them is what the user has given
_OTHERS = ("/lightning/pytorch/", "/lightning/fabric/", "/jsonargparse/", "/torch/distributed/", "/pathlib")


#: modules of the extra `train`
TRAINING = ("torchvision", "lightning", "jsonargparse", "torchmetrics", "PIL", "scipy", "sklearn", "h5py",
            "pycocotools", "joblib", "tensorboard")  # fmt: skip


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
    occurrences = [*re.finditer(rf"^[\w.]*\b{wrapped['name']}: ", text, re.MULTILINE)]
    return text[occurrences[-1].end() :].rstrip("\n") if occurrences else text


def printable(text: str) -> str:
    """Text with what would move a terminal's cursor, or change its colours, written out; line breaks stay."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


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
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in TRAINING:
        return UserError(f"this needs {error.name}, which is not installed: pip install 'wsbench[train]'")
    if isinstance(error, OSError) and error.errno is not None:
        named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        files = " and ".join(f"'{name}'" for name in named)
        return UserError(f"{files}: {error.strerror}" if files else f"{error.strerror} (WSBENCH_DEBUG=1 shows where)")
    where = _innermost(error)
    if isinstance(error, ValueError | TypeError | RuntimeError | KeyError) and any(part in where for part in _OTHERS):
        return UserError(f"{shortened(str(error))} (as {_name_of(where)} says; WSBENCH_DEBUG=1 shows where)")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = shortened(str(error)).partition(". ")[0]
        why = f" ({first})" if first else ""
        return UserError(f"memory is used up{why}; lower --data.micro_batch, the size of samples, or the network")
    if type(error).__name__ == "MisconfigurationException" and type(error).__module__.startswith("lightning"):
        return UserError(f"Lightning refuses its options: {shortened(str(error))}")
    return None


def _innermost(error: BaseException) -> str:
    """The file in which an error was raised."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "" if at is None else at.tb_frame.f_code.co_filename.replace(os.sep, "/")


def _name_of(path: str) -> str:
    return next(part.strip("/").split("/")[0] for part in _OTHERS if part in path)


def exit_status(work: Callable[[], int]) -> int:
    """Do ``work`` and return its exit status; or where it raises for the user, say that in a line and return its own.

    Under WSBENCH_DEBUG=1 there is a traceback.
    """
    try:
        return work()
    except BrokenPipeError:
        raise
    except Exception as error:
        message = for_the_user(error)
        if message is None or os.environ.get("WSBENCH_DEBUG"):
            raise
        print(printable(f"wsbench: {message.label}{message}"), file=sys.stderr)
        return message.exit_status
