"""The columns of the page's tables: what each is called, when a table has it, and what a row says there."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: of the field that it shows; the table has it where a row has more to say there than ``usual``.
        heading: what stands above it.
        css: ``n``: numbers, ``s``: small print.
        hint: a longer word for the heading.
        usual: what a row says where there is nothing to say; None: every table has the column.
        text: what a row's cell says.
    """

    name: str
    heading: str
    css: Literal["", "n", "s"] = ""
    hint: str = ""
    usual: str | None = ""
    text: Callable[[Mapping[str, Any]], str] | None = None

    def of(self, row: Mapping[str, Any]) -> str:
        """What a row says."""
        return str(row[self.name]) if self.text is None else self.text(row)

    def used(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a table of these rows has it."""
        return self.usual is None or any(row[self.name] not in ("", self.usual) for row in rows)


def _number(name: str, digits: int) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{float(row[name]):.{digits}f}" if row[name] else ""


def _interval(row: Mapping[str, Any]) -> str:
    return f"{float(row['ci95_low']):.2f} to {float(row['ci95_high']):.2f}" if row["ci95_low"] else ""


def _rates(row: Mapping[str, Any]) -> str:
    return f"{row['lr_low']} to {row['lr_high']}" if row["lr_low"] else ""


def _target(row: Mapping[str, Any]) -> str:
    return f"{row['steps_to_target'] or '–'} ({row['reached']})" if row["target"] else ""  # noqa: RUF001


def _source(row: Mapping[str, Any]) -> str:
    cited = f": {row['citation']}" if row["citation"] else ""
    return f"{row['source']}{cited}" + (f" ({row['note']})" if row["note"] else "")


#: those before the options in which a table's runs differ
FIRST = (
    Column("norm", "norm", usual=None),
    Column("network", "network", usual=None),
    Column("metric", "metric", usual=None),
    Column("mean", "mean", "n", usual=None, text=_number("mean", 2)),
    Column("std", "sd", "n", text=_number("std", 2)),
    Column("ci95_low", "95 %", "s", text=_interval),
    Column("n_seeds", "seeds", "n"),
    Column("paper", "paper", "n"),
    Column("delta", "delta", "n"),
    Column("micro_batch", "a device", "n", "images on one device in a micro-step"),
    Column("accumulate", "accumulated", "n"),
    Column("devices", "devices", "n", usual="1"),
    Column("effective_batch", "a step", "n", "images in an optimizer step"),
    Column("norm_batch", "BN sees", "n", "images that BN's statistics see"),
    Column("samples_per_second", "images/s", "n", text=_number("samples_per_second", 1)),
    Column("peak_memory_mib", "MiB", "n", text=_number("peak_memory_mib", 0)),
    Column("lr", "own rate", "n", "of the norm's own, chosen on held-out training data"),
    Column("trials", "trials", "n"),
    Column("lr_low", "works at", "s", "rates that score within 5 points of the best", text=_rates),
    Column("diverged", "diverged", "n", "of the seeds", usual="0"),
    Column("target", "steps to score", "n",
           "median steps until the stated score; in brackets, how many seeds reach it", text=_target),
)  # fmt: skip
#: those behind them
LAST = (
    Column("overrides", "changed", "s"),
    Column("source", "source", "s", usual=None, text=_source),
    Column("records", "records", "s"),
)


def columns(rows: Sequence[Mapping[str, Any]], differ: Collection[str]) -> list[Column]:
    """The columns of a table.

    Args:
        rows: its rows, with ``changed``: the values of the options in which they differ.
        differ: these options.
    """
    own = [Column(name, name, "n", usual=None, text=_changed(name)) for name in differ]
    return [column for column in (*FIRST, *own, *LAST) if column.used(rows)]


def _changed(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: str(row["changed"].get(name, ""))
