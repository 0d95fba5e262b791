"""What a tuned table is said to show: by made-up records whose answer is known, and by scipy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.test_records import make_record
from wsbench.leaderboard.derive import derive
from wsbench.leaderboard.spread import effect_size
from wsbench.leaderboard.verdict import Overall, overall, verdicts
from wsbench.leaderboard.wide import groups
from wsbench.records import BatchNumbers, MetricValue, RunRecord, Trial, Tuning


def tuned(
    norm: str, values: Sequence[float], rate: float = 0.1, task: str = "imagenet", metric: str = "top1_error",
    **changes: Any,
) -> list[RunRecord]:  # fmt: skip
    trials = tuple(
        Trial(rate=r, seed=1000, record=f"t{r}", score=40.0 + 10 * abs(r - rate), diverged=False) for r in (0.03, 0.1)
    )
    tuning = Tuning(metric=metric, share=0.2, trials=trials, rate=rate)
    batch = BatchNumbers(micro_batch=1, accumulate=8, devices=1, effective_batch=8, norm_batch=1)
    classes = {"top1_acc": {str(i): 50.0 for i in range(10)}}
    fixed: dict[str, Any] = {"task": task, "norm": norm, "tuning": tuning, "schema_version": 7, "batch": batch,
                             "overrides": {"model.lr": rate}, "per_class": classes}  # fmt: skip
    return [
        make_record(**fixed | {"id": f"{norm}{task}{i}", "seed": 100 + i,
                               "metrics": {metric: MetricValue(value=v, n_eval=3, step=4)}} | changes)
        for i, v in enumerate(values)
    ]  # fmt: skip


BEST = [15.0, 16.0, 14.5, 15.5, 16.0]
LEVEL = [15.2, 15.5, 15.5, 15.0, 16.2]
WORSE = [22.0, 22.5, 21.0, 22.0, 23.5]
FAR = [60.0, 63.0, 58.0, 61.0, 59.0]


def test_a_table_of_four() -> None:
    """Each at another rate: they are of one setting all the same."""
    records = [*tuned("gn+ws", BEST), *tuned("sn+ws", LEVEL, 0.03), *tuned("gn", WORSE), *tuned("bn", FAR, 0.03)]
    (found,) = verdicts(groups(records))
    assert [s.norm for s in found.standings] == ["gn+ws", "sn+ws", "gn", "bn"]
    assert [s.norm for s in found.level] == ["gn+ws", "sn+ws"]
    assert [s.norm for s in found.avoid] == ["bn"]
    assert found.standings[3].rate == 0.03
    said = found.sentence()
    assert said.startswith(
        "use gn+ws: top-1 error 15.4 [14.6, 16.2]; not significantly worse: sn+ws; worse: gn (by 7 ["
    )
    assert "; avoid bn (by 45 [" in said
    # the p values are scipy's, corrected by Holm's rule over three
    p = [stats.ttest_rel(other, BEST).pvalue for other in (LEVEL, WORSE, FAR)]
    assert found.standings[1].p == pytest.approx(p[0])
    assert sorted(s.p for s in found.standings[2:]) == pytest.approx(sorted([3 * min(p[1:]), 2 * max(p[1:])]))
    interval = stats.ttest_rel(FAR, BEST).confidence_interval()
    assert found.standings[3].loss == pytest.approx((np.mean(FAR) - np.mean(BEST), interval.low, interval.high))


def test_where_more_is_better() -> None:
    records = [*tuned("gn+ws", FAR, task="voc", metric="miou"), *tuned("bn", WORSE, task="voc", metric="miou")]
    (found,) = verdicts(groups(records))
    assert (found.best.norm, found.avoid[0].norm) == ("gn+ws", "bn")
    assert found.avoid[0].loss[1] > 30


def test_no_difference_is_said() -> None:
    (found,) = verdicts(groups([*tuned("gn+ws", BEST), *tuned("gn", LEVEL)]))
    assert found.sentence().startswith("no significant difference between gn+ws and gn; best mean: gn+ws")
    assert not found.avoid


def test_what_too_few_seeds_leave_open_is_tied_with_nothing() -> None:
    """A mean 30 points away whose interval reaches the best's is no tie, and no sentence recommends it."""
    scattered = [16.0, 17.0, 75.0, 18.0, 90.0]
    (found,) = verdicts(groups([*tuned("gn+ws", BEST), *tuned("sn+ws", LEVEL), *tuned("in+ws", scattered)]))
    assert [s.norm for s in found.level] == ["gn+ws", "sn+ws"]
    assert [s.norm for s in found.unclear] == ["in+ws"]
    assert not found.standings[2].worse
    assert "not decided by these seeds: in+ws (by 28 [" in found.sentence()
    one = overall([found])
    assert one is not None
    assert "in+ws" not in one.sentence()


def test_nothing_learned_is_said() -> None:
    (found,) = verdicts(groups([*tuned("gn+ws", [90.0] * 5), *tuned("gn", [90.0, 91, 90, 92, 90])]))
    assert "no norm is significantly better than chance" in found.sentence()
    assert overall([found]) is None


def test_doubts() -> None:
    """Of two rates each is at an end; 95 % of error in ten classes is no learning."""
    records = [*tuned("gn+ws", BEST), *tuned("sn+ws", LEVEL, 0.03), *tuned("gn", [89.0, 91, 92, 90, 93])]
    (found,) = verdicts(groups(records))
    idle, edge = found.doubts
    assert idle == "gn is not significantly better than chance (90) after 4 steps: longer runs may say otherwise"
    assert edge.startswith("the best learning rate of gn+ws (0.1) and sn+ws (0.03) lies at the edge of the grid")


def test_one_rate_for_all_is_no_verdict() -> None:
    records = [*tuned("gn+ws", BEST, tuning=None), *tuned("gn", FAR, tuning=None)]
    assert verdicts(groups(records)) == []


def test_a_run_that_diverged_counts_beside_its_seeds() -> None:
    """It has taken fewer steps, and is of the same method."""
    runs = tuned("bn", [60.0, 61.0, 90.0])
    runs[2] = runs[2].model_copy(update={"diverged": 2, "steps": 2})
    (group,) = groups(runs)
    assert len(group.records) == 3
    (found,) = verdicts(groups([*runs, *tuned("gn+ws", BEST[:3])]))
    assert found.standings[1].over.n == 3


def test_over_several_tables() -> None:
    of_voc = {"task": "voc", "metric": "miou"}
    records = [
        *tuned("gn+ws", BEST), *tuned("sn+ws", LEVEL), *tuned("bn", FAR),
        *tuned("gn+ws", FAR, **of_voc), *tuned("sn+ws", WORSE, **of_voc), *tuned("bn", BEST, **of_voc),
    ]  # fmt: skip
    answer = overall(verdicts(groups(records)))
    assert answer is not None
    assert answer.counts == (("gn+ws", 2), ("sn+ws", 1), ("bn", 0))
    assert answer.sentence() == (
        "At one image per device use gn+ws: best or tied with the best in both tables; avoid bn, more than 10 points "
        "worse in both tables"
    )
    assert Overall(2, 1, (("gn", 1), ("bn", 0)), (), (("a", "gn"),)).sentence() == "At 2 images per device use gn"


def test_what_few_seeds_leave_open_is_said() -> None:
    of_voc, of_clips = ({"task": t, "metric": m} for t, m in (("voc", "miou"), ("something", "top1_acc")))
    wide, best = [20.0, 60.0, 58.0, 59.0, 30.0], [60.0, 61.0, 60.5, 60.0, 61.0]
    records = [
        *tuned("gn+ws", BEST), *tuned("bn", FAR), *tuned("gn+ws", best, **of_voc), *tuned("bn", BEST, **of_voc),
        *tuned("gn+ws", wide, **of_clips), *tuned("bn", best, **of_clips),
    ]  # fmt: skip
    answer = overall(verdicts(groups(records)))
    assert answer is not None
    assert answer.unclear == (("gn+ws", 1),)
    assert answer.sentence().startswith(
        "At one image per device use gn+ws: best or tied with the best in 2 of 3 tables, not decided in 1"
    )


def test_no_norm_is_recommended_and_forbidden() -> None:
    """Each is best in one table and far worse in the other: then the tables speak for themselves."""
    of_voc = {"task": "voc", "metric": "miou"}
    records = [
        *tuned("gn+ws", BEST), *tuned("gn", FAR),
        *tuned("gn+ws", BEST, **of_voc), *tuned("gn", FAR, **of_voc),
    ]  # fmt: skip
    answer = overall(verdicts(groups(records)))
    assert answer is not None
    assert answer.sentence() == (
        "At one image per device no norm is among the best in most of the 2 tables: gn+ws is best in "
        "imagenet-mini-voc-mini-v1-tuned, gn is best in voc-mini-tuned"
    )


def test_a_norm_whose_runs_all_diverged_is_there() -> None:
    """They stopped early, at chance: it is one to avoid, not one that is forgotten."""
    lost = [r.model_copy(update={"diverged": 2, "steps": 2}) for r in tuned("bn", [90.0] * 5)]
    (found,) = verdicts(groups([*tuned("gn+ws", BEST), *tuned("gn", WORSE), *lost]))
    assert [s.norm for s in found.avoid] == ["bn"]
    assert "bn is not significantly better than chance" in found.doubts[0]


def test_steps_to_the_stated_score() -> None:
    """By hand: 50 % is reached at steps 20, 30 and never; the median is 30."""
    from tests.leaderboard.test_tuned import data

    mini = data("val").model_copy(update={"name": "imagenet-mini-v1"})
    records = tuned("gn+ws", [40.0, 45.0, 70.0], recipe="mini", data=mini)
    series = [{10: 80.0, 20: 50.0, 30: 40.0}, {10: 80.0, 20: 51.0, 30: 45.0}, {10: 80.0, 20: 75.0, 30: 70.0}]
    logs = {r.id: {"val/top1_error": s} for r, s in zip(records, series, strict=True)}

    def cells(text: str) -> dict[str, str]:
        header, *rows = text.splitlines()
        row = next(r for r in rows if ",top1_error," in r)
        return dict(zip(header.split(","), row.split(","), strict=True))

    row = cells(derive(records, logs)["imagenet-mini-tuned.wide.csv"])
    assert (row["target"], row["reached"], row["steps_to_target"]) == ("50", "2", "30")
    row = cells(derive(records)["imagenet-mini-tuned.wide.csv"])
    assert (row["target"], row["reached"], row["steps_to_target"]) == ("", "", "")
    worse = {**logs, records[0].id: {"val/top1_error": {10: 80.0}}}
    row = cells(derive(records, worse)["imagenet-mini-tuned.wide.csv"])
    assert (row["reached"], row["steps_to_target"]) == ("1", "")  # half do not reach it


@pytest.mark.parametrize(("statistic", "n"), [(0.0, 3), (1.0, 5), (3.0, 5), (-4.0, 10)])
def test_the_effects_interval_is_scipys(statistic: float, n: int) -> None:
    """Where scipy's noncentral t has a value, it puts 2.5 % beyond either end."""
    size, low, high = effect_size(statistic, n)
    plain = statistic / n**0.5
    correction = size / plain if plain else 1.0
    from scipy.special import gamma

    exact = gamma((n - 1) / 2) / gamma((n - 2) / 2) / ((n - 1) / 2) ** 0.5  # Hedges 1981
    assert correction == pytest.approx(exact if plain else 1.0)
    for end, beyond in ((low, 0.975), (high, 0.025)):
        assert stats.nct.cdf(statistic, n - 1, end / exact * n**0.5) == pytest.approx(beyond, abs=2e-4)


def test_the_effect_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    true, n, covered, sizes = 1.5, 5, 0, []
    for _ in range(400):
        drawn = generator.normal(true, 1, n)
        size, low, high = effect_size(drawn.mean() / (drawn.std(ddof=1) / n**0.5), n)
        correction = size / (drawn.mean() / drawn.std(ddof=1))
        sizes.append(size)
        covered += low / correction < true < high / correction
    assert 0.92 < covered / 400 < 0.98
    assert np.mean(sizes) == pytest.approx(true, abs=0.12)  # unbiased


def test_the_answer_names_norms_that_some_tables_lack() -> None:
    """And one that is tied in one table and far worse in another is not passed over."""
    one = [*tuned("gn+ws", BEST), *tuned("ln+ws", LEVEL), *tuned("bn", FAR), *tuned("in", FAR)]
    two = [*tuned("gn+ws", BEST, task="voc", metric="miou"), *tuned("bn", LEVEL, task="voc", metric="miou")]
    clips = {"task": "something", "metric": "top1_acc"}
    three = [*tuned("gn+ws", FAR, **clips), *tuned("bn", BEST, **clips)]
    answer = overall(verdicts(groups([*one, *two, *three])))
    assert answer is not None
    assert answer.partly == (("ln+ws", 1),)
    said = answer.sentence()
    assert "use gn+ws" in said
    assert "tied in those tables that have it: ln+ws (1)" in said
    assert "avoid bn, more than 10 points worse in 2 of 3 tables" in said
