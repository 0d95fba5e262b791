"""What is said about an option that does not exist or has a wrong value: one sentence, not the parser's usage."""

import argparse
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from wsbench.errors import shortened
from wsbench.options import UsageError, unknown_options

_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: |\s+-\s|\s+Given value|$)")
_GIVEN = re.compile(r"(?:Got value|Given value): (.*)$")


class ShortErrors(LightningArgumentParser):
    """A parser that says what is wrong, and the nearest right name."""

    def error(self, message: Any, ex: Exception | None = None) -> NoReturn:
        """Raise a UsageError; an ArgumentError where ``exit_on_error`` is off."""
        names = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        text = sentence(str(message), names)
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, text) from ex
        raise UsageError(text) from ex


def sentence(message: str, names: list[str]) -> str:
    """The parser's message as one line.

    Args:
        message: of the parser, of any number of lines.
        names: the options that there are.
    """
    flat = " ".join(message.split())
    unknown = unknown_options(flat, names)
    if unknown is not None:
        return unknown
    key = _KEY.search(flat)
    if key and not flat.startswith(key[0]):
        flat = flat[key.start() :]
    flat = _KEY.sub(r"--\1: ", flat)
    flat = re.sub(r"<class '([\w.]+)'>", lambda m: str(m[1]).rsplit(".", 1)[-1], flat)
    expected, given = list(dict.fromkeys(_EXPECTED.findall(flat))), _GIVEN.search(flat)
    if key and expected and given:
        kinds = " or ".join("null" if kind == "NoneType" else kind for kind in expected)
        return shortened(f"--{key[1]} {given[1] or '(empty)'}: expected {kinds}")
    return shortened(flat)
