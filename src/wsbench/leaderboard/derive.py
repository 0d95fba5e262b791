"""All tables of a set of records, and their files; the same records give the same bytes."""

from collections.abc import Sequence
from pathlib import Path

from wsbench.leaderboard import tuned
from wsbench.leaderboard.logs import Logs, find_logs
from wsbench.leaderboard.naming import by_table, find_records
from wsbench.leaderboard.rows import COLUMNS, cited_rows, record_rows, text_of
from wsbench.leaderboard.wide import columns_of, wide_rows
from wsbench.records import RunRecord, write_text_atomically
from wsbench.registry import TASKS


def derive(records: Sequence[RunRecord], logs: Logs | None = None) -> dict[str, str]:
    """``{file name: CSV text}`` of long and wide tables.

    Args:
        records: all of them.
        logs: their logs of metrics; without one, what is counted in steps stays empty.
    """
    texts = {}
    for name, of_table in by_table(records).items():
        cited = cited_rows(name) if name in TASKS else []
        texts[f"{name}.csv"] = text_of(COLUMNS, [*cited, *(row for record in of_table for row in record_rows(record))])
        task = of_table[0].task if of_table else name
        texts[f"{name}.wide.csv"] = text_of(columns_of(of_table), wide_rows(task, of_table, cited, logs))
    return texts


def update(folders: Sequence[Path], out: Path, of: RunRecord | None = None, cited: bool = False) -> list[Path]:
    """Derive the tables from all records below ``folders`` and write them.

    Args:
        folders: with records.
        out: the folder of the tables. In one that holds published records every table is written.
        of: only the long table that holds this record is returned.
        cited: write tables of cited numbers only, too, of tasks without a record.

    Returns:
        The files that were written.
    """
    records = find_records(folders)
    cited = cited or (out / "records").is_dir()
    own = {name for name, of_table in by_table(records).items() if of_table or cited}
    texts = derive(records, find_logs(folders, tuned.counted_in_steps(records)))
    texts = {file: text for file, text in texts.items() if file.partition(".")[0] in own}
    for name, text in texts.items():
        write_text_atomically(out / name, text)
    if of is None:
        return [out / name for name in texts]
    return [out / f"{name}.csv" for name, of_table in by_table(records).items() if any(r.id == of.id for r in of_table)]
