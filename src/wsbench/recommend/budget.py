"""How many norms, rates, seeds and epochs fit into a budget of time; arithmetic on what was measured."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from wsbench.errors import UserError
from wsbench.grid.definition import next_rate
from wsbench.run.report import duration

#: what is compared where the user names nothing, and the fewest of them
NORMS = ("bn", "gn", "gn+ws", "bn+ws")
FEWEST_NORMS = 3
#: learning rates of a norm at first, and how many more the grid may grow by
RATES, GROWTH = (5, 4, 3), 1
SEEDS = (10, 7, 5, 4, 3)
#: seeds of each trial of stage 1
TUNING_SEEDS = (3, 2, 1)
#: shares of the recipe's epochs; below the last a run says little
LENGTHS = (1.0, 0.67, 0.5, 0.33, 0.2, 0.1)
#: epochs of a run, at least
FEWEST_EPOCHS = 3
#: measured seconds times this are planned with: steps are not all alike
MARGIN = 1.15
#: half decades below and above the recipe's rate
_AROUND = {3: (-1, 1), 4: (-2, 1), 5: (-2, 2)}


class BudgetError(UserError, ValueError):
    """A budget that is too small for an answer; the message says what is needed."""


class Cost(BaseModel):
    """What a run of a norm costs, as measured on the machine that will run it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: float
    """Seconds of a run beside training and evaluation."""
    step: float
    """Seconds of an optimizer step."""
    sample: float
    """Seconds to evaluate a sample."""
    memory: float
    """Peak, in MiB."""


class Size(BaseModel):
    """Of the data and of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: int
    val: int
    effective_batch: int
    fewest_steps: int
    """Optimizer steps of an epoch, at least."""
    epochs: int
    """How many the recipe trains."""
    lr: float
    """The recipe's learning rate, in the middle of the first grid."""
    share: float = 0.2
    """Of the training data, held out in stage 1."""

    def steps(self, epochs: int) -> int:
        """Optimizer steps of a run on all training samples."""
        return epochs * max(self.fewest_steps, self.train // self.effective_batch)

    def length(self, epochs: int) -> str:
        """The same as text, and how often each sample is seen."""
        steps = self.steps(epochs)
        passes = steps * self.effective_batch / self.train
        return f"{steps} steps of {self.effective_batch}, {passes:.1f} passes over {self.train} samples"

    def seconds(self, cost: Cost, epochs: int, tuning: bool) -> float:
        """Of one run, in stage 1 (``tuning``) or stage 2."""
        held = round(self.share * self.train) if tuning else self.val
        trained = self.train - held if tuning else self.train
        steps = max(self.fewest_steps, trained // self.effective_batch)
        return cost.start + epochs * (steps * cost.step + held * cost.sample)


class Plan(BaseModel):
    """Which norms, networks, rates and seeds are run, for how long each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    norms: tuple[str, ...]
    rates: tuple[float, ...]
    most_rates: int
    tuning_seeds: int
    seeds: int
    epochs: int
    seconds: float
    """Estimated, on all jobs, with the grid grown as far as it may."""

    @property
    def runs(self) -> tuple[int, int]:
        """Of stage 1 at first, and of stage 2; of one network."""
        return len(self.norms) * len(self.rates) * self.tuning_seeds, len(self.norms) * self.seeds


@dataclass(frozen=True)
class _Shape:
    norms: int
    rates: int
    tuning_seeds: int
    seeds: int
    length: float


def _shapes(norms: int, fewest: int) -> list[_Shape]:
    """All that may be run, the most telling first.

    A run that is long enough counts most, then the further norms, then rates and five seeds, then more seeds of both
    stages.
    """
    every = itertools.product(range(norms, fewest - 1, -1), RATES, TUNING_SEEDS, SEEDS, LENGTHS)
    shapes = [_Shape(*one) for one in every]

    def worth(shape: _Shape) -> float:
        long = math.log(min(shape.length, 1.0) / LENGTHS[-1]) / math.log(1 / LENGTHS[-1])
        return (
            4 * long
            + 1.5 * (shape.norms - fewest)
            + (shape.rates - 3)
            + min(shape.seeds - 3, 2)
            + (0.3 * (shape.tuning_seeds - 1) + 0.1 * max(0, shape.seeds - 5))
        )

    return sorted(shapes, key=lambda s: (-worth(s), -s.length))


def half_decade(rate: float) -> float:
    """The half decade next to a rate: 0.02 is next to 0.03."""
    exponent = math.floor(math.log10(rate))
    candidates = [float(f"{m}e{e}") for e in (exponent - 1, exponent, exponent + 1) for m in (1, 3)]
    return min(candidates, key=lambda c: abs(math.log(c / rate)))


def rates_around(rate: float, count: int) -> tuple[float, ...]:
    """Half decades around a recipe's rate, ascending."""
    below, above = _AROUND[count]
    rates = [half_decade(rate)]
    for _ in range(-below):
        rates.insert(0, next_rate(rates[0], down=True))
    for _ in range(above):
        rates.append(next_rate(rates[-1]))
    return tuple(rates)


def _packed(seconds: Sequence[float], jobs: int) -> float:
    """Of runs that are started one after another on so many jobs, the longest first: a bound from above."""
    ends = [0.0] * jobs
    for one in sorted(seconds, reverse=True):
        first = ends.index(min(ends))
        ends[first] += one
    return max(ends)


def estimate(plan: Plan, costs: Sequence[Mapping[str, Cost]], size: Size, jobs: int) -> float:
    """Seconds that a plan takes at most: both stages, all networks, all trials that the grid may grow to.

    Args:
        plan: its own estimate is not looked at.
        costs: of each network ``{norm: cost}``.
        size: of data and recipe.
        jobs: runs at a time.
    """
    first = [size.seconds(of[norm], plan.epochs, True) for of in costs for norm in plan.norms
             for _ in range(plan.most_rates * plan.tuning_seeds)]  # fmt: skip
    second = [size.seconds(of[norm], plan.epochs, False) for of in costs for norm in plan.norms
              for _ in range(plan.seeds)]  # fmt: skip
    return MARGIN * (_packed(first, jobs) + _packed(second, jobs))


def plan_for(
    budget: float, costs: Sequence[Mapping[str, Cost]], size: Size, jobs: int, norms: Sequence[str],
    fewest_norms: int | None = None, sample_size: str = "--data.crop",
) -> Plan:  # fmt: skip
    """The most telling plan within a budget.

    Args:
        budget: seconds that are left.
        costs: of each network ``{norm: cost}``.
        size: of data and recipe.
        jobs: runs at a time.
        norms: to compare, the ones to keep first.
        fewest_norms: how many of them there have to be; None: all.
        sample_size: the option that makes samples smaller, for the error.

    Raises:
        BudgetError: the least plan takes longer.
    """
    fewest = len(norms) if fewest_norms is None else min(fewest_norms, len(norms))
    least: Plan | None = None
    for shape in _shapes(len(norms), fewest):
        epochs = max(min(FEWEST_EPOCHS, size.epochs), round(shape.length * size.epochs))
        plan = Plan(norms=tuple(norms[: shape.norms]), rates=rates_around(size.lr, shape.rates),
                    most_rates=shape.rates + GROWTH, tuning_seeds=shape.tuning_seeds, seeds=shape.seeds,
                    epochs=epochs, seconds=0.0)  # fmt: skip
        plan = plan.model_copy(update={"seconds": estimate(plan, costs, size, jobs)})
        if plan.seconds <= budget:
            return plan
        if least is None or plan.seconds < least.seconds:
            least = plan
    assert least is not None
    raise BudgetError(
        f"the budget leaves {duration(max(budget, 0))}, and the least that says something takes about "
        f"{duration(least.seconds)}: {len(least.norms)} norms, {least.most_rates} trials and {least.seeds} seeds each, "
        f"{size.length(least.epochs)}, on {jobs} job(s). Give it more time, more jobs (--jobs, --launcher), fewer "
        f"norms (--norms) or networks, or smaller samples (-- {sample_size} ...)"
    )
