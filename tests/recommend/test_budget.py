"""Plans within a budget: against a brute-force schedule, and at the edges."""

import itertools

import pytest

from wsbench.grid.definition import TunedGrid
from wsbench.options import parse_duration
from wsbench.recommend.budget import (
    GROWTH,
    MARGIN,
    BudgetError,
    Cost,
    Plan,
    Size,
    estimate,
    half_decade,
    plan_for,
    rates_around,
)

NORMS = ["bn", "gn", "gn+ws", "bn+ws"]
COST = Cost(start=10.0, step=0.1, sample=0.01, memory=500.0)
COSTS = [dict.fromkeys(NORMS, COST)]
SIZE = Size(train=1000, val=100, effective_batch=10, fewest_steps=50, epochs=30, lr=0.03)


def test_a_run_by_hand() -> None:
    """10 s to start; 5 epochs of 100 steps (80 where a fifth is held out) and of 100 (200) samples to evaluate."""
    assert SIZE.seconds(COST, 5, tuning=False) == pytest.approx(10 + 5 * (100 * 0.1 + 100 * 0.01))
    assert SIZE.seconds(COST, 5, tuning=True) == pytest.approx(10 + 5 * (80 * 0.1 + 200 * 0.01))


def test_the_estimate_is_that_of_a_schedule() -> None:
    """Of equal runs: so many rounds of ``jobs`` at a time."""
    plan = Plan(
        norms=("bn", "gn"), rates=(0.01, 0.03, 0.1), most_rates=4, tuning_seeds=1, seeds=3, epochs=5, seconds=0.0
    )
    one, two = SIZE.seconds(COST, 5, True), SIZE.seconds(COST, 5, False)
    for jobs, rounds in ((1, (8, 6)), (2, (4, 3)), (3, (3, 2)), (100, (1, 1))):
        assert estimate(plan, COSTS, SIZE, jobs) == pytest.approx(MARGIN * (rounds[0] * one + rounds[1] * two))


def test_more_time_never_answers_worse() -> None:
    """And a plan never takes more than it was given."""
    worth = []
    for budget in (1500.0, 3000.0, 6000.0, 12_000.0, 24_000.0, 1e6):
        plan = plan_for(budget, COSTS, SIZE, 2, NORMS, 3)
        assert plan.seconds <= budget
        assert plan.seconds == pytest.approx(estimate(plan, COSTS, SIZE, 2))
        worth.append(plan.epochs * len(plan.norms) * len(plan.rates) * plan.seeds)
    assert worth == sorted(worth)
    assert (plan.epochs, plan.norms, len(plan.rates), plan.seeds, plan.tuning_seeds) == (30, tuple(NORMS), 5, 10, 3)


def test_seeds_of_trials_count() -> None:
    plan = Plan(norms=("bn",), rates=(0.01, 0.03, 0.1), most_rates=4, tuning_seeds=2, seeds=3, epochs=5, seconds=0.0)
    assert plan.runs == (6, 3)
    whole = 8 * SIZE.seconds(COST, 5, True) + 3 * SIZE.seconds(COST, 5, False)
    assert estimate(plan, COSTS, SIZE, 1) == pytest.approx(MARGIN * whole)


def test_a_small_budget_is_refused_with_what_is_needed() -> None:
    with pytest.raises(BudgetError, match=r"the least that says something takes about \d+:\d\d: 3 norms, 4 trials"):
        plan_for(60.0, COSTS, SIZE, 2, NORMS, 3)
    with pytest.raises(BudgetError, match="4 norms"):  # asked for: none is left out
        plan_for(60.0, COSTS, SIZE, 2, NORMS)
    with pytest.raises(BudgetError, match="leaves 0:00"):
        plan_for(-5.0, COSTS, SIZE, 2, NORMS)


def test_the_refusal_names_the_least() -> None:
    """What it says is needed is enough."""
    with pytest.raises(BudgetError) as refused:
        plan_for(1.0, COSTS, SIZE, 2, NORMS, 3)
    minutes, seconds = str(refused.value).split("takes about ")[1].split(": ")[0].split(":")
    needed = 60 * int(minutes) + int(seconds)
    assert plan_for(needed + 1.0, COSTS, SIZE, 2, NORMS, 3).seconds <= needed + 1
    with pytest.raises(BudgetError):
        plan_for(needed - 2.0, COSTS, SIZE, 2, NORMS, 3)


@pytest.mark.parametrize(("rate", "near"), [(0.02, 0.03), (0.03, 0.03), (0.001, 0.001), (0.0125, 0.01), (0.007, 0.01)])
def test_the_nearest_half_decade(rate: float, near: float) -> None:
    assert half_decade(rate) == near


@pytest.mark.parametrize(("rate", "count"), [*itertools.product((0.02, 0.001, 0.1), (3, 4, 5))])
def test_rates_make_a_grid_of_the_protocol(rate: float, count: int) -> None:
    rates = rates_around(rate, count)
    assert len(rates) == count
    assert half_decade(rate) in rates[1:-1]
    TunedGrid(axes={"norm": ["bn"]}, rates=[*rates], most_rates=count + GROWTH)


def test_durations() -> None:
    assert [parse_duration(t) for t in ("2h", "1h30m", "90s", "1d")] == [7200, 5400, 90, 86400]
    for wrong in ("", "2", "h", "-1h", "1.5h", "0m"):
        with pytest.raises(ValueError, match="no duration"):
            parse_duration(wrong)
