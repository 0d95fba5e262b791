"""Which records there are, and the table that each belongs to."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsbench.errors import UserError
from wsbench.leaderboard.paper import is_paper_data
from wsbench.leaderboard.published import datasets
from wsbench.records import RECORD_NAME, DataIdentity, RunRecord, read_record
from wsbench.registry import TASKS
from wsbench.run.identity import SHARE


class LeaderboardError(UserError, ValueError):
    """Records that do not belong into a leaderboard; the message names them and says why."""


def find_records(folders: Iterable[Path]) -> list[RunRecord]:
    """All records below ``folders``, each id once (the first folder counts), in a fixed order.

    Raises:
        RecordError: for a file that is not a valid record.
    """
    records: dict[str, RunRecord] = {}
    for folder in folders:
        files = {*folder.rglob(RECORD_NAME), *(p for p in folder.rglob("*.json") if p.parent.parent.name == "records")}
        for path in sorted(files):
            record = read_record(path)
            records.setdefault(record.id, record)
    return in_order(records.values())


def in_order(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Sorted by what they are, so that no output depends on where they were found."""
    return sorted(records, key=lambda r: (r.task, r.recipe, r.data.name, r.network, r.labelled_norm, r.seed, r.id))


def data_checksum(data: DataIdentity) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a dataset's splits: their names, counts and checksums."""
    splits = {name: split.model_dump() for name, split in data.splits.items()}
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()[:12]


def table_name(record: RunRecord) -> str:
    """The file a record belongs to: ``voc`` is the paper's recipe on the paper's data, and nothing else is.

    Runs at a rate that was tuned, and those by which it was chosen, have tables of their own. Where records of one name
    have different data (other lists, other labels), :func:`by_table` tells them apart.
    """
    kind = "-trials" if SHARE in record.overrides else "-tuned" if record.tuning is not None else ""
    return f"{_data_name(record)}{kind}"


def _data_name(record: RunRecord) -> str:
    task, recipe, data = record.task, record.recipe, record.data.name
    if recipe == "paper" and is_paper_data(task, data):
        return task
    if recipe == "mini" and data.startswith(f"{task}-mini"):
        return f"{task}-mini"
    if data != "custom":
        return f"{task}-{recipe}-{data}"
    checksum = data_checksum(record.data)
    return f"{task}-{recipe}-{datasets().get(checksum) or f'custom-{checksum}'}"


def overrides_of(record: RunRecord) -> str:
    """What a run changed of its recipe: ``model.lr=0.5 trainer.max_steps=300``."""
    return said(record.overrides)


def said(options: Mapping[str, Any]) -> str:
    """Options as text, in a fixed order."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in sorted(options.items()))


def by_table(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """``{table: records}`` in order; the paper's tables are there without a record, too.

    Records of one name whose data differs, in its lists or its labels, share no table: each gets its data's checksum.
    """
    named: dict[str, list[RunRecord]] = {}
    for record in in_order(records):
        named.setdefault(table_name(record), []).append(record)
    tables: dict[str, list[RunRecord]] = {task: [] for task, entry in TASKS.items() if entry.paper is not None}
    for name, of_table in named.items():
        one = len({data_checksum(record.data) for record in of_table}) == 1
        for record in of_table:
            tables.setdefault(name if one else f"{name}-{data_checksum(record.data)}", []).append(record)
    return dict(sorted(tables.items()))


def short(norm: str) -> str:
    """``gn16`` is called gn: the 16 groups are the task's, as in the paper's code."""
    return norm.replace("gn16", "gn")
