"""List files: one thing a line."""

from pathlib import Path


def lines_of(path: Path) -> list[str]:
    """The lines of a list file, without empty ones and without space around them."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
