"""The table that a paper prints: a row for runs that differ in nothing but the seed, beside the paper's value."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wsbench.leaderboard import tuned
from wsbench.leaderboard.logs import Logs
from wsbench.leaderboard.naming import data_checksum, overrides_of, said, table_name
from wsbench.leaderboard.paper import network_of, paper_rows_of
from wsbench.leaderboard.rows import Row
from wsbench.leaderboard.spread import Spread, spread
from wsbench.records import RunRecord
from wsbench.registry import TASKS
from wsbench.run.identity import LR, SHARE

WIDE = (
    "task", "recipe", "data", "network", "norm", "micro_batch", "accumulate", "devices", "effective_batch",
    "norm_batch", "overrides", "metric", "n_seeds", "mean", "std", "ci95_low", "ci95_high", "paper", "delta",
    "samples_per_second", "peak_memory_mib", "source", "citation", "records", "note", "data_checksum", "precision",
    "hardware", "wsbench", "commit",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    records: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        """For what all have in common."""
        return self.records[0]

    @cached_property
    def table(self) -> str:
        """The table it stands in."""
        return table_name(self.first)

    @cached_property
    def overrides(self) -> str:
        """What they changed of the recipe."""
        return overrides_of(self.first)

    @cached_property
    def setting(self) -> tuple[object, ...]:
        """What groups that may be compared have in common: all but the norm, and the rate where each has its own.

        The number of steps of tuned runs follows from the rest; where all seeds diverged it was not reached.
        """
        own_rate = self.first.tuning is not None
        changed = tuned.untuned(self.first) if own_rate else self.first.overrides
        batch = tuple(self.first.batch.model_dump().items())
        return (self.table, self.first.network, said(changed), batch[:-1], None if own_rate else self.steps)

    @property
    def steps(self) -> int:
        """Optimizer steps of a run; one that diverged took fewer."""
        return max(record.steps for record in self.records)

    @property
    def is_trial(self) -> bool:
        """Whether they are scored on a part of the training data, for choosing a rate."""
        return SHARE in self.first.overrides

    def values(self, metric: str) -> dict[int, float]:
        """``{seed: value}`` of the final weights."""
        return {r.seed: r.metrics[metric].value for r in self.records if metric in r.metrics}

    def spread(self, metric: str) -> Spread | None:
        """Over the seeds; None if there is no such metric."""
        values = list(self.values(metric).values())
        return spread(values) if values else None

    def mean_of_cost(self, name: str) -> float:
        """``samples_per_second`` or ``peak_memory_mib``."""
        return sum(float(getattr(r.cost, name)) for r in self.records) / len(self.records)

    def paper(self, metric: str) -> float | None:
        """The paper's value of the same network, norm and images per device; None if the run is another experiment."""
        if self.table not in TASKS or self.overrides:
            return None
        rows = [r for r in paper_rows_of(self.first.task) if network_of(self.first.task, r) == self.first.network]
        rows = [r for r in rows if (r.norm, r.metric) == (self.first.labelled_norm, metric)]
        rows = [r for r in rows if r.batch_per_gpu in ("", str(self.first.batch.micro_batch))]
        return rows[0].value if rows else None


def settings_of(grouped: Iterable[Group]) -> list[list[Group]]:
    """Groups that may be compared: of one table, network, batch sizes and changes of the recipe."""
    kept: dict[tuple[object, ...], list[Group]] = defaultdict(list)
    for group in grouped:
        kept[group.setting].append(group)
    return list(kept.values())


def groups(records: Iterable[RunRecord]) -> list[Group]:
    """Records by everything but the seed, in a fixed order.

    A run that diverged stopped there; it belongs to the runs of its configuration that went on, if those are of one
    length.
    """
    by_setting: dict[tuple[Any, ...], list[RunRecord]] = defaultdict(list)
    stopped: list[tuple[tuple[Any, ...], RunRecord]] = []
    for record in records:
        method = (table_name(record), record.network, record.labelled_norm, overrides_of(record))
        key = (*method, tuple(record.batch.model_dump().values()), record.provenance.precision)
        if record.diverged is None:
            by_setting[*key, record.steps].append(record)
        else:
            stopped.append((key, record))
    lengths = list(by_setting)
    for key, record in stopped:
        of_key = [whole for whole in lengths if whole[:-1] == key]
        by_setting[of_key[0] if len(of_key) == 1 else (*key, 0)].append(record)
    return [Group(tuple(sorted(by_setting[key], key=lambda r: (r.seed, r.id)))) for key in sorted(by_setting)]


def value_of(group: Group, option: str) -> str:
    """An option of a group's runs, as it was given, or where the recipe says it."""
    overrides = group.first.overrides
    rate = tuned.rate_of(group.first) if option == LR else None
    if rate is not None:
        return f"{rate:g}"
    return json.dumps(overrides[option]).strip('"') if option in overrides else "(recipe)"


def changes(grouped: Sequence[Group]) -> tuple[list[str], dict[str, str]]:
    """Options of the recipe that runs changed: those that differ between groups, and those that are the same in all."""
    options = sorted({option for group in grouped for option in group.first.overrides})
    differ = [option for option in options if len({value_of(group, option) for group in grouped}) > 1]
    return differ, {option: value_of(grouped[0], option) for option in options if option not in differ}


def _number(value: float | None) -> str:
    return "" if value is None else str(round(value, 4))


def _joined(values: Iterable[str | None]) -> str:
    return "; ".join(sorted({value for value in values if value}))


def _row(group: Group, metric: str, over: Spread, logs: Logs) -> Row:
    first, paper = group.first, group.paper(metric)
    values = {
        "task": first.task, "recipe": first.recipe, "data": first.data.name, "network": first.network,
        "norm": first.labelled_norm, **{k: str(v) for k, v in first.batch.model_dump().items()},
        "overrides": group.overrides,
        "metric": metric, "n_seeds": str(over.n), "mean": _number(over.mean), "std": _number(over.std),
        "ci95_low": _number(over.low), "ci95_high": _number(over.high), "paper": _number(paper),
        "delta": _number(None if paper is None else over.mean - paper),
        "samples_per_second": _number(group.mean_of_cost("samples_per_second")),
        "peak_memory_mib": _number(group.mean_of_cost("peak_memory_mib")), "source": "run", "citation": "",
        "records": " ".join(r.id for r in group.records), "note": _joined(r.note for r in group.records),
        "data_checksum": data_checksum(first.data), "precision": first.provenance.precision,
        "hardware": _joined(r.provenance.hardware for r in group.records),
        "wsbench": _joined(r.provenance.wsbench for r in group.records),
        "commit": _joined(r.provenance.commit for r in group.records),
    }  # fmt: skip
    further = tuned.columns(group.records, metric, logs) if first.tuning else tuned.trial_columns(first)
    return {column: values[column] for column in WIDE} | further


def columns_of(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """The columns of a table."""
    first = records[0] if records else None
    if first is None:
        return WIDE
    return (*WIDE, *(tuned.COLUMNS if first.tuning else tuned.trial_columns(first)))


def wide_rows(task: str, records: Sequence[RunRecord], cited: Sequence[Row], logs: Logs | None = None) -> list[Row]:
    """A row for each group and metric of the task's main ones; then those that are cited, as they are.

    Args:
        task: of the records.
        records: of one table.
        cited: others' numbers.
        logs: of the records' metrics, where something is counted in steps.
    """
    metrics = TASKS[task].metrics
    rows = []
    for group in groups(records):
        for metric in metrics:
            over = group.spread(metric)
            if over is not None:
                rows.append(_row(group, metric, over, logs or {}))
    quoted = [
        {column: row.get(column, "") for column in WIDE} | {"mean": row["value"]}
        for row in cited
        if row["metric"] in metrics
    ]
    return quoted + rows
