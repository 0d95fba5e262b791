"""Sweeps of kind ``tuned``: each method at its own learning rate. docs/protocol.md explains the protocol.

Stage 1 trains every method at every rate of a grid in half decades and scores it on a part of the training data
(``data.tuning``); the grid grows for all methods of a setting while the best rate of one lies on its edge. Stage 2
trains each method at its chosen rate with fresh seeds on all training data and reports on val, which stage 1 has not
seen.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsbench.grid.cells import Cell
from wsbench.grid.definition import Grid, GridError, Options, TunedGrid, expand, full, next_rate, select
from wsbench.records import (
    TUNING_NAME,
    Trial,
    Tuning,
    better,
    chosen,
    guessing,
    lower_is_better,
    mean_scores,
    write_text_atomically,
)
from wsbench.registry import TASKS
from wsbench.run.identity import LR, SHARE

#: records what was diverged, at chance level, in place of an error
DIVERGED = ("--on_divergence", "record")


@dataclass(frozen=True)
class Method:
    """A norm in a setting: a cell of the grid without rate and seed."""

    options: tuple[tuple[str, Any], ...]

    @property
    def setting(self) -> tuple[tuple[str, Any], ...]:
        """All but the norm: methods of one setting are compared, and have the same trials."""
        return tuple((name, value) for name, value in self.options if name != "norm")

    def cell(self, rate: float, seed: int, share: float | None) -> Options:
        """The options of a run."""
        tuning = {} if share is None else {SHARE: share}
        return {**dict(self.options), LR: rate, "seed_everything": seed, **tuning}


def methods(
    grid: TunedGrid, axes: Mapping[str, Sequence[Any]] | None = None, only: Mapping[str, Sequence[Any]] | None = None
) -> list[Method]:
    """The methods of a grid.

    Raises:
        GridError: a field or value is wrong.
    """
    both = sorted({*grid.seeds} & {*grid.tuning_seeds})
    if both:
        raise GridError(f"seeds {both} are of both stages; stage 2 needs fresh ones")
    given = {*full(grid.options), *full(grid.axes), *full(axes or {})}
    given |= {name for rule in grid.rules for name in full(rule.then)}
    fixed = sorted(given & {LR, SHARE, "seed_everything"})
    if fixed:
        raise GridError(f"a tuned grid sets {', '.join(fixed)} by itself; leave it out")
    untuned = Grid(options=grid.options, axes=grid.axes, exclude=grid.exclude, rules=grid.rules)
    cells = select(expand(untuned, axes), only or {})
    if any("norm" not in cell for cell in cells):
        raise GridError("a tuned grid needs the axis norm: what is tuned and compared")
    return [Method(tuple((name, _fixed(cell[name])) for name in sorted(cell))) for cell in cells]


def _fixed(value: Any) -> Any:
    """A list as a tuple: methods and settings are told apart by their options."""
    return tuple(value) if isinstance(value, list) else value


def grown(
    rates: Sequence[float], scores: Sequence[Mapping[float, float]], chance: Sequence[float], higher: bool, most: int
) -> list[float]:
    """The grid with further rates where the best of a method lies on its edge; the same grid if none does.

    Args:
        rates: the grid, ascending.
        scores: of each method, ``{rate: score}``.
        chance: of each method, the score of guessing; a method that is nowhere better moves no edge.
        higher: whether a higher score is better.
        most: rates, at most.
    """
    new = list(rates)
    learned = [s for s, c in zip(scores, chance, strict=True) if any(better(v, c, higher) for v in s.values())]
    best = [chosen(s, higher) for s in learned]
    if rates[0] in best and len(new) < most:
        new.insert(0, next_rate(rates[0], down=True))
    if rates[-1] in best and len(new) < most:
        new.append(next_rate(rates[-1]))
    return new


#: what methods that are compared have in common: all options but the norm
Setting = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Stage:
    """What there is to run now; settings do not wait for one another.

    Args:
        first: runs of the settings in stage 1.
        second: runs of those in stage 2.
        rates: the grid of each setting, as far as it has grown.
    """

    first: tuple[tuple[Method, Cell], ...]
    second: tuple[tuple[Method, Cell], ...]
    rates: Mapping[Setting, tuple[float, ...]]

    @property
    def number(self) -> int:
        """1 as long as a setting is in stage 1."""
        return 1 if self.first else 2

    @property
    def cells(self) -> tuple[tuple[Method, Cell], ...]:
        """All of them; results first, which nothing follows from."""
        return (*self.second, *self.first)


def _metric(cell: Cell) -> tuple[str, bool]:
    """The metric that decides, and whether higher is better."""
    name = TASKS[cell.resolved.task].headline
    return name, not lower_is_better(name)


class Protocol:
    """Both stages of a tuned grid; where it stands follows from the records that are there.

    Args:
        grid: what is tuned.
        asked: the methods.
        cell_of: makes a cell of options.
    """

    def __init__(self, grid: TunedGrid, asked: Sequence[Method], cell_of: Callable[[Options], Cell]) -> None:
        self.grid, self.methods, self._cell_of = grid, list(asked), cell_of
        self._cells: dict[str, Cell] = {}

    def _cell(self, options: Options) -> Cell:
        key = json.dumps(options, sort_keys=True)
        if key not in self._cells:
            self._cells[key] = self._cell_of(options)
        return self._cells[key]

    def _first(self, method: Method, rates: Sequence[float]) -> list[Cell]:
        return [self._cell(method.cell(rate, seed, self.grid.share)) for rate in rates
                for seed in self.grid.tuning_seeds]  # fmt: skip

    def _trials(self, method: Method, rates: Sequence[float]) -> list[Trial]:
        trials = []
        for cell in self._first(method, rates):
            record = cell.record()
            assert record is not None
            name, _ = _metric(cell)
            trials.append(Trial(rate=cell.options[LR], seed=record.seed, record=record.id,
                                score=record.metrics[name].value, diverged=record.diverged is not None))  # fmt: skip
        return trials

    def _require_that_rates_count(self, method: Method) -> None:
        """Refuse a grid whose runs do not change with the rate: something else sets it."""
        cells = self._first(method, self.grid.rates)
        if len({cell.id for cell in cells}) < len(cells) and all(cell.resolved.id for cell in cells):
            raise GridError(f"runs of '{dict(method.options).get('norm')}' at different rates are one run, "
                            f"{cells[0].id}: an option of every cell sets the learning rate; leave it out")  # fmt: skip

    def stage(self) -> Stage:
        """What comes now: of each setting stage 1 until its grid grows no more, then stage 2.

        Raises:
            GridError: the runs are the same at every rate.
        """
        for method in self.methods:
            self._require_that_rates_count(method)
        first: list[tuple[Method, Cell]] = []
        second: list[tuple[Method, Cell]] = []
        rates: dict[Setting, tuple[float, ...]] = {}
        for setting in dict.fromkeys(method.setting for method in self.methods):
            mine = [method for method in self.methods if method.setting == setting]
            tried, trials = self._known(setting, mine)
            rates[setting] = tried
            if all(cell.finished() for _, cell in trials):
                second += self._second(mine, tried)
            else:
                first += trials
        return Stage(tuple(first), tuple(second), rates)

    def _known(self, setting: Setting, mine: Sequence[Method]) -> tuple[tuple[float, ...], list[tuple[Method, Cell]]]:
        """A setting's grid as far as its finished trials let it grow, and the trials at its rates."""
        rates = tuple(self.grid.rates)
        while True:
            trials = [(method, cell) for method in mine for cell in self._first(method, rates)]
            if not all(cell.finished() for _, cell in trials):
                return rates, trials
            larger = tuple(self._grown(setting, rates))
            if larger == rates:
                return rates, trials
            rates = larger

    def _grown(self, setting: object, rates: tuple[float, ...]) -> list[float]:
        mine = [m for m in self.methods if m.setting == setting]
        first = self._first(mine[0], rates)[0]
        name, higher = _metric(first)
        chance = []
        for method in mine:
            record = self._first(method, rates)[0].record()
            assert record is not None
            classes = max((len(values) for values in record.per_class.values()), default=1)
            chance.append(guessing(name, classes))
        return grown(rates, [mean_scores(self._trials(m, rates)) for m in mine], chance, higher, self.grid.most_rates)

    def _second(self, mine: Sequence[Method], rates: Sequence[float]) -> list[tuple[Method, Cell]]:
        cells = []
        for method in mine:
            tuning = self.tuning(method, rates)
            cells += [(method, self._cell(method.cell(tuning.rate, seed, None))) for seed in self.grid.seeds]
        return cells

    def tuning(self, method: Method, rates: Sequence[float]) -> Tuning:
        """How a method's rate was chosen."""
        trials = self._trials(method, rates)
        name, higher = _metric(self._first(method, rates)[0])
        return Tuning(
            metric=name, share=self.grid.share, trials=tuple(trials), rate=chosen(mean_scores(trials), higher)
        )

    def write_tunings(self, stage: Stage) -> None:
        """Lay into the folder of each run of stage 2 how its rate was chosen; its record takes it from there.

        One that has finished, at this rate, when the grid was smaller gets the further trials into its record.
        """
        for method, cell in stage.second:
            tuning = self.tuning(method, stage.rates[method.setting])
            if cell.finished():
                cell.renew_tuning(tuning)
            else:
                write_text_atomically(cell.folder / TUNING_NAME, tuning.model_dump_json(indent=1) + "\n")

    def cells(self, stage: Stage) -> list[Cell]:
        """All that has been and is to be run: those of stage 1, and where it has begun of stage 2."""
        first = [cell for method in self.methods for cell in self._first(method, stage.rates[method.setting])]
        return first + [cell for _, cell in stage.second]
