"""The paper's own numbers, tables 1 to 8."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from wsbench.registry import TASKS

#: the grammar's variants to the words of the CSV files
_VARIANTS = {"mo": "mean_only", "do": "div_only", "af": "affine"}


@dataclass(frozen=True)
class PaperRow:
    """One number of the paper."""

    table: int
    task: str
    dataset: str
    model: str
    norm: str
    metric: str
    value: float
    batch_per_gpu: str
    source: str


def _spec(table: str, norm: str, weight_norm: str, variant: str) -> str:
    if table == "8" and norm == "gn":
        norm = "gn16"  # groups of the authors' DGCNN; everywhere else 32, which "gn" means
    short = {long: short for short, long in _VARIANTS.items()}
    spec = norm if weight_norm == "none" else f"{norm}+{weight_norm}"
    return f"{spec}-{short[variant]}" if variant else spec


@cache
def paper_rows(table: int) -> tuple[PaperRow, ...]:
    """All numbers of one table, with the normalization as a spec."""
    text = (files("wsbench.paper") / f"table{table}.csv").read_text(encoding="utf-8")
    return tuple(
        PaperRow(
            table=int(row["table"]),
            task=row["task"],
            dataset=row["dataset"],
            model=row["model"],
            norm=_spec(row["table"], row["norm"], row["weight_norm"], row["variant"]),
            metric=row["metric"],
            value=float(row["value"]),
            batch_per_gpu=row["batch_per_gpu"],
            source=row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def network_of(task: str, row: PaperRow) -> str:
    """The network of a paper's row, as it is called here."""
    paper = TASKS[task].paper
    assert paper is not None
    return paper.network.format(task=row.task, model=row.model)


def paper_rows_of(task: str) -> list[PaperRow]:
    """All of the paper's rows for a task."""
    paper = TASKS[task].paper
    return [] if paper is None else [row for number in paper.tables for row in paper_rows(number)]


def is_paper_data(task: str, data: str) -> bool:
    """Whether a dataset is the one that the paper's numbers of a task are of."""
    paper = TASKS[task].paper
    return paper is not None and paper.data == data
