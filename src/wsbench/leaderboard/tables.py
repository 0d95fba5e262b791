"""Records and the paper's rows to CSV files: deterministic, one file for each task, recipe and dataset."""

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsbench.leaderboard.paper import PaperRow, paper_rows
from wsbench.records import RECORD_NAME, RunRecord, read_record, write_text_atomically


@dataclass(frozen=True)
class PaperTable:
    """Where the paper has a task's numbers."""

    numbers: tuple[int, ...]
    data: str
    headline: str
    """The metric that a summary shows; the task's main one."""


PAPER = {
    "imagenet": PaperTable((1, 2, 3), "imagenet1k", "top1_error"),
    "something": PaperTable((6,), "something_something_v1", "top1_acc"),
    "voc": PaperTable((7,), "voc2012", "miou"),
    "modelnet40": PaperTable((8,), "modelnet40", "overall_acc"),
    "coco": PaperTable((4, 5), "coco2017", "box_AP"),
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
    "peak_memory_mib", "source", "record",
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
    return sorted(records, key=lambda r: (r.task, r.recipe, r.data.name, r.network, r.norm, r.seed, r.id))


def table_name(record: RunRecord) -> str:
    """The file a record belongs to: ``voc`` is the paper's recipe on the paper's data, and nothing else is."""
    task, recipe, data = record.task, record.recipe, record.data.name
    if recipe == "paper" and task in PAPER and data == PAPER[task].data:
        return task
    if recipe == "mini" and data.startswith(f"{task}-mini"):
        return f"{task}-mini"
    return f"{task}-{recipe}-{data}"


def _record_rows(record: RunRecord) -> list[Row]:
    batch = record.batch
    common = {
        "task": record.task, "recipe": record.recipe, "data": record.data.name, "network": record.network,
        "norm": record.norm, "micro_batch": batch.micro_batch, "accumulate": batch.accumulate,
        "devices": batch.devices, "effective_batch": batch.effective_batch, "norm_batch": batch.norm_batch,
        "seed": record.seed, "steps": record.steps, "overrides": " ".join(sorted(record.overrides)),
        "samples_per_second": record.cost.samples_per_second, "peak_memory_mib": record.cost.peak_memory_mib,
        "source": "run", "record": record.id,
    }  # fmt: skip
    rows = []
    for name, metric in sorted(record.metrics.items()):
        best = record.best.get(name)
        values = {"metric": name, "value": metric.value, "n_eval": metric.n_eval, "best_value": best and best.value}
        row = {k: "" if v is None else str(v) for k, v in (common | values).items()}
        rows.append({column: row[column] for column in COLUMNS})
    return rows


def _paper_rows(task: str) -> list[Row]:
    return [
        dict.fromkeys(COLUMNS, "")
        | {
            "task": task,
            "recipe": "paper",
            "data": PAPER[task].data,
            "network": network_of(row),
            "norm": row.norm,
            "metric": row.metric,
        }
        | {"micro_batch": row.batch_per_gpu, "value": str(row.value), "source": row.source}
        for row in paper_rows_of(task)
    ]


def derive(records: Sequence[RunRecord]) -> dict[str, str]:
    """``{file name: CSV text}``; the same records give the same bytes."""
    tables: dict[str, list[Row]] = {task: _paper_rows(task) for task in PAPER}
    for record in in_order(records):
        tables.setdefault(table_name(record), []).extend(_record_rows(record))
    texts = {}
    for name, rows in sorted(tables.items()):
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        texts[f"{name}.csv"] = out.getvalue()
    return texts


def update(folders: Sequence[Path], out: Path) -> list[Path]:
    """Derive the tables from all records below ``folders`` and write them into ``out``."""
    texts = derive(find_records(folders))
    for name, text in texts.items():
        write_text_atomically(out / name, text)
    return [out / name for name in texts]


def summary(records: Sequence[RunRecord], metric: str) -> list[tuple[str, str, int, float, float | None]]:
    """(table, norm, seeds, mean, standard deviation) of records that differ in nothing but the seed."""
    groups: dict[tuple[str, str, str, str, str], list[float]] = defaultdict(list)
    for record in records:
        if metric in record.metrics:
            changed = " ".join(f"{k}={v}" for k, v in sorted(record.overrides.items()))
            batch = str(tuple(record.batch.model_dump().values()))
            key = (table_name(record), record.norm, record.network, batch, changed)
            groups[key].append(record.metrics[metric].value)
    return [
        (key[0], key[1] + (f" ({key[4]})" if key[4] else ""), len(values), statistics.mean(values),
         statistics.stdev(values) if len(values) > 1 else None)
        for key, values in sorted(groups.items())
    ]  # fmt: skip
