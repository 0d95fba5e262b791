import itertools

import numpy as np
import pytest
from scipy import stats

from tests.leaderboard.test_verdict import BEST, WORSE, tuned
from tests.test_records import make_record
from wsbench.leaderboard.compare import comparisons
from wsbench.leaderboard.spread import holm, paired, spread
from wsbench.leaderboard.wide import WIDE, groups, wide_rows
from wsbench.records import BatchNumbers, MetricValue, RunRecord


def test_interval_is_scipys() -> None:
    values = [40.0, 42.5, 41.0, 47.0]
    over = spread(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (over.low, over.high) == pytest.approx((expected.low, expected.high))
    assert over.std == pytest.approx(np.std(values, ddof=1))
    assert spread([3.0]).std is None


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = [(o := spread(list(generator.normal(5, 2, 3)))).low < 5 < o.high for _ in range(4000)]  # type: ignore[operator]
    assert 0.935 < np.mean(covered) < 0.965


def test_paired_by_hand_on_common_seeds_only() -> None:
    """Student's distribution with 2 degrees of freedom has a closed form: P(|T| > t) = 1 - t / sqrt(2 + t^2)."""
    first, second = {0: 1.0, 1: 4.0, 2: 2.5, 7: 99.0}, {0: 0.5, 1: 2.0, 2: 2.0, 8: -99.0}
    test = paired(first, second)
    assert test is not None
    error = np.std([0.5, 2.0, 0.5], ddof=1) / 3**0.5
    t = 1.0 / error
    assert (test.n, test.mean, test.p) == (3, pytest.approx(1.0), pytest.approx(1 - t / (2 + t**2) ** 0.5))
    reach = 0.95 * (2 / (1 - 0.95**2)) ** 0.5  # the closed form's inverse
    assert (test.low, test.high) == pytest.approx((1 - reach * error, 1 + reach * error))
    assert paired({0: 1.0}, {0: 2.0}) is None
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1  # type: ignore[union-attr]
    # all differences equal: no spread to test against, so the sign test's p
    equal = paired({0: 10 / 3, 1: 20 / 3, 2: 70 / 3}, {0: 0.0, 1: 10 / 3, 2: 20.0})
    assert equal is not None
    assert (equal.p, equal.effect) == (stats.binomtest(3, 3).pvalue, None)


def test_holm_by_its_definition() -> None:
    """The smallest level at which Holm's step-down procedure rejects, found by trying levels."""

    def rejects(p: list[float], level: float) -> set[int]:
        found: set[int] = set()
        for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[index] > level / (len(p) - rank):
                break
            found.add(index)
        return found

    p = [0.01, 0.04, 0.03, 0.005, 0.6]
    adjusted = holm(p)
    for level in np.linspace(0.001, 0.999, 999):
        assert rejects(p, float(level)) == {i for i, a in enumerate(adjusted) if a <= level}
    for order in itertools.permutations(range(3)):
        assert [holm([p[i] for i in order])[order.index(k)] for k in range(3)] == holm(p[:3])


def record(norm: str, seed: int, value: float, **changes: object) -> RunRecord:
    metric = MetricValue(value=value, n_eval=3, step=4)
    return make_record(
        id=f"{norm}{seed}{value}"[:12].ljust(12, "x"), norm=norm, seed=seed, metrics={"miou": metric}, **changes
    )


def test_groups_differ_in_nothing_but_the_seed() -> None:
    records = [record("gn+ws", seed, value) for seed, value in ((2, 44.0), (0, 40.0), (1, 42.0))]
    batch = BatchNumbers(micro_batch=8, accumulate=1, devices=1, effective_batch=8, norm_batch=8)
    records += [
        record("gn+ws", 0, 30.0, overrides={"model.lr": 1.0}),
        record("gn", 0, 20.0),
        record("bn", 0, 50.0, batch=batch),
    ]
    found = {(g.first.norm, g.overrides): g for g in groups(records)}
    assert len(found) == 4
    group = found["gn+ws", ""]
    assert group.values("miou") == {0: 40.0, 1: 42.0, 2: 44.0}
    rows = wide_rows("voc", records, [])
    row = next(r for r in rows if (r["norm"], r["overrides"]) == ("gn+ws", ""))
    assert tuple(row) == WIDE
    assert (row["n_seeds"], row["mean"], row["std"], row["paper"]) == ("3", "42.0", "2.0", "")
    assert float(row["ci95_high"]) == pytest.approx(42 + 4.302653 * 2 / 3**0.5, abs=1e-4)


def test_a_delta_needs_the_papers_experiment() -> None:
    from tests.leaderboard.test_rows import paper_record

    same = {"network": "deeplabv3_resnet101", "metrics": {"miou": MetricValue(value=77.0, n_eval=3, step=4)}}
    (row,) = wide_rows("voc", [paper_record(**same)], [])  # type: ignore[list-item]
    assert (row["paper"], row["delta"]) == ("77.2", "-0.2")
    (row,) = wide_rows("voc", [paper_record(**same, overrides={"model.lr": 1})], [])  # type: ignore[list-item]
    assert (row["paper"], row["delta"]) == ("", "")


def test_comparisons_keep_to_one_setting_and_say_who_is_better() -> None:
    records = [record("gn+ws", s, 60.0 + s) for s in range(3)] + [record("gn", s, 30.0 + 1.1 * s) for s in range(3)]
    records += [record("gn", s, 90.0 + s, overrides={"model.lr": 1.0}) for s in range(3)]
    (one,) = comparisons(groups(records), [("gn+ws", "gn")])
    assert one.better is not None
    assert one.better.first.norm == "gn+ws"
    assert one.words() == "gn+ws is better"
    sixteen = [record(name, s, 10.0 * s + len(name) ** 2 * s) for name in ("gn16", "gn16+ws") for s in range(3)]
    for pair in (("gn16+ws", "gn16"), ("gn+ws", "gn")):  # as a user writes it, and as a table of all tasks does
        (three,) = comparisons(groups(sixteen), [pair])
        assert (three.first.first.norm, three.second.first.norm) == ("gn16+ws", "gn16")
    noisy = [record("gn+ws", s, v) for s, v in enumerate((1.0, 90.0, 40.0))] + records[3:6]
    (two,) = comparisons(groups(noisy), [("gn+ws", "gn")])
    assert two.words() == "not significant"


def test_norms_at_rates_of_their_own_are_a_family_of_their_own() -> None:
    """``compare`` corrects for all its lines, but not for those of another question."""
    one_rate = [*(record("gn+ws", s, 60.0 + s) for s in range(3)), *(record("gn", s, 30.0 + 3 * s) for s in range(3))]
    own_rate = [*tuned("gn+ws", BEST), *tuned("gn", WORSE)]
    for records in (one_rate, own_rate, [*one_rate, *own_rate]):
        found = comparisons(groups(records), [("gn+ws", "gn")], together=True)
        assert [one.p for one in found] == [one.test.p for one in found]
    two = [*one_rate, *(one.model_copy(update={"task": "coco", "id": f"c{one.id[1:]}"}) for one in one_rate)]
    two = [
        one if one.task == "voc" else one.model_copy(update={"metrics": {"box_AP": one.metrics["miou"]}}) for one in two
    ]
    assert [one.p / one.test.p for one in comparisons(groups(two), [("gn+ws", "gn")], together=True)] == [2.0, 2.0]
