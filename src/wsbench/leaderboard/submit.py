"""Finished runs to published records."""

from collections.abc import Sequence
from pathlib import Path

from wsbench.leaderboard.check import log_problems, problems_of, twins
from wsbench.leaderboard.derive import derive, update
from wsbench.leaderboard.naming import LeaderboardError, find_records
from wsbench.leaderboard.tuned import tuning_problems
from wsbench.records import METRICS_SUFFIX, NOTED, RECORD_NAME, RunRecord, read_record, write_atomically, write_record
from wsbench.run.folder import METRICS


def _target(record: RunRecord, leaderboards: Path) -> Path:
    return leaderboards / "records" / record.task / f"{record.id}.json"


def _checked(run: Path, leaderboards: Path, note: str) -> RunRecord:
    """The record of a run as it is to be published.

    Raises:
        LeaderboardError: it cannot be, or another of this run needs a note to be renewed.
    """
    source = run / RECORD_NAME
    if not source.is_file():
        raise LeaderboardError(f"'{run}' is no finished run: it has no {RECORD_NAME}")
    record = read_record(source)
    problems = problems_of(record) + log_problems(record, run / METRICS)
    if problems:
        raise LeaderboardError(f"run {record.id} is not published: {'; '.join(problems)}")
    target = _target(record, leaderboards)
    if target.exists() and not note and read_record(target).metrics != record.metrics:
        raise LeaderboardError(f"run {record.id} is published with other results; say why it is renewed by --note")
    if note:
        version = max(record.schema_version, NOTED)  # not the newest: what that one brought is not in an old record
        record = record.model_copy(update={"note": note, "schema_version": version})
    return record


def _has_further_trials(record: RunRecord, published: RunRecord) -> bool:
    """Whether a record is the published one, but for trials that the grid of its rate got since."""
    new, old = record.tuning, published.tuning
    grew = new is not None and old is not None and new.rate == old.rate and {*old.trials} < {*new.trials}
    return grew and record.model_copy(update={"tuning": old}) == published


def submit(runs: Sequence[Path], leaderboards: Path, note: str = "") -> list[Path]:
    """Copy the records and logs of runs to those that are published, and derive the tables.

    All of them or none: a tuned run is published with the trials by which its rate was chosen. Of several runs, those
    that are published already, with the same results, are passed over, unless the grid of their rate has grown since.

    Args:
        runs: folders of finished runs.
        leaderboards: with ``records/`` and the CSV files.
        note: stands in the records; needed where a record of a run is published already and says otherwise.

    Returns:
        The files that were written, a record and a log for each run, then tables.

    Raises:
        LeaderboardError: a record cannot be published; nothing was written.
        RecordError: there is none.
    """
    fresh: dict[str, tuple[Path, RunRecord]] = {}
    for run in runs:
        record = _checked(run, leaderboards, note)
        target = _target(record, leaderboards)
        if note or not target.exists() or _has_further_trials(record, read_record(target)):
            fresh[record.id] = (run, record)
        elif len(runs) == 1:
            raise LeaderboardError(f"run {record.id} is published already, with the same results: '{target}'")
    folders = [leaderboards / "records"]
    others = [r for r in find_records(folders) if r.id not in fresh] if folders[0].is_dir() else []
    together = [*others, *(record for _, record in fresh.values())]
    wrong = twins(together)
    wrong += [f"{record.id}: {p}" for _, record in fresh.values() for p in tuning_problems(record, together)]
    if wrong:
        raise LeaderboardError(f"nothing is published: {'; '.join(wrong[:5])}")
    derive(together)  # refuses mixed data before anything is written
    written = []
    for run, record in fresh.values():
        target = _target(record, leaderboards)
        log = target.with_name(record.id + METRICS_SUFFIX)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(log, (run / METRICS).read_bytes())
        write_record(record, target)
        written += [target, log]
    return [*written, *update(folders, leaderboards)]
