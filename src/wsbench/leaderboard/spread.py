"""Means over seeds, their intervals, and whether a difference is significant."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.95
#: differences of percentages that are this close are equal: what rounding leaves
_EQUAL = 1e-9


@dataclass(frozen=True)
class Spread:
    """Of the values of several seeds."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation (divisor n - 1); None of a single value."""
    low: float | None
    high: float | None
    """Ends of Student's 95 % interval of the mean: mean -+ t(0.975, n - 1) std / sqrt(n)."""


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and interval of at least one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(len(values), mean, None, None, None)
    std = statistics.stdev(values)
    if std == 0:  # scipy has no interval around a point
        return Spread(len(values), mean, std, mean, mean)
    low, high = stats.t.interval(LEVEL, len(values) - 1, loc=mean, scale=std / math.sqrt(len(values)))
    return Spread(len(values), mean, std, float(low), float(high))


@dataclass(frozen=True)
class Paired:
    """Differences of two methods on the same seeds: Student's paired t-test."""

    n: int
    mean: float
    """Of the differences, first minus second."""
    low: float
    high: float
    """95 % interval of it."""
    p: float
    """Two-sided. Where all differences are equal there is no spread to test against: then that of the sign test,
    2^(1 - n), and 1 where they are 0."""
    effect: tuple[float, float, float] | None
    """Standardized size of the effect with the ends of its 95 % interval: :func:`effect_size`; None of two seeds, or
    where all differences are equal."""


#: of the interval's numeric integral: quantiles of the chi distribution in the middle of equal probabilities
_NODES = 4000


def effect_size(statistic: float, n: int) -> tuple[float, float, float]:
    """Hedges' g of paired differences, and its exact 95 % interval by the noncentral t distribution.

    g is the mean difference in standard deviations of the differences, with Hedges' correction for small n (Hedges
    1981); the interval inverts the distribution of t (Cumming and Finch 2001) and is corrected alike.

    Args:
        statistic: Student's paired t.
        n: pairs, at least 3.
    """
    df = n - 1
    correction = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
    # scipy's nct has no value far out; t is a normal number over an independent chi one, which is integrated over here
    chi = np.sqrt(stats.chi2.ppf((np.arange(_NODES) + 0.5) / _NODES, df) / df)
    reach = 10 + abs(statistic) * float(chi[-1])

    def end(level: float) -> float:
        """The noncentrality under which so much of the distribution lies below the statistic."""
        return float(optimize.brentq(lambda ncp: special.ndtr(statistic * chi - ncp).mean() - level, -reach, reach))

    scale = correction / math.sqrt(n)
    tail = (1 - LEVEL) / 2
    return statistic * scale, end(1 - tail) * scale, end(tail) * scale


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """The test over the seeds that both have; None if there are fewer than two.

    Args:
        first: ``{seed: value}``.
        second: the same of the other method.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    over = spread(differences)
    assert over.std is not None
    assert over.low is not None
    assert over.high is not None
    if over.std <= _EQUAL * max(1.0, abs(over.mean)):  # the metric's steps are coarse, or nothing differs
        p = 1.0 if abs(over.mean) <= _EQUAL else 2.0 ** (1 - over.n)
        return Paired(over.n, over.mean, over.low, over.high, p, None)
    test = stats.ttest_rel([first[seed] for seed in seeds], [second[seed] for seed in seeds])
    effect = effect_size(float(test.statistic), over.n) if over.n > 2 else None
    return Paired(over.n, over.mean, over.low, over.high, float(test.pvalue), effect)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of p values for how many there are (Holm 1979): compare them with 0.05 all the same.

    scipy corrects by Benjamini and Hochberg only; statsmodels, which has Holm's, would be a package for six lines.
    """
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
