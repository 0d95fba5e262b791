"""The front answer, in the words that the numbers support, whoever wins."""

from collections.abc import Sequence
from dataclasses import dataclass

from wsbench.leaderboard.naming import short
from wsbench.leaderboard.page.charts import curves_of
from wsbench.leaderboard.paper import network_of, paper_rows_of
from wsbench.leaderboard.wide import Group, settings_of
from wsbench.records import lower_is_better
from wsbench.registry import TASKS

#: the method that the paper proposes, and those that it is held against
OURS = "gn+ws"
AGAINST = ("bn", "gn")


@dataclass(frozen=True)
class Answer:
    """For one table at one batch size."""

    table: str
    images: int
    """On a device at a time."""
    effective: int
    metric: str
    ranking: tuple[tuple[str, str, str], ...]
    """(norm, value as text, id of its first record), the best first."""
    sentence: str


def _number(group: Group, metric: str) -> str:
    over = group.spread(metric)
    assert over is not None
    return f"{over.mean:.1f}" + ("" if over.std is None else f" ± {over.std:.1f}")


def answers(grouped: Sequence[Group], images: int | None = None) -> list[Answer]:
    """An answer for every table and setting, at the given number of images per device or, by default, the smallest.

    Args:
        grouped: groups of runs.
        images: images per device; None: the fewest that a table has runs of.
    """
    given = []
    for setting in settings_of(grouped):
        first = setting[0].first
        metric = TASKS[first.task].headline
        least = min(g.first.batch.micro_batch for g in grouped if g.table == setting[0].table)
        ranked = sorted(
            ((group.spread(metric).mean, group) for group in setting if metric in group.first.metrics),  # type: ignore[union-attr]
            key=lambda pair: pair[0] if lower_is_better(metric) else -pair[0],
        )
        if first.batch.micro_batch != (images or least) or len(ranked) < 2:
            continue
        ranking = tuple((short(g.first.labelled_norm), _number(g, metric), g.first.id) for _, g in ranked)
        given.append(
            Answer(setting[0].table, first.batch.micro_batch, first.batch.effective_batch, metric, ranking,
                   sentence(ranking))
        )  # fmt: skip
    return sorted(given, key=lambda a: (a.images, a.table, -a.effective))


def sentence(ranking: Sequence[tuple[str, str, str]]) -> str:
    """Who is first, where the paper's method and those it is held against stand."""
    names = [norm for norm, _, _ in ranking]
    values = {norm: value for norm, value, _ in ranking}
    text = f"{names[0]} is best of {len(names)} with {values[names[0]]}"
    if OURS in names and names[0] != OURS:
        text += f"; {OURS} is {_ordinal(names.index(OURS) + 1)} with {values[OURS]}"
    rest = [f"{norm} {values[norm]}" for norm in AGAINST if norm in values and norm != names[0]]
    return text + (f" ({', '.join(rest)})" if rest else "")


def _images(number: str) -> str:
    return f"{number} image{'' if number == '1' else 's'}"


def of_the_curves(grouped: Sequence[Group]) -> list[tuple[str, str]]:
    """(table, sentence): what becomes of each norm from the most images per device to the fewest."""
    sentences = []
    for curve in curves_of(grouped):
        metric = TASKS[curve[0].first.task].headline
        most, least = (end(g.first.batch.micro_batch for g in curve) for end in (max, min))
        at = {(g.first.labelled_norm, g.first.batch.micro_batch): _number(g, metric) for g in curve if g.spread(metric)}
        norms = [n for n in dict.fromkeys(g.first.labelled_norm for g in curve) if {(n, most), (n, least)} <= at.keys()]
        moves = ", ".join(f"{short(n)} from {at[n, most]} to {at[n, least]}" for n in norms)
        sentences.append(
            (curve[0].table, f"at one learning rate for all norms, from {most} to {least} images per device, at "
             f"{curve[0].first.batch.effective_batch} per step throughout, {metric} goes for {moves}")
        )  # fmt: skip
    return sentences


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def of_the_paper() -> list[tuple[str, str]]:
    """(experiment, sentence) by the paper's own numbers: BN at its large batch, GN and GN+WS at one image."""
    sentences = []
    for task, network in (("imagenet", "resnet50"), ("imagenet", "resnet101")):
        metric = TASKS[task].headline
        rows = {
            r.norm: r
            for r in paper_rows_of(task)
            if network_of(task, r) == network and r.metric == metric and r.table == 1
        }
        sentences.append(
            (f"ImageNet, {network}, top-1 error",
             ", ".join(f"{norm} {rows[norm].value:.2f} at {_images(rows[norm].batch_per_gpu)} a GPU"
                       for norm in (OURS, "gn", "bn", "bn+ws")))
        )  # fmt: skip
    return sentences
