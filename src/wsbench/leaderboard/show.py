"""A finished run's results beside the paper's row."""

from collections.abc import Sequence
from pathlib import Path

from wsbench.leaderboard.paper import is_paper_data, network_of, paper_rows_of
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
    paper_data = record.recipe == "paper" and is_paper_data(record.task, record.data.name)
    rows = [r for r in paper_rows_of(record.task) if r.norm == record.norm] if paper_data else []
    rows = [r for r in rows if record.network == network_of(record.task, r)] or [
        r for r in rows if r.table == rows[0].table
    ]
    rows = [r for r in rows if network_of(record.task, r) == network_of(record.task, rows[0])]
    paper = {r.metric: r.value for r in rows}
    names = (RECORD_NAME, *run_folder.FILES)
    title = f"{rows[0].source} ({rows[0].dataset}, {rows[0].model})" if rows else "paper"
    results(record, paper, title, [*(folder / n for n in names if (folder / n).exists()), *also])
