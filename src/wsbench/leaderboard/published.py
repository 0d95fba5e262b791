"""Numbers that others have published, with where they stand; and public datasets by what they hold."""

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


@cache
def datasets() -> dict[str, str]:
    """``{data_checksum: name}`` of public datasets that are not a paper's; several, where parts of one were used."""
    path = files("wsbench.published") / "datasets.csv"
    return {row["data_checksum"]: row["name"] for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())}
