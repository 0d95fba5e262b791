"""Files of names and lines, as people and programs write them; which entries of a folder are meant."""

import codecs
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wsbench.datamodules.errors import DatasetError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path) -> str:
    """A text file: UTF-8, with or without a byte-order mark, or UTF-16 with one, as PowerShell writes it.

    Bytes that are not UTF-8 are kept as Python keeps them in file names, so that a list can name any file.

    Raises:
        DatasetError: the file cannot be read, or holds zero bytes and so is no text, or UTF-16 without its mark.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read '{path}': {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise DatasetError(f"'{path}' is not text in {encoding}: {error.reason}; save it as UTF-8") from error
    if "\0" in text:
        raise DatasetError(f"'{path}' is no text file: it holds zero bytes; save it as UTF-8")
    return text


def lines_of(path: Path) -> list[str]:
    """The lines of a list file, without empty ones and without space around them; DatasetError as :func:`read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def names_of(path: Path, what: str = "names") -> list[str]:
    """The lines of a list of different things; DatasetError names the file if it is empty, and a line that repeats."""
    lines = lines_of(path)
    if not lines:
        raise DatasetError(f"'{path}' is empty; expected {what}, one a line")
    refuse_repeated(lines, path)
    return lines


def refuse_repeated(names: Sequence[str], path: Path) -> None:
    """Refuse a list that names a thing twice: it would be counted twice."""
    if len(set(names)) < len(names):
        name, times = Counter(names).most_common(1)[0]
        raise DatasetError(f"'{path}' names '{name}' {times} times; every sample must stand there once")


def is_meant(path: Path) -> bool:
    """Whether a file or folder is the user's: not hidden, nor what an operating system or a notebook leaves behind."""
    return not path.name.startswith((".", "__MACOSX", "__pycache__")) and path.name not in ("Thumbs.db", "desktop.ini")


def folders_in(folder: Path) -> list[Path]:
    """The folders that are meant in a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and is_meant(p)) if folder.is_dir() else []


def inside(folder: Path, name: str, source: Path | None = None) -> Path:
    """``folder / name``, where the file ``source`` says ``name``; DatasetError if that leaves the folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        where = "" if source is None else f"'{source}': "
        raise DatasetError(f"{where}'{name}' leaves the folder '{folder}'; names in lists are relative to it")
    return folder / path
