"""Command lines that answer in a sentence: what an option was mistaken for, and a parser that says so. Torch-free."""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from wsbench.errors import UserError, shortened

_UNKNOWN = re.compile(r"unrecognized arguments?: (.+)", re.IGNORECASE | re.DOTALL)
#: argparse names the option first
_OF_OPTION = re.compile(r"argument (?P<name>[^:]+): (?P<what>.+)", re.DOTALL)


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_duration(text: str) -> float:
    """Seconds of ``10m``, ``1h30m``, ``90s``, ``2d``.

    Raises:
        ValueError: it is no such duration, or none at all.
        OverflowError: it is longer than can be counted.
    """
    match = _DURATION.fullmatch(text.strip())
    parts = [int(part or 0) for part in match.groups()] if match else [0]
    if not any(parts):
        raise ValueError(f"'{text}' is no duration such as 10m, 1h30m or 90s")
    days, hours, minutes, seconds = parts
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()


class UsageError(UserError, ValueError):
    """A command line that cannot be meant; the message names the option."""


def out_of_range(options: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]], prefix: str) -> str | None:
    """What is wrong with the first number that cannot be meant, NaN among them; None if all can.

    Args:
        options: ``{name: value}``; only numbers are looked at.
        bounds: ``{name: (least, most)}``.
        prefix: before the name in the message, such as ``--model.``.
    """
    for name, (least, most) in bounds.items():
        value = options.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value <= most:
            return f"{prefix}{name} {value}: expected a number from {least:g} to {most:g}"
    return None


def nearest(word: str, names: Sequence[str]) -> str:
    """That there is no such option, and which may be meant.

    Args:
        word: as it was given, with its value if it stands in one word with it.
        names: the options that there are.
    """
    name, _, _ = word.partition("=")
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    last = [option for option in names if option.rsplit(".", 1)[-1] == name.lstrip("-")]
    hint = (near or last or [""])[0]
    return f"there is no option {name}" + (f"; did you mean {hint}?" if hint else "; --help lists them")


def unknown_options(message: str, names: Sequence[str]) -> str | None:
    """A parser's message about arguments that it does not know, as a sentence; None if it is of something else."""
    unknown = _UNKNOWN.search(" ".join(message.split()))
    if unknown is None:
        return None
    unrecognized = unknown[1].split()
    options = [word for word in unrecognized if word.startswith("-")]
    return "; ".join(nearest(word, names) for word in options) or f"too many arguments: {' '.join(unrecognized)}"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence: a UsageError, no usage. An abbreviation is a typo."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, which names what was meant, instead of printing and leaving."""
        names = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        text = unknown_options(message, names)
        if text is None:
            of = _OF_OPTION.fullmatch(message)
            text = f"{of['name']}: {of['what']}" if of else f"{message}; {self.prog} --help explains"
        raise UsageError(shortened(text))
