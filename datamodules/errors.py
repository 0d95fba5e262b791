"""What a datamodule raises when its data is not as it should be."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from wsbench.errors import UserError

#: entries of a folder, and faults, that a message lists
_LISTED = 8
#: what readers of images and meshes raise at a damaged file: they index, convert and unpack what it says, unchecked.
#: A defect of ours would be reported as the file's, so calls of a library and what is taken out of their results stand
#: under it, no more.
DAMAGED = (
    OSError, ValueError, SyntaxError, EOFError, OverflowError, TypeError, KeyError, IndexError, AttributeError,
    NotImplementedError, ZeroDivisionError, MemoryError, StopIteration, struct.error, zlib.error,
)  # fmt: skip


class DatasetError(UserError, RuntimeError):
    """Data that is missing, incomplete or broken; the message names the file and how to fix it."""


def one_a_line(texts: Sequence[str], most: int = _LISTED, further: int = 0) -> str:
    """Faults below a heading, a line each, and how many more there are: ``further`` beside those in ``texts``."""
    more = max(0, len(texts) - most) + further
    return "".join(f"\n  {text}" for text in texts[:most]) + (f"\n  and {more} more" if more else "")


def refuse_all(wrong: Sequence[DatasetError]) -> None:
    """Raise what is wrong with some of many files, in one error; nothing if that is none."""
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise DatasetError(f"{len(wrong)} faults:{one_a_line([*map(str, wrong)])}")


class DatasetNotFoundError(DatasetError):
    """No dataset where the user says that there is one, or none was named."""

    #: what was looked for, and what the folder holds
    looked_for, holds = "", ""

    @classmethod
    def under(cls, dataset: str, root: Path | None, looked_for: str, task: str) -> "DatasetNotFoundError":
        """The error of a root that does not hold the dataset: what was looked for, what is there."""
        if root is None:
            return cls(
                f"{dataset} was not found: neither --data.root nor $WSBENCH_DATA is set. Point --data.root to it "
                f"(`python -m wsbench data {task}` shows the layout), or use the miniature by --recipe mini"
            )
        error = cls(
            f"{dataset} was not found under '{root}': looked for {looked_for}; {contents(root)}. "
            f"`python -m wsbench data {task}` shows the layout; point --data.root (or $WSBENCH_DATA) to such a folder, "
            "or use the miniature by --recipe mini"
        )
        error.looked_for, error.holds = looked_for, contents(root)
        return error


def contents(folder: Path) -> str:
    """What is in a folder, in a few words: ``it holds a, b, c ...``."""
    if not folder.exists():
        return "there is no such folder"
    if not folder.is_dir():
        return "it is a file"
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:_LISTED])}{' ...' if len(names) > _LISTED else ''}"
