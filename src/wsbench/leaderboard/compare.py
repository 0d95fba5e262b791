"""Is the difference of two norms significant? Over the same seeds, in the same table, at the same batch sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wsbench.leaderboard.naming import short
from wsbench.leaderboard.spread import Paired, holm, paired
from wsbench.leaderboard.wide import Group
from wsbench.records import lower_is_better
from wsbench.registry import TASKS

#: below it a difference is called significant
ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs."""

    first: Group
    second: Group
    metric: str
    test: Paired
    p: float
    """Holm's correction of the test's p for the comparisons that were made beside it."""

    @property
    def better(self) -> Group | None:
        """The better of the two; None if the difference is not significant."""
        if self.p >= ALPHA:
            return None
        return self.first if (self.test.mean < 0) == lower_is_better(self.metric) else self.second

    def words(self) -> str:
        """Which of the two is better, if the difference is significant."""
        return "not significant" if self.better is None else f"{self.better.first.labelled_norm} is better"


def comparisons(grouped: Sequence[Group], pairs: Sequence[tuple[str, str]], together: bool = False) -> list[Comparison]:
    """Every pair of norms in every table, network, batch size and setting where both have two seeds in common.

    Args:
        grouped: groups of runs.
        pairs: of norms; ``gn`` stands for ``gn16``, too, where a task has that.
        together: correct the p values of all tests together, not only of those in one setting; those of norms at rates
            of their own apart from those at one rate.
    """
    tests = []
    for first in grouped:
        for second in grouped:
            names = first.first.labelled_norm, second.first.labelled_norm
            asked = names in pairs or tuple(map(short, names)) in pairs
            if asked and first.setting == second.setting:
                metric = TASKS[first.first.task].headline
                test = paired(first.values(metric), second.values(metric))
                if test is not None:
                    tests.append(Comparison(first, second, metric, test, test.p))
    families: dict[object, list[Comparison]] = {}
    for one in tests:
        own_rate = one.first.first.tuning is not None  # other runs, and another question: a family of its own
        families.setdefault(own_rate if together else one.first.setting, []).append(one)
    return [
        replace(one, p=p)
        for family in families.values()
        for one, p in zip(family, holm([one.test.p for one in family]), strict=True)
    ]
