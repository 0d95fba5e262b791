"""Numbers that others have published, with where they stand."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class PublishedRow:
    """One number. The norm is a specification where it is one of ours, else the method's name in lower case."""

    network: str
    norm: str
    metric: str
    value: str
    micro_batch: str
    devices: str
    citation: str
    note: str


@cache
def published_rows(task: str) -> tuple[PublishedRow, ...]:
    """All of a task; their recipes are their own."""
    path = files("wsbench.published") / f"{task}.csv"
    if not path.is_file():
        return ()
    return tuple(PublishedRow(**row) for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
