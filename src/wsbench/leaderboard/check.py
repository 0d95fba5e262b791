"""What a record must be to be published, and whether published tables say what their records do."""

import csv
import math
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsbench.leaderboard.derive import derive
from wsbench.leaderboard.logs import find_logs
from wsbench.leaderboard.naming import find_records, in_order, overrides_of, table_name
from wsbench.leaderboard.tuned import counted_in_steps, tuning_problems
from wsbench.records import METRICS_SUFFIX, RecordError, RunRecord, read_record
from wsbench.registry import TASKS
from wsbench.run.identity import IDENTIFIED, id_of
from wsbench.run.lines import read_metrics

#: what identifies a row of the long and of the wide table from one revision to the next
LONG_KEY = (
    "task", "recipe", "data", "network", "norm", "micro_batch", "effective_batch", "devices", "seed", "metric",
    "source",
)  # fmt: skip
WIDE_KEY = tuple(name for name in (*LONG_KEY, "overrides") if name != "seed")

#: the normalization of parts of a micro-batch, and how many samples they have (32 unless it says so)
_GHOST = re.compile(r"gbn(\d*)(?![a-z])")


def problems_of(record: RunRecord) -> list[str]:
    """Why a record cannot be right, or cannot be traced: one line each."""
    problems = []
    batch, provenance = record.batch, record.provenance
    if batch.micro_batch * batch.accumulate * batch.devices != batch.effective_batch:
        problems.append(f"effective_batch {batch.effective_batch} is not the product of the three before it")
    whole = batch.micro_batch * batch.devices
    ghost = _GHOST.match(record.norm)
    parts = (
        range(1, whole + 1) if record.norm_sources else [min(int(ghost[1] or 32), batch.micro_batch)] if ghost else []
    )
    if batch.norm_batch not in (batch.micro_batch, whole, *parts):
        problems.append(f"norm_batch {batch.norm_batch} is neither micro_batch nor micro_batch times devices")
    if record.schema_version >= IDENTIFIED and (identity := id_of(record)) != record.id:
        problems.append(f"it says that it is run {record.id}, and what it holds is run {identity}")
    if record.steps < 1:
        problems.append("no step was taken")
    if record.cost.samples_per_second <= 0 or record.cost.peak_memory_mib <= 0:
        problems.append("samples_per_second and peak_memory_mib must be above 0")
    if not provenance.commit or provenance.dirty is not False:
        problems.append("it was not run from a clean commit, so nobody can run it again; commit, and run it")
    if TASKS[record.task].headline not in record.metrics:
        problems.append(f"it has no {TASKS[record.task].headline}, the task's main metric")
    for kind, metrics in (("metrics", record.metrics), ("best", record.best)):
        for name, metric in metrics.items():
            if not 0 <= metric.value <= 100:
                problems.append(f"{kind}.{name} {metric.value} is no percentage")
            if not name.startswith("train_") and metric.n_eval != record.data.splits["val"].count:
                problems.append(f"{kind}.{name} is over {metric.n_eval} of {record.data.splits['val'].count} samples")
            if metric.step > record.steps:
                problems.append(f"{kind}.{name} is of step {metric.step}, the run has {record.steps}")
    for low, high in (("top5_error", "top1_error"), ("top1_acc", "top5_acc")):
        if {low, high} <= set(record.metrics) and record.metrics[low].value > record.metrics[high].value:
            problems.append(f"{low} {record.metrics[low].value} is above {high} {record.metrics[high].value}")
    return problems


def log_problems(record: RunRecord, log: Path) -> list[str]:
    """Where a run's log of metrics contradicts its record."""
    if not log.is_file():
        return [f"its log of metrics, {log.name}, is missing: figures are drawn from it"]
    series = read_metrics(log)
    problems = []
    for name, metric in record.metrics.items():
        part, short = ("train", name.removeprefix("train_")) if name.startswith("train_") else ("val", name)
        logged = series.get(f"{part}/{short}", {}).get(metric.step)
        if logged is not None and not math.isclose(logged, metric.value, abs_tol=1e-3):
            problems.append(f"metrics.{name} {metric.value} is {logged:.4f} in {log.name} at step {metric.step}")
    return problems


def twins(records: Sequence[RunRecord]) -> list[str]:
    """Records that are the same run: of one configuration and seed, under two ids."""
    seen: dict[tuple[object, ...], RunRecord] = {}
    problems = []
    for record in in_order(records):
        what = (
            table_name(record),
            record.network,
            record.labelled_norm,
            overrides_of(record),
            record.batch,
            record.seed,
        )
        other = seen.setdefault(what, record)
        if other is not record:
            problems.append(f"{record.id} and {other.id} are the same run ({record.norm}, seed {record.seed})")
    return problems


def _read_all(folder: Path) -> Iterator[tuple[Path, RunRecord]]:
    for path in sorted(folder.glob("*/*.json")):
        yield path, read_record(path)


def check(folder: Path, base: str | None = None) -> list[str]:
    """Everything that is wrong with a folder of leaderboards.

    Args:
        folder: with ``records/TASK/ID.json`` and the CSV files.
        base: a git revision that published tables earlier.

    Raises:
        RecordError: a file is not a record.
    """
    problems = []
    for path, record in _read_all(folder / "records"):
        if (path.parent.name, path.stem) != (record.task, record.id):
            problems.append(f"'{path}' is record {record.task}/{record.id}; a file is called by its record")
        log = path.with_name(record.id + METRICS_SUFFIX)
        problems += [
            f"record {record.task}/{record.id}: {p}" for p in (*problems_of(record), *log_problems(record, log))
        ]
    records = find_records([folder / "records"])
    problems += twins(records) + [f"record {r.task}/{r.id}: {p}" for r in records for p in tuning_problems(r, records)]
    texts = derive(records, find_logs([folder / "records"], counted_in_steps(records)))
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            problems.append(
                f"'{path}' is not what the records say; `leaderboard --records {folder / 'records'}` derives it"
            )
    problems += [f"'{p}' has no record; remove it" for p in sorted(folder.glob("*.csv")) if p.name not in texts]
    return problems + (_since(folder, texts, base) if base else [])


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RecordError(f"--base: git {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def _since(folder: Path, texts: dict[str, str], base: str) -> list[str]:
    """Rows that were lost since a revision, and means that moved silently."""
    problems = []
    names = _git(folder, "ls-tree", "--name-only", base, "./").split()
    for name in sorted(name for name in names if name.endswith(".csv")):
        wide = name.endswith(".wide.csv")
        key = WIDE_KEY if wide else LONG_KEY
        before = _rows(_git(folder, "show", f"{base}:./{name}"), key)
        now = _rows(texts.get(name, ""), key)
        for identity, row in before.items():
            record = f"{name}: {' '.join(filter(None, identity))}"
            if identity not in now:
                problems.append(f"{record}: the row of {base} is lost")
            elif wide and _moved(row, now[identity]) and now[identity]["note"] in ("", row["note"]):
                problems.append(
                    f"{record}: the mean moved from {row['mean']} to {now[identity]['mean']}, out of its interval; "
                    "say why in a record's note (`leaderboard submit RUN --note WHY`)"
                )
    return problems


def _rows(text: str, key: Sequence[str]) -> dict[tuple[str, ...], dict[str, str]]:
    return {tuple(_plain(row.get(name, "")) for name in key): row for row in csv.DictReader(text.splitlines())}


def _plain(value: str) -> str:
    """The source, without a table's number, which early tables had behind it."""
    return "paper" if value.startswith("paper Table") else value


def _moved(before: dict[str, str], now: dict[str, str]) -> bool:
    if not before["ci95_low"]:
        return before["mean"] != now["mean"]
    return not float(before["ci95_low"]) <= float(now["mean"]) <= float(before["ci95_high"])
