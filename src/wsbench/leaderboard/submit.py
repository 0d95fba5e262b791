"""A finished run to a published record."""

from pathlib import Path

from wsbench.leaderboard.check import log_problems, problems_of, twins
from wsbench.leaderboard.derive import derive, update
from wsbench.leaderboard.logs import METRICS_SUFFIX
from wsbench.leaderboard.tables import LeaderboardError, find_records
from wsbench.records import NOTED, RECORD_NAME, read_record, write_atomically, write_record
from wsbench.run.folder import METRICS


def submit(run: Path, leaderboards: Path, note: str = "") -> list[Path]:
    """Copy a run's record and its log of metrics to those that are published, and derive the tables.

    Args:
        run: the folder of a finished run.
        leaderboards: with ``records/`` and the CSV files.
        note: stands in the record; needed where a record of this run is published already and says otherwise.

    Returns:
        The files that were written.

    Raises:
        LeaderboardError: the record cannot be published; nothing was written.
        RecordError: there is none.
    """
    source = run / RECORD_NAME
    if not source.is_file():
        raise LeaderboardError(f"'{run}' is no finished run: it has no {RECORD_NAME}")
    record = read_record(source)
    problems = problems_of(record) + log_problems(record, run / METRICS)
    if problems:
        raise LeaderboardError(f"run {record.id} is not published: {'; '.join(problems)}")
    target = leaderboards / "records" / record.task / f"{record.id}.json"
    if target.exists():
        published = read_record(target)
        if published.metrics == record.metrics and not note:
            raise LeaderboardError(f"run {record.id} is published already, with the same results: '{target}'")
        if not note:
            raise LeaderboardError(f"run {record.id} is published with other results; say why it is renewed by --note")
    if note:
        version = max(record.schema_version, NOTED)  # not the newest: what that one brought is not in an old record
        record = record.model_copy(update={"note": note, "schema_version": version})
    folders = [leaderboards / "records"]
    others = [r for r in find_records(folders) if r.id != record.id] if folders[0].is_dir() else []
    doubled = twins([*others, record])
    if doubled:
        raise LeaderboardError(f"run {record.id} is not published: {'; '.join(doubled)}")
    derive([*others, record])  # refuses mixed data before anything is written
    log = target.with_name(record.id + METRICS_SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(log, (run / METRICS).read_bytes())
    write_record(record, target)
    return [target, log, *update(folders, leaderboards)]
