"""A finished protocol to an answer: as sentences, as a table, as lines of code, as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from wsbench.errors import UserError
from wsbench.leaderboard.verdict import Standing, Verdict, verdicts
from wsbench.leaderboard.wide import Group
from wsbench.norms import NormSpec
from wsbench.records import lower_is_better, mean_scores
from wsbench.run.report import console


class AdviceError(UserError, RuntimeError):
    """Runs from which nothing follows."""


@dataclass(frozen=True)
class Optimizer:
    """Of the recipe, in the user's code."""

    kind: str
    """``SGD`` or ``Adam``."""
    arguments: str
    """Beside the learning rate."""


@dataclass(frozen=True)
class Advice:
    """The answer of ``recommend``: what to use, what that rests on, and the code for it."""

    title: str
    sentences: tuple[str, ...]
    """One for each network, the best first, then what it rests on."""
    code: str
    """Lines that put it into the user's own code."""


def code_for(best: Standing, optimizer: Optimizer, shape: Sequence[int]) -> str:
    """The lines: normalize, optimizer, and where samples are accumulated the loop, with the window for weights.

    Args:
        best: the norm.
        optimizer: of the recipe.
        shape: of an example input.
    """
    record = best.group.first
    spec, batch = NormSpec.parse(record.norm), record.batch
    n = batch.accumulate
    window = spec.weight is not None and n > 1
    names = "AccumulationWindow, normalize" if window else "normalize"
    lines = [
        "import torch",
        f"from wsbench.norms import {names}",
        "",
        f'normalize(model, "{record.norm}", example=torch.zeros{tuple(shape)})  # in place, before the optimizer',
        f"optimizer = torch.optim.{optimizer.kind}(model.parameters(), lr={best.rate:g}{optimizer.arguments})",
    ]
    loop = f"{n} micro-steps of {batch.micro_batch} per optimizer step"
    if window:
        lines += [
            "window = AccumulationWindow(model)",
            f"with window.micro_step(last=i == {n - 1}):  # i of {loop}",
            f"    (loss / {n}).backward()",
        ]
    elif n > 1:
        lines.append(f"(loss / {n}).backward()  # {loop}")
    return "\n".join(lines)


def ranked(grouped: Sequence[Group]) -> list[Verdict]:
    """The verdicts of all networks, that with the best mean first."""
    told = verdicts(grouped)
    if not told:
        raise AdviceError("no two norms have results to compare; `sweep status` of the folder's tuned.yaml lists them")
    return sorted(told, key=lambda v: v.best.over.mean if lower_is_better(v.metric) else -v.best.over.mean)


def advise(grouped: Sequence[Group], name: str, optimizer: Optimizer, shape: Sequence[int], facts: Sequence[str]) -> (
    Advice
):  # fmt: skip
    """The answer.

    Args:
        grouped: groups of runs of stage 2.
        name: of the data.
        optimizer: of the recipe.
        shape: of an example input.
        facts: what it rests on.
    """
    told = ranked(grouped)
    sentences = []
    for one in told:
        name_it = f"{one.best.group.first.network}: " if len(told) > 1 else ""
        sentences.append(f"{name_it}{one.sentence()}")
        sentences += [f"{name_it}but {doubt}" for doubt in one.doubts]
    first = told[0]
    at = f"{first.best.norm} at learning rate {first.best.rate:g}"
    on = f" on {first.best.group.first.network}" if len(told) > 1 else ""
    if first.nothing_learned:
        title, code = f"{name}: nothing can be recommended, the runs are too short", ""
    elif len(first.level) == len(first.standings):
        title, code = f"{name}: no significant difference; best mean: {at}{on}", code_for(first.best, optimizer, shape)
    else:
        title, code = f"{name}: use {at}{on}", code_for(first.best, optimizer, shape)
    return Advice(title, (*(f"{s[0].upper()}{s[1:]}." for s in sentences), *facts), code)


def show(advice: Advice, grouped: Sequence[Group], files: Sequence[Path]) -> None:
    """Print it: words, table, scores by rate, code, files."""
    out = console()
    out.print(f"\n{advice.title}", markup=False, highlight=False, style="bold")
    for sentence in advice.sentences:
        out.print(f"  {sentence}", markup=False, highlight=False)
    for one in ranked(grouped):
        out.print(_standings(one))
        out.print(_by_rate(one))
    if advice.code:
        out.print("\nin your own code:", markup=False)
        out.print("\n".join(f"    {line}" for line in advice.code.splitlines()), markup=False, highlight=False,
                  soft_wrap=True)  # fmt: skip
    for path in files:
        out.print(f"wrote {path}", markup=False, soft_wrap=True)


def _standings(one: Verdict) -> Table:
    order = "lower" if lower_is_better(one.metric) else "higher"
    table = Table(title=f"{one.best.group.first.network}: {one.metric} on val, {order} is better")
    for column in ("norm", "rate", "works at", "seeds", "mean [95 %]", "worse than the best by [95 %]", "p"):
        table.add_column(column, justify="left" if column == "norm" else "right")
    for s in one.standings:
        low, high = s.range
        lost = "-" if s.test is None else f"{s.loss[0]:+.1f} [{s.loss[1]:+.1f}, {s.loss[2]:+.1f}]"
        mark = "" if s.worse else " *"
        table.add_row(escape(s.norm) + mark, f"{s.rate:g}", f"{low:g} to {high:g}", str(s.over.n),
                      escape(s.value()), escape(lost), "-" if s.test is None else f"{s.p:.3f}")  # fmt: skip
    table.caption = "* tied with the best: not significantly worse; p corrected for the number of norms (Holm)"
    return table


def _by_rate(one: Verdict) -> Table:
    rates = sorted({trial.rate for s in one.standings for trial in s.tuning.trials})
    table = Table(title=f"{one.metric} on held-out training data, by learning rate")
    for column in ("norm", *(f"{rate:g}" for rate in rates)):
        table.add_column(column, justify="left" if column == "norm" else "right")
    for s in one.standings:
        scores = mean_scores(s.tuning.trials)
        diverged = {trial.rate for trial in s.tuning.trials if trial.diverged}
        cells = []
        for rate in rates:
            text = f"{scores[rate]:.1f}" + (" (nan)" if rate in diverged else "")
            cells.append(f"[bold]{text}[/]" if rate == s.rate else text)
        table.add_row(escape(s.norm), *cells)
    return table
