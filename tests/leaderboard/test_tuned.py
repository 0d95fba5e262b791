"""A tuned row is believed only with its trials: each way to cheat is refused."""

import re
from typing import Any

import pytest

from tests.test_records import make_record
from wsbench.configuration.choice import recipe_content
from wsbench.leaderboard.derive import derive
from wsbench.leaderboard.tuned import columns, rate_of, tuning_problems, working_range
from wsbench.records import BatchNumbers, DataIdentity, MetricValue, RunRecord, SplitIdentity, Trial, Tuning
from wsbench.run.identity import recipe_digest

RATES = {0.01: 30.0, 0.03: 42.0, 0.1: 45.0, 0.3: 20.0}


def data(val: str) -> DataIdentity:
    """With 15 training samples, of which 3 may be held out."""
    held = val != "val"
    splits = {
        "train": SplitIdentity(list="t", count=12 if held else 15, checksum="rest" if held else "t", labels="l"),
        "val": SplitIdentity(list=val, count=3, checksum=val),
    }
    return DataIdentity(name="voc-mini-v1", splits=splits)


def trial(rate: float, **changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "id": f"t{rate}", "seed": 1000, "overrides": {"model.lr": rate, "data.tuning": 0.2}, "data": data("held out"),
        "metrics": {"miou": MetricValue(value=RATES[rate], n_eval=3, step=4)},
    }  # fmt: skip
    return make_record(**values | changes)


def tuned(rate: float = 0.1, rates: tuple[float, ...] = tuple(RATES), **changes: Any) -> RunRecord:
    trials = tuple(Trial(rate=r, seed=1000, record=f"t{r}", score=RATES[r], diverged=False) for r in rates)
    tuning = Tuning(metric="miou", share=0.2, trials=trials, rate=rate)
    values: dict[str, Any] = {
        "id": "r",
        "seed": 100,
        "overrides": {"model.lr": rate},
        "tuning": tuning,
        "data": data("val"),
    }
    return make_record(schema_version=7, **values | changes)


def whole() -> DataIdentity:
    """A held-out part beside all training samples: nothing was held out."""
    found = data("held out")
    return found.model_copy(update={"splits": {**found.splits, "train": data("val").splits["train"]}})


def doubled() -> Tuning:
    """One run, listed as several."""
    tuning = tuned().tuning
    assert tuning is not None
    first = tuning.trials[2]
    return tuning.model_copy(update={"trials": (first, first, first)})


TRIALS = [trial(rate) for rate in RATES]


def test_a_row_with_its_trials() -> None:
    record = tuned()
    assert tuning_problems(record, [record, *TRIALS]) == []
    texts = derive([record, *TRIALS])
    assert {name for name in texts if name.startswith("voc-mini")} == {
        "voc-mini-tuned.csv", "voc-mini-tuned.wide.csv", "voc-mini-trials.csv", "voc-mini-trials.wide.csv"
    }  # fmt: skip
    header, row = texts["voc-mini-tuned.wide.csv"].splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    assert (cells["lr"], cells["trials"], cells["lr_low"], cells["lr_high"]) == ("0.1", "4", "0.03", "0.1")
    header, *rows = texts["voc-mini-trials.wide.csv"].splitlines()
    assert "lr_low" not in header
    curve = {float(row.split(",")[-1]): float(row.split(",")[header.split(",").index("mean")]) for row in rows}
    assert curve == RATES


@pytest.mark.parametrize(
    ("record", "trials", "message"),
    [
        (tuned(), TRIALS[1:], "its trial t0.01 .* is not published"),
        (tuned(rate=0.03), TRIALS, "chose 0.03, the best of its trials is 0.1"),
        (tuned(overrides={"model.lr": 0.3}), TRIALS, "its learning rate is 0.3, the tuning chose 0.1"),
        (tuned(overrides={"model.lr": 0.1, "data.tuning": 0.2}), TRIALS, "scored on what its rate was chosen on"),
        (tuned(seed=1000), TRIALS, "seed 1000 was used to choose its rate"),
        (tuned(data=data("held out")), TRIALS, "t0.01 was scored on the reporting split"),
        (tuned(rates=(0.03, 0.1)), TRIALS, "chosen of fewer than 3"),
        (tuned(task="imagenet"), TRIALS, "t0.01 is of another method or setting: task"),
        (tuned(recipe="small"), TRIALS, "t0.01 is of another method or setting: recipe"),
        (tuned(batch=BatchNumbers(micro_batch=2, accumulate=4, devices=1, effective_batch=8, norm_batch=2)), TRIALS,
         "t0.01 is of another method or setting: batch"),
        (tuned(), [trial(0.01, data=data("held out").model_copy(update={"name": "custom"})), *TRIALS[1:]],
         "t0.01 is of other data"),
        (tuned(), [trial(0.01, data=whole()), *TRIALS[1:]], "t0.01 is of other data than a division"),
        (tuned(), [trial(0.01, diverged=3), *TRIALS[1:]], "t0.01 does not score"),
        (tuned(tuning=doubled()), TRIALS, "two of its trials are one run"),
        (tuned(norm="bn"), TRIALS, "t0.01 is of another method"),
        (tuned(overrides={"model.lr": 0.1, "trainer.max_steps": 9}), TRIALS, "t0.01 is of another .*: overrides"),
        (tuned(), [*TRIALS[:3], trial(0.3, metrics={"miou": MetricValue(value=60.0, n_eval=3, step=4)})],
         "t0.3 does not score 20.0"),
        (tuned(), [*TRIALS[:3], trial(0.3, overrides={"model.lr": 0.2, "data.tuning": 0.2})], "t0.3 has the rate 0.2"),
        (tuned(), [*TRIALS, tuned(id="other", norm="bn", rates=(0.03, 0.1))], "bn .other. had other trials than gn.ws"),
    ],
)  # fmt: skip
def test_what_is_refused(record: RunRecord, trials: list[RunRecord], message: str) -> None:
    assert any(re.search(message, problem) for problem in tuning_problems(record, [record, *trials]))


def test_the_working_range_has_no_gap() -> None:
    record = tuned(rates=(0.01, 0.03, 0.1, 0.3))
    assert record.tuning is not None
    assert working_range(record.tuning) == (0.03, 0.1)
    assert columns([record, tuned(diverged=3)], "miou", {})["diverged"] == "1"


def test_the_recipes_rate_counts_where_nothing_overrides_it() -> None:
    """A run that keeps the recipe's rate has that rate, as long as the recipe is the one that it ran."""
    content = recipe_content("voc", "mini")
    record = make_record(task="voc", recipe="mini", overrides={}, recipe_digest=recipe_digest(content))
    assert rate_of(record) == content["model"]["lr"]
    assert rate_of(record.model_copy(update={"overrides": {"model.lr": 0.5}})) == 0.5
    assert rate_of(record.model_copy(update={"recipe_digest": "of another version"})) is None
