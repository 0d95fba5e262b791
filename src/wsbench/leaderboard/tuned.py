"""Rows at a tuned learning rate: what stands behind the rate, and whether it was chosen as docs/protocol.md says."""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import yaml

from wsbench.leaderboard.logs import Logs
from wsbench.records import RunRecord, Trial, Tuning, chosen, lower_is_better, mean_scores
from wsbench.registry import TASKS
from wsbench.run.identity import LR, SHARE, recipe_digest

#: points of the metric (percent) within which a rate works as well as the best
WITHIN = 5.0
#: learning rates that a choice needs
FEWEST_RATES = 3
COLUMNS = ("lr", "trials", "lr_low", "lr_high", "diverged", "target", "reached", "steps_to_target")


def working_range(tuning: Tuning) -> tuple[float, float]:
    """The lowest and the highest rate of those around the chosen one that score within :data:`WITHIN` of the best."""
    scores = mean_scores(tuning.trials)
    rates = list(scores)
    low = high = rates.index(tuning.rate)
    works = [abs(scores[rate] - scores[tuning.rate]) <= WITHIN for rate in rates]
    while low > 0 and works[low - 1]:
        low -= 1
    while high < len(rates) - 1 and works[high + 1]:
        high += 1
    return rates[low], rates[high]


def target_of(record: RunRecord) -> float | None:
    """The stated score of the record's miniature; None where none is stated."""
    named = record.recipe == "mini" and record.data.name.startswith(f"{record.task}-mini")
    return TASKS[record.task].target if named else None


def counted_in_steps(records: Sequence[RunRecord]) -> set[str]:
    """The records whose logs a table needs: tuned ones with a stated score."""
    return {r.id for r in records if r.tuning is not None and target_of(r) is not None}


def steps_to(target: float, series: Mapping[int, float], lower: bool) -> int | None:
    """The step of the first evaluation that is as good as ``target``; None if none is.

    Args:
        target: a score.
        series: ``{step: score}`` of a run's evaluations.
        lower: whether a lower score is better.
    """
    return next((s for s, v in sorted(series.items()) if (v <= target if lower else v >= target)), None)


def steps_to_target(records: Sequence[RunRecord], metric: str, logs: Logs) -> tuple[int, float | None] | None:
    """How many runs reach the target, and the median over all runs of the steps it takes (None: half do not).

    None where no target is stated, the metric is not the task's main one, or a log is missing.
    """
    target = target_of(records[0])
    tuning = records[0].tuning
    if target is None or tuning is None or metric != tuning.metric or any(r.id not in logs for r in records):
        return None
    lower = lower_is_better(metric)
    steps = [steps_to(target, logs[r.id].get(f"val/{metric}", {}), lower) for r in records]
    middle = statistics.median(math.inf if step is None else step for step in steps)
    return sum(step is not None for step in steps), middle if math.isfinite(middle) else None


def columns(records: Sequence[RunRecord], metric: str, logs: Logs) -> dict[str, str]:
    """The further columns of a row of tuned runs."""
    tuning = records[0].tuning
    assert tuning is not None
    low, high = working_range(tuning)
    counted = steps_to_target(records, metric, logs)
    reached, steps = ("", None) if counted is None else (str(counted[0]), counted[1])
    target = target_of(records[0])
    return {"lr": f"{tuning.rate:g}", "trials": str(len(tuning.trials)), "lr_low": f"{low:g}", "lr_high": f"{high:g}",
            "diverged": str(sum(record.diverged is not None for record in records)),
            "target": "" if counted is None else f"{target:g}", "reached": reached,
            "steps_to_target": "" if steps is None else f"{steps:g}"}  # fmt: skip


def trial_columns(record: RunRecord) -> dict[str, str]:
    """The further column of a row of trials, whose rates are a curve; none of other rows."""
    if SHARE not in record.overrides:
        return {}
    rate = rate_of(record)
    return {"lr": "" if rate is None else f"{rate:g}"}


@cache
def _recipe(task: str, recipe: str) -> tuple[str, float | None]:
    """Digest and learning rate of a recipe."""
    path = files("wsbench.conf") / task / f"{recipe}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return recipe_digest(content), content.get("model", {}).get("lr")


def rate_of(record: RunRecord) -> float | None:
    """A run's learning rate; None where it is that of a recipe that has changed since."""
    if LR in record.overrides:
        return float(record.overrides[LR])
    digest, rate = _recipe(record.task, record.recipe)
    return rate if digest == record.recipe_digest else None


def untuned(record: RunRecord) -> dict[str, object]:
    """What a run changed of its recipe, beside what is tuned."""
    return {name: value for name, value in record.overrides.items() if name not in (LR, SHARE)}


def _trial_problems(record: RunRecord, tuning: Tuning, trial: Trial, other: RunRecord) -> list[str]:
    """Why the record of a trial is not what the tuning says of it."""
    problems = []
    method = ("task", "recipe", "recipe_digest", "norm", "network", "batch")
    differ = [name for name in method if getattr(other, name) != getattr(record, name)]
    differ += ["seed"] if other.seed != trial.seed else []
    differ += ["held-out share"] if other.overrides.get(SHARE) != tuning.share else []
    differ += ["overrides"] if untuned(other) != untuned(record) else []
    whole = record.diverged is None and other.diverged is None and "trainer.max_steps" in record.overrides
    differ += ["steps"] if whole and other.steps != record.steps else []
    if differ:
        problems.append(f"its trial {trial.record} is of another method or setting: {', '.join(differ)}")
    ours, theirs = record.data.splits, other.data.splits
    labels = [splits["train"].labels for splits in (ours, theirs)]
    count = sum(theirs[part].count for part in ("train", "val"))
    if other.data.name != record.data.name or (all(labels) and labels[0] != labels[1]) or count != ours["train"].count:
        problems.append(f"its trial {trial.record} is of other data than a division of the training samples")
    if theirs["val"].checksum in (ours["val"].checksum, ours["train"].checksum, theirs["train"].checksum):
        problems.append(f"its trial {trial.record} was scored on the reporting split, or on what it was trained on")
    if rate_of(other) not in (None, trial.rate):
        problems.append(f"its trial {trial.record} has the rate {rate_of(other)}, not {trial.rate}")
    score = other.metrics.get(tuning.metric)
    if score is None or score.value != trial.score or (other.diverged is not None) != trial.diverged:
        problems.append(f"its trial {trial.record} does not score {trial.score}")
    if other.seed == record.seed:
        problems.append(f"seed {record.seed} was used to choose its rate")
    return problems


def tuning_problems(record: RunRecord, published: Sequence[RunRecord]) -> list[str]:
    """Why a tuned record cannot be believed: one line each.

    Its trials are published, of the same method, scored on what was held out of the training data and nothing else; the
    rate is the best of theirs; the seed is fresh; and every method of its setting had the same trials.
    """
    tuning = record.tuning
    if tuning is None:
        return []
    problems = []
    by_id = {other.id: other for other in published}
    rate = rate_of(record)
    if rate is not None and rate != tuning.rate:
        problems.append(f"its learning rate is {rate}, the tuning chose {tuning.rate}")
    if SHARE in record.overrides:
        problems.append("it is scored on what its rate was chosen on")
    if len({trial.record for trial in tuning.trials}) < len(tuning.trials):
        problems.append("two of its trials are one run")
    if len({trial.rate for trial in tuning.trials}) < FEWEST_RATES:
        problems.append(f"its rate was chosen of fewer than {FEWEST_RATES}")
    for trial in tuning.trials:
        other = by_id.get(trial.record)
        if other is None:
            problems.append(f"its trial {trial.record} (rate {trial.rate}, seed {trial.seed}) is not published")
        else:
            problems += _trial_problems(record, tuning, trial, other)
    best = chosen(mean_scores(tuning.trials), not lower_is_better(tuning.metric))
    if tuning.rate != best:
        problems.append(f"the tuning chose {tuning.rate}, the best of its trials is {best}")
    tried = sorted((trial.rate, trial.seed) for trial in tuning.trials)
    for other in published:
        same = (other.task, other.recipe, other.network, untuned(other)) == (
            record.task, record.recipe, record.network, untuned(record)
        )  # fmt: skip
        if other.tuning is None or not same or other.data != record.data or other.batch != record.batch:
            continue
        if sorted((trial.rate, trial.seed) for trial in other.tuning.trials) != tried:
            problems.append(f"{other.norm} ({other.id}) had other trials than {record.norm}")
            break
    return problems
