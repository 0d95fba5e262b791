"""What a user can mend: one base class, whose message is the whole of what is printed."""

import re

#: how torch wraps an exception of a DataLoader's worker: where it happened, and the worker's traceback as text
_WRAPPED = re.compile(r"Caught (?P<name>\w+) in .+?\.\nOriginal Traceback", re.DOTALL)


class UserError(Exception):
    """A mistake in options, files or data; the message names the thing, what was expected, and how to fix it.

    In a worker process of a DataLoader torch replaces the message by a traceback; the message is taken out of it again,
    so that a mistake reads the same whichever process finds it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_message(str(message)))


def _message(text: str) -> str:
    wrapped = _WRAPPED.match(text)
    if wrapped is None:
        return text
    said = [*re.finditer(rf"^[\w.]*\b{wrapped['name']}: ", text, re.MULTILINE)]
    return text[said[-1].end() :].rstrip("\n") if said else text
