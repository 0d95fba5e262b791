"""What launchers share: the contract, and what they say while they work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from wsbench.errors import UserError
from wsbench.grid.attempt import Outcome
from wsbench.grid.cells import Cell


class LauncherError(UserError, RuntimeError):
    """A launcher that cannot work here; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a cell."""

    cell: Cell
    kind: Literal["started", "ended", "retried", "waits", "submitted"]
    outcome: Outcome | None = None
    where: str = ""


Say = Callable[[Event], None]


class Launcher(Protocol):
    """Runs cells. A cell is an argv and a folder; nothing else passes between a grid and its launcher."""

    name: str

    def options(self) -> list[str]:
        """Further arguments of ``fit`` that follow from what a cell gets; they belong to its identity."""
        ...

    def run(self, cells: Sequence[Cell], say: Say) -> None:
        """Run all cells, each to whatever end; one that fails stops no other.

        Raises:
            LauncherError: the launcher itself cannot work.
            KeyboardInterrupt: after its cells were ended.
        """
        ...
