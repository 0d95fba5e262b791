"""A finished run's results beside the paper's row."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from wsbench.leaderboard.paper import paper_rows
from wsbench.records import RECORD_NAME, read_record
from wsbench.run import folder as run_folder
from wsbench.run.report import results


def show(folder: Path, table: int, paper_metrics: Mapping[str, str], also: Sequence[Path] = ()) -> None:
    """Print the record in ``folder`` and the paths of its files.

    Args:
        folder: a run's folder.
        table: the paper's table of this task.
        paper_metrics: our metrics to their names in that table.
        also: further paths to name.
    """
    record = read_record(folder / RECORD_NAME)
    model = record.network.rpartition("_")[2]
    rows = [r for r in paper_rows(table) if r.norm == record.norm]
    rows = [r for r in rows if r.model == model] or rows
    paper = {ours: r.value for ours, theirs in paper_metrics.items() for r in rows if r.metric == theirs}
    names = (RECORD_NAME, *run_folder.FILES)
    title = f"paper Table {table}" + (f" ({rows[0].dataset}, {rows[0].model})" if rows else "")
    results(record, paper, title, [*(folder / n for n in names if (folder / n).exists()), *also])
