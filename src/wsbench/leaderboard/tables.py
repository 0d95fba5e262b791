"""Records, the paper's rows and published ones to long CSV files: one for each task, recipe and dataset."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsbench.errors import UserError
from wsbench.leaderboard.paper import PaperRow, paper_rows
from wsbench.leaderboard.published import datasets, published_rows
from wsbench.records import HEADLINES, RECORD_NAME, DataIdentity, RunRecord, read_record
from wsbench.run.identity import SHARE


class LeaderboardError(UserError, ValueError):
    """Records that do not belong into a leaderboard; the message names them and says why."""


@dataclass(frozen=True)
class PaperTable:
    """Where the paper has a task's numbers."""

    numbers: tuple[int, ...]
    data: str
    headline: str
    """The metric that a summary shows; the task's main one."""
    further: tuple[str, ...] = ()
    """Metrics that the wide table shows behind it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of the wide table."""
        return (self.headline, *self.further)


PAPER = {
    "imagenet": PaperTable((1, 2, 3), "imagenet1k", HEADLINES["imagenet"], ("top5_error",)),
    "something": PaperTable((6,), "something_something_v1", HEADLINES["something"], ("top5_acc",)),
    "voc": PaperTable((7,), "voc2012", HEADLINES["voc"]),
    "modelnet40": PaperTable((8,), "modelnet40", HEADLINES["modelnet40"], ("mean_class_acc",)),
    "coco": PaperTable((4, 5), "coco2017", HEADLINES["coco"], ("mask_AP",)),
}


def network_of(row: PaperRow) -> str:
    """The network of a paper's row, as it is called here."""
    if row.task in ("mask_rcnn", "faster_rcnn", "tsm"):
        return f"{row.task}_{row.model}"
    return {"voc": f"deeplabv3_{row.model}", "modelnet40": "dgcnn_tf"}.get(row.task, row.model)


def paper_rows_of(task: str) -> list[PaperRow]:
    """All of the paper's rows for a task."""
    return [row for number in PAPER[task].numbers for row in paper_rows(number)]


COLUMNS = (
    "task", "recipe", "data", "network", "norm", "micro_batch", "accumulate", "devices", "effective_batch",
    "norm_batch", "seed", "metric", "value", "best_value", "n_eval", "steps", "overrides", "samples_per_second",
    "peak_memory_mib", "source", "record", "citation", "note", "data_checksum", "precision", "hardware", "wsbench",
    "commit", "finished",
)  # fmt: skip
Row = dict[str, str]


def find_records(folders: Iterable[Path]) -> list[RunRecord]:
    """All records below ``folders``, each id once (the first folder counts), in a fixed order.

    Raises:
        RecordError: for a file that is not a valid record.
    """
    found: dict[str, RunRecord] = {}
    for folder in folders:
        files = {*folder.rglob(RECORD_NAME), *(p for p in folder.rglob("*.json") if p.parent.parent.name == "records")}
        for path in sorted(files):
            record = read_record(path)
            found.setdefault(record.id, record)
    return in_order(found.values())


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
    if recipe == "paper" and task in PAPER and data == PAPER[task].data:
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
    """Options in words, in a fixed order."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in sorted(options.items()))


def record_rows(record: RunRecord) -> list[Row]:
    """A row for each metric of a run."""
    batch, provenance = record.batch, record.provenance
    common = {
        "task": record.task, "recipe": record.recipe, "data": record.data.name, "network": record.network,
        "norm": record.labelled_norm, "micro_batch": batch.micro_batch, "accumulate": batch.accumulate,
        "devices": batch.devices, "effective_batch": batch.effective_batch, "norm_batch": batch.norm_batch,
        "seed": record.seed, "steps": record.steps, "overrides": overrides_of(record),
        "samples_per_second": record.cost.samples_per_second, "peak_memory_mib": record.cost.peak_memory_mib,
        "source": "run", "record": record.id, "citation": "", "note": record.note,
        "data_checksum": data_checksum(record.data), "precision": provenance.precision,
        "hardware": provenance.hardware, "wsbench": provenance.wsbench, "commit": provenance.commit,
        "finished": provenance.finished,
    }  # fmt: skip
    rows = []
    for name, metric in sorted(record.metrics.items()):
        best = record.best.get(name)
        values = {"metric": name, "value": metric.value, "n_eval": metric.n_eval, "best_value": best and best.value}
        row = {k: "" if v is None else str(v) for k, v in (common | values).items()}
        rows.append({column: row[column] for column in COLUMNS})
    return rows


def cited_rows(task: str) -> list[Row]:
    """The paper's and other published numbers, which stand beside runs and are never averaged with them."""
    empty = dict.fromkeys(COLUMNS, "") | {"task": task, "data": PAPER[task].data}
    paper = [
        empty
        | {"recipe": "paper", "network": network_of(row), "norm": row.norm, "metric": row.metric}
        | {"micro_batch": row.batch_per_gpu, "value": str(row.value), "source": "paper"}
        | {"citation": f"arXiv:1903.10520 {row.source.removeprefix('paper ')}"}
        for row in paper_rows_of(task)
    ]
    published = [
        empty
        | {"recipe": "published", "network": row.network, "norm": row.norm, "metric": row.metric}
        | {"micro_batch": row.micro_batch, "devices": row.devices, "value": row.value, "source": "published"}
        | {"citation": row.citation, "note": row.note}
        for row in published_rows(task)
    ]
    return paper + published


def text_of(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """CSV text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def by_table(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """``{table: records}`` in order; the paper's tables are there without a record, too.

    Records of one name whose data differs, in its lists or its labels, share no table: each gets its data's checksum.
    """
    named: dict[str, list[RunRecord]] = {}
    for record in in_order(records):
        named.setdefault(table_name(record), []).append(record)
    tables: dict[str, list[RunRecord]] = {task: [] for task in PAPER}
    for name, found in named.items():
        one = len({data_checksum(record.data) for record in found}) == 1
        for record in found:
            tables.setdefault(name if one else f"{name}-{data_checksum(record.data)}", []).append(record)
    return dict(sorted(tables.items()))
