"""Records, the paper's rows and published ones as rows of a long CSV file."""

import csv
import io
from collections.abc import Iterable, Sequence

from wsbench.leaderboard.naming import data_checksum, overrides_of
from wsbench.leaderboard.paper import network_of, paper_rows_of
from wsbench.leaderboard.published import published_rows
from wsbench.records import RunRecord
from wsbench.registry import TASKS

COLUMNS = (
    "task", "recipe", "data", "network", "norm", "micro_batch", "accumulate", "devices", "effective_batch",
    "norm_batch", "seed", "metric", "value", "best_value", "n_eval", "steps", "overrides", "samples_per_second",
    "peak_memory_mib", "source", "record", "citation", "note", "data_checksum", "precision", "hardware", "wsbench",
    "commit", "finished",
)  # fmt: skip
Row = dict[str, str]


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
    paper = TASKS[task].paper
    if paper is None:
        return []
    empty = dict.fromkeys(COLUMNS, "") | {"task": task, "data": paper.data}
    papers = [
        empty
        | {"recipe": "paper", "network": network_of(task, row), "norm": row.norm, "metric": row.metric}
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
    return papers + published


def text_of(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """CSV text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
