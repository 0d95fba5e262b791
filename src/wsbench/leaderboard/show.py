"""A finished run's results beside the paper's row."""

from collections.abc import Sequence
from pathlib import Path

from wsbench.leaderboard.paper import paper_rows
from wsbench.leaderboard.tables import PAPER
from wsbench.records import RECORD_NAME, read_record
from wsbench.run import folder as run_folder
from wsbench.run.report import results


def show(folder: Path, also: Sequence[Path] = ()) -> None:
    """Print the record in ``folder`` and the paths of its files.

    Args:
        folder: a run's folder.
        also: further paths to name.
    """
    record = read_record(folder / RECORD_NAME)
    table = PAPER[record.task].number
    model = record.network.rpartition("_")[2]
    rows = [r for r in paper_rows(table) if r.norm == record.norm]
    rows = [r for r in rows if r.model == model] or rows
    paper = {r.metric: r.value for r in rows}
    names = (RECORD_NAME, *run_folder.FILES)
    title = f"paper Table {table}" + (f" ({rows[0].dataset}, {rows[0].model})" if rows else "")
    results(record, paper, title, [*(folder / n for n in names if (folder / n).exists()), *also])
