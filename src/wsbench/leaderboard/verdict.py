"""Which norm to use: what a table of methods, each at its own learning rate, shows, and how surely."""

from collections.abc import Sequence
from dataclasses import dataclass

from wsbench.leaderboard.compare import ALPHA
from wsbench.leaderboard.naming import short
from wsbench.leaderboard.spread import Paired, Spread, holm, paired
from wsbench.leaderboard.tuned import working_range
from wsbench.leaderboard.wide import Group, settings_of
from wsbench.records import Tuning, better, guessing, lower_is_better
from wsbench.registry import TASKS

#: points of the metric; a norm that is surely worse than the best by more is one to avoid
FAR = 10.0


def metric_name(metric: str) -> str:
    """In words: ``top-1 error``."""
    names = {"top1_error": "top-1 error", "top1_acc": "top-1 accuracy", "miou": "mIoU"}
    return names.get(metric, metric.replace("_", " ").replace("acc", "accuracy"))


@dataclass(frozen=True)
class Standing:
    """A norm in a verdict."""

    group: Group
    over: Spread
    test: Paired | None
    """Against the best, over the seeds that both have; None of the best itself, or without two such seeds."""
    p: float
    """Holm's correction of the test's p for the norms that are held against the best; 1 without a test."""
    loss: tuple[float, float, float]
    """Points that it is worse than the best by (above 0: worse), and the ends of the 95 % interval; 0 of the best."""

    @property
    def norm(self) -> str:
        """As tables name it."""
        return short(self.group.first.labelled_norm)

    @property
    def worse(self) -> bool:
        """Whether it is shown to be worse than the best."""
        return self.test is not None and self.p < ALPHA

    @property
    def far(self) -> bool:
        """Whether it is shown to be worse by more than :data:`FAR`."""
        return self.worse and self.loss[1] > FAR

    @property
    def unclear(self) -> bool:
        """Whether it may be worse by more than :data:`FAR`, which its seeds do not show: it is tied with nothing."""
        return not self.worse and self.loss[0] > 0 and self.loss[2] > FAR

    @property
    def tuning(self) -> Tuning:
        """How its rate was chosen."""
        tuning = self.group.first.tuning
        assert tuning is not None
        return tuning

    @property
    def rate(self) -> float:
        """The learning rate that was chosen for it."""
        return self.tuning.rate

    @property
    def range(self) -> tuple[float, float]:
        """Learning rates between which it works about as well: docs/protocol.md."""
        return working_range(self.tuning)

    def value(self) -> str:
        """Mean and 95 % interval as text."""
        if self.over.low is None:
            return f"{self.over.mean:.1f}"
        return f"{self.over.mean:.1f} [{max(self.over.low, 0):.1f}, {min(self.over.high or 100, 100):.1f}]"


@dataclass(frozen=True)
class Verdict:
    """Of the norms of one setting: a task, its data, a network, batch sizes."""

    standings: tuple[Standing, ...]
    """The best mean first."""
    metric: str

    @property
    def table(self) -> str:
        """Where the numbers stand."""
        return self.best.group.table

    @property
    def best(self) -> Standing:
        """The norm with the best mean."""
        return self.standings[0]

    @property
    def level(self) -> tuple[Standing, ...]:
        """The best, and those that are neither shown to be worse nor may be far worse: the tie group."""
        return tuple(s for s in self.standings if not s.worse and not s.unclear)

    @property
    def unclear(self) -> tuple[Standing, ...]:
        """Those of which too few seeds say too little."""
        return tuple(s for s in self.standings if s.unclear)

    @property
    def avoid(self) -> tuple[Standing, ...]:
        """Those that are far worse, the worst last."""
        return tuple(s for s in self.standings if s.far)

    @property
    def images(self) -> int:
        """On a device at a time."""
        return self.best.group.first.batch.micro_batch

    @property
    def place(self) -> str:
        """What tells its place on a page from that of other settings of its table."""
        first = self.best.group.first
        return f"{self.table}-{first.network}-{self.images}-of-{first.batch.effective_batch}"

    @property
    def guessing(self) -> float | None:
        """What guessing scores; None where the records do not say how many classes there are."""
        per_class = self.best.group.first.per_class.values()
        return guessing(self.metric, max(map(len, per_class))) if per_class else None

    def learned(self, one: Standing) -> bool:
        """Whether a norm's interval lies on the good side of chance; True where chance is not known."""
        lower = lower_is_better(self.metric)
        end = one.over.high if lower else one.over.low
        return self.guessing is None or better(one.over.mean if end is None else end, self.guessing, not lower)

    @property
    def nothing_learned(self) -> bool:
        """Whether not even the best is significantly better than chance."""
        return not self.learned(self.best)

    def sentence(self) -> str:
        """Which to use, which are as good as can be told, which to avoid."""
        if self.nothing_learned:
            return "no norm is significantly better than chance; nothing follows about them"
        others = [s.norm for s in self.level[1:]]
        best = f"{metric_name(self.metric)} {self.best.value()}"
        if len(self.standings) > 1 and len(self.level) == len(self.standings):
            text = f"no significant difference between {_listed([s.norm for s in self.standings])}"
            text += f"; best mean: {self.best.norm}, {best}"
        else:
            text = f"use {self.best.norm}: {best}"
            text += f"; not significantly worse: {_listed(others)}" if others else ""
        for verb, those in (
            ("not decided by these seeds:", list(self.unclear)),
            ("worse:", [s for s in self.standings if s.worse and not s.far]),
            ("avoid", list(self.avoid)),
        ):
            lost = [f"{s.norm} (by {s.loss[0]:.0f} [{s.loss[1]:z.0f}, {s.loss[2]:.0f}])" for s in those]
            text += f"; {verb} {_listed(lost)}" if lost else ""
        return text

    @property
    def doubts(self) -> list[str]:
        """What makes the verdict worth less: norms no better than chance, best rates at the end of a grid."""
        sentences = []
        idle = [s.norm for s in self.standings if not self.learned(s)]
        if idle:
            sentences.append(
                f"{_listed(idle)} {'is' if len(idle) == 1 else 'are'} not significantly better than chance "
                f"({self.guessing:.0f}) after {self.best.group.steps} steps: longer runs may say otherwise"
            )
        edge = []
        for s in self.level:
            tried = [trial.rate for trial in s.tuning.trials]
            if s.rate in (min(tried), max(tried)):
                edge.append(f"{s.norm} ({s.rate:g})")
        if edge:
            sentences.append(
                f"the best learning rate of {_listed(edge)} lies at the edge of the grid; a better one may lie beyond"
            )
        return sentences


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def verdict(setting: Sequence[Group]) -> Verdict | None:
    """What the norms of a setting show; None if there are fewer than two with the task's main metric.

    Every norm is held against the one with the best mean by Student's paired t-test over common seeds, p corrected for
    how many are (Holm).

    Args:
        setting: tuned groups that differ in nothing but norm and rate.
    """
    metric = TASKS[setting[0].first.task].headline
    lower = lower_is_better(metric)
    scored = [(over, g) for g in setting if (over := g.spread(metric)) is not None]
    if len(scored) < 2:
        return None
    scored.sort(key=lambda pair: (pair[0].mean if lower else -pair[0].mean, pair[1].first.labelled_norm))
    best = scored[0][1].values(metric)
    tests = [paired(group.values(metric), best) for _, group in scored[1:]]
    corrected = iter(holm([test.p for test in tests if test is not None]))
    standings = [Standing(scored[0][1], scored[0][0], None, 1.0, (0.0, 0.0, 0.0))]
    for (over, group), test in zip(scored[1:], tests, strict=True):
        if test is None:
            lost = abs(over.mean - scored[0][0].mean)
            standings.append(Standing(group, over, None, 1.0, (lost, 0.0, 100.0)))
            continue
        ends = (test.mean, test.low, test.high) if lower else (-test.mean, -test.high, -test.low)
        standings.append(Standing(group, over, test, next(corrected), ends))
    return Verdict(tuple(standings), metric)


def verdicts(grouped: Sequence[Group]) -> list[Verdict]:
    """Of all settings whose norms have rates of their own: the fewest images first, of a table the most norms."""
    settings = settings_of(group for group in grouped if group.first.tuning is not None)
    made = [one for setting in settings if (one := verdict(setting)) is not None]
    return sorted(made, key=lambda v: (v.images, v.table, -len(v.standings), v.best.group.first.network))


@dataclass(frozen=True)
class Overall:
    """Over several tables, at the same number of images per device."""

    images: int
    tables: int
    counts: tuple[tuple[str, int], ...]
    """(norm, in how many tables it is in the tie group), the most first."""
    far: tuple[tuple[str, int], ...]
    """(norm, in how many tables it is far worse than the best), the most first."""
    winners: tuple[tuple[str, str], ...]
    """(table, the norm with the best mean)."""
    partly: tuple[tuple[str, int], ...] = ()
    """(norm that some of the tables lack, in how many it stands): in the tie group of each of those."""

    unclear: tuple[tuple[str, int], ...] = ()
    """(norm, in how many tables few seeds leave open whether it is far worse than the best)."""

    def sentence(self) -> str:
        """The answer in one sentence."""
        where = f"At {_images(self.images)} per device"
        far = dict(self.far)
        good = [(n, c) for n, c in self.counts if 2 * c > self.tables and n not in far]
        level = {n for n, c in self.counts if c}
        tied = dict(self.counts)
        bad = [(n, c) for n, c in self.far if 2 * c >= self.tables and c > tied[n]]
        if not good:
            text = f"{where} no norm is among the best in most of the {self.tables} tables: "
            text += ", ".join(f"{norm} is best in {table}" for table, norm in self.winners)
        elif self.tables == 1:
            text = f"{where} use {good[0][0]}"
            text += f"; not significantly worse: {_listed([n for n, _ in good[1:]])}" if good[1:] else ""
        else:
            text = f"{where} use {good[0][0]}: best or tied with the best {self._in(good[0][1])}"
            open_in = dict(self.unclear).get(good[0][0])
            text += f", not decided in {open_in}" if open_in else ""
            also = [n if c == good[0][1] else f"{n} ({self._in(c)})" for n, c in good[1:]]
            text += f"; also tied: {_listed(also)}" if also else ""
            if self.partly:
                text += f"; tied in those tables that have it: {_listed([f'{n} ({c})' for n, c in self.partly])}"
            mixed = [f"{n} is more than {FAR:.0f} points worse {self._in(c)}" for n, c in self.far
                     if 2 * c > self.tables and n in level and (n, c) not in bad]  # fmt: skip
            text += f"; but {_listed(mixed)}" if mixed else ""
        if not bad:
            return text
        fewest = min(c for _, c in bad)
        least = "" if all(c == fewest for _, c in bad) else "at least "
        told = "" if self.tables == 1 else f" {self._in(fewest, least)}"
        return f"{text}; avoid {_listed([n for n, _ in bad])}, more than {FAR:.0f} points worse{told}"

    def _in(self, count: int, least: str = "") -> str:
        if count == self.tables == 2:
            return "in both tables"
        return f"in all {count} tables" if count == self.tables else f"in {least}{count} of {self.tables} tables"


def _images(number: int) -> str:
    return "one image" if number == 1 else f"{number} images"


def overall(of_tables: Sequence[Verdict]) -> Overall | None:
    """The answer over all tables at the fewest images per device; None without one.

    Norms that stand in all of these tables are counted; of equal counts the one with the better mean place is first.
    """
    learned = [v for v in of_tables if not v.nothing_learned]
    if not learned:
        return None
    images = min(v.images for v in learned)
    chosen = [v for v in learned if v.images == images]
    common = set.intersection(*({s.norm for s in v.standings} for v in chosen))
    if not common:
        return None
    level = {n: sum(n in {s.norm for s in v.level} for v in chosen) for n in common}
    place = {n: sum([s.norm for s in v.standings].index(n) for v in chosen) for n in common}
    far = {n: sum(n in {s.norm for s in v.avoid} for v in chosen) for n in common}
    counts = sorted(level.items(), key=lambda pair: (-pair[1], place[pair[0]], pair[0]))
    worst = sorted((pair for pair in far.items() if pair[1]), key=lambda pair: (-pair[1], -place[pair[0]], pair[0]))
    winners = tuple((v.table, v.best.norm) for v in chosen)
    standing = [(s.norm, s in v.level) for v in chosen for s in v.standings if s.norm not in common]
    names = sorted({n for n, _ in standing})
    partly = [(n, sum(m == n for m, _ in standing)) for n in names if all(tied for m, tied in standing if m == n)]
    unclear = [(n, sum(n in {s.norm for s in v.unclear} for v in chosen)) for n in sorted(common)]
    unclear = [(n, c) for n, c in unclear if c]
    return Overall(images, len(chosen), tuple(counts), tuple(worst), winners, tuple(partly), tuple(unclear))
