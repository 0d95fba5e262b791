"""What is said about an option that does not exist or has a wrong value: one sentence, not the parser's usage."""

import argparse
import difflib
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

_UNKNOWN = re.compile(r"[Uu]nrecognized arguments?: (.+)", re.DOTALL)
_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: |\s+-\s|\s+Given value|$)")
_GIVEN = re.compile(r"(?:Got value|Given value): (.*)$")
#: characters of a message of the parser that nobody here has put into words
_LONGEST = 400


class ShortErrors(LightningArgumentParser):
    """A parser that says what is wrong, and the nearest right name."""

    def error(self, message: Any, ex: Exception | None = None) -> NoReturn:
        """Say it and exit with status 2; an ArgumentError where ``exit_on_error`` is off."""
        names = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        said = sentence(str(message), names)
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, said) from ex
        print(f"wsbench: error: {said}", file=sys.stderr)
        raise SystemExit(2) from ex


def sentence(message: str, names: list[str]) -> str:
    """The parser's message as one line.

    Args:
        message: of the parser, of any number of lines.
        names: the options that there are.
    """
    flat = " ".join(message.split())
    unknown = _UNKNOWN.search(flat)
    if unknown:
        return "; ".join(_nearest(word, names) for word in unknown[1].split() if word.startswith("-")) or flat
    key = _KEY.search(flat)
    if key and not flat.startswith(key[0]):
        flat = flat[key.start() :]
    flat = _KEY.sub(r"--\1: ", flat)
    flat = re.sub(r"<class '([\w.]+)'>", lambda m: str(m[1]).rsplit(".", 1)[-1], flat)
    expected, given = list(dict.fromkeys(_EXPECTED.findall(flat))), _GIVEN.search(flat)
    if key and expected and given:
        kinds = " or ".join("null" if kind == "NoneType" else kind for kind in expected)
        return _cut(f"--{key[1]} {given[1] or '(empty)'}: expected {kinds}")
    return _cut(flat)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _nearest(word: str, names: list[str]) -> str:
    name, _, _ = word.partition("=")
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    last = [option for option in names if option.rsplit(".", 1)[-1] == name.lstrip("-")]
    hint = (near or last or [""])[0]
    return f"there is no option {name}" + (f"; did you mean {hint}?" if hint else "; --help lists them")
