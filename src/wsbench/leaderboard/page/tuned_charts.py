"""Figures of norms at their own learning rates: how they stand, and how each depends on its rate."""

from collections.abc import Sequence
from typing import Any

from wsbench.extras import altair as altair_module
from wsbench.leaderboard import tuned
from wsbench.leaderboard.logs import Logs
from wsbench.leaderboard.page.charts import HEIGHT, Figure, metric_title
from wsbench.leaderboard.verdict import Verdict, metric_name
from wsbench.records import lower_is_better

#: of a norm in the tie group, of one that is significantly worse, and of one that is far worse
LEVEL, WORSE, FAR = "tied with the best", "significantly worse", "worse by more than 10 points"
UNCLEAR = "not decided: may be far worse"
_TONES = {LEVEL: "#228833", UNCLEAR: "#e0a100", WORSE: "#8a8f98", FAR: "#cc6677"}
#: a colour for each activation normalization (Paul Tol's bright scheme); standardized weights are a solid line
_ACTS = {"bn": "#4477aa", "gn": "#228833", "ln": "#ccaa33", "in": "#aa3377", "sn": "#66ccee"}
_FURTHER = ("#ee6677", "#bbbbbb", "#000000", "#e69f00", "#009e73")
#: pixels
ROW = 24


def dots(verdict: Verdict, width: int | str) -> Any:
    """A dot for each norm at its own rate with the 95 % interval of its mean, the best first; small dots are seeds."""
    alt = altair_module()
    rows: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    for one in verdict.standings:
        kind = FAR if one.far else WORSE if one.worse else UNCLEAR if one.unclear else LEVEL
        low, high = (one.over.mean if v is None else min(max(v, 0.0), 100.0) for v in (one.over.low, one.over.high))
        rows.append({"norm": one.norm, "mean": one.over.mean, "low": low, "high": high, "how": kind,
                     "rate": one.rate, "seeds": one.over.n})  # fmt: skip
        values = one.group.values(verdict.metric)
        seeds += [{"norm": one.norm, "value": v, "seed": s, "how": kind} for s, v in values.items()]
    order = [row["norm"] for row in rows]
    data, points = alt.Data(values=rows), alt.Data(values=seeds)
    kinds = [kind for kind in _TONES if kind in {row["how"] for row in rows}]
    colour = alt.Color(
        "how:N", title=None, scale=alt.Scale(domain=kinds, range=[_TONES[kind] for kind in kinds]),
        legend=alt.Legend(orient="top", columns=1, symbolOpacity=1),
    )  # fmt: skip
    y = alt.Y("norm:N", sort=order, title=None, axis=alt.Axis(grid=True, labelFontSize=12))
    x = alt.X("mean:Q", title=metric_title(verdict.metric), scale=alt.Scale(zero=False, nice=True))
    tooltip = ["norm:N", alt.Tooltip("mean:Q", format=".2f"), alt.Tooltip("low:Q", format=".2f"),
               alt.Tooltip("high:Q", format=".2f"), "rate:Q", "seeds:Q"]  # fmt: skip
    rule = alt.Chart(data).mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour)
    dot = alt.Chart(data).mark_point(filled=True, size=95, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    small = alt.Chart(points).mark_tick(thickness=1, height=9, opacity=0.75).encode(
        x="value:Q", y=y, color=colour, tooltip=["norm:N", "seed:Q", alt.Tooltip("value:Q", format=".2f")]
    )  # fmt: skip
    layers = [rule, small, dot]
    if chance_in_sight(verdict):
        guess = alt.Data(values=[{"guessing": verdict.guessing}])
        layers.append(alt.Chart(guess).mark_rule(strokeDash=[3, 3], opacity=0.6).encode(x="guessing:Q"))
    return alt.layer(*layers).properties(width=width, height=ROW * len(rows) + 10)


def chance_in_sight(verdict: Verdict) -> bool:
    """Whether chance lies among the norms, or close to them."""
    ends = [end for s in verdict.standings for end in (s.over.mean, s.over.low, s.over.high) if end is not None]
    room = 0.2 * (max(ends) - min(ends))
    return verdict.guessing is not None and min(ends) - room <= verdict.guessing <= max(ends) + room


def rate_curves(verdict: Verdict, width: int | str) -> Any:
    """The score on held-out training data against the learning rate; a ring at the rate that was chosen.

    Bands reach from the best seed to the worst, where a rate was tried with several.
    """
    alt = altair_module()
    rows: list[dict[str, Any]] = []
    for one in verdict.standings:
        tuning = one.tuning
        act, _, further = one.norm.partition("+")
        for rate in sorted({trial.rate for trial in tuning.trials}):
            tried = [trial.score for trial in tuning.trials if trial.rate == rate]
            rows.append({"norm": one.norm, "act": act, "weights": further or "plain", "rate": rate,
                         "mean": sum(tried) / len(tried), "least": min(tried), "most": max(tried),
                         "chosen": rate == tuning.rate, "seeds": len(tried),
                         "diverged": sum(t.diverged for t in tuning.trials if t.rate == rate)})  # fmt: skip
    acts = list(dict.fromkeys(row["act"] for row in rows))
    acts.sort(key=lambda act: (list(_ACTS).index(act) if act in _ACTS else len(_ACTS), act))
    others = [act for act in acts if act not in _ACTS]
    tones = [_ACTS.get(act) or _FURTHER[others.index(act) % len(_FURTHER)] for act in acts]
    weights = list(dict.fromkeys(row["weights"] for row in rows))
    weights.sort(key=lambda name: (name != "plain", name != "ws", name))
    dashes = [[5, 4] if name == "plain" else [1, 0] if name == "ws" else [2, 2] for name in weights]
    ticks = sorted({row["rate"] for row in rows})
    x = alt.X("rate:Q", title="learning rate (log scale)", axis=alt.Axis(values=ticks, grid=False, format="~g"),
              scale=alt.Scale(type="log", domain=[ticks[0], ticks[-1]], nice=False))  # fmt: skip
    y = alt.Y("mean:Q", title=metric_title(verdict.metric), scale=alt.Scale(zero=False))
    colour = alt.Color("act:N", title=None, scale=alt.Scale(domain=acts, range=tones),
                       legend=alt.Legend(orient="top", symbolOpacity=1))  # fmt: skip
    dash = alt.StrokeDash("weights:N", title=None, scale=alt.Scale(domain=weights, range=dashes),
                          legend=alt.Legend(orient="top"))  # fmt: skip
    tooltip = ["norm:N", "rate:Q", alt.Tooltip("mean:Q", format=".2f"), "seeds:Q", "diverged:Q"]
    base = alt.Chart(alt.Data(values=rows))
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash, detail="norm:N")
    dot = base.mark_point(filled=True, size=24, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    ring = base.transform_filter("datum.chosen").mark_point(size=110, strokeWidth=2, opacity=1)
    layers = [line, dot, ring.encode(x=x, y=y, color=colour, tooltip=tooltip)]
    if any(row["seeds"] > 1 for row in rows):
        band = base.mark_area(opacity=0.12).encode(x=x, y=alt.Y("least:Q"), y2="most:Q", color=colour, detail="norm:N")
        layers.insert(0, band)
    return alt.layer(*layers).properties(width=width, height=HEIGHT + 20)


def steps_rows(verdict: Verdict, logs: Logs) -> list[dict[str, Any]]:
    """Steps of each seed until the task's stated score, as far as the evaluations tell; none where none is stated.

    A run that does not reach it has the steps of its whole length, and ``reached`` false.
    """
    target = tuned.target_of(verdict.best.group.first)
    if target is None:
        return []
    rows: list[dict[str, Any]] = []
    for one in verdict.standings:
        for record in one.group.records:
            if record.id not in logs:
                return []
            series = logs[record.id].get(f"val/{verdict.metric}", {})
            step = tuned.steps_to(target, series, lower_is_better(verdict.metric))
            rows.append({"norm": one.norm, "seed": record.seed, "steps": one.group.steps if step is None else step,
                         "reached": "reached" if step is not None else "not reached"})  # fmt: skip
    return rows


def steps_to_score(verdict: Verdict, rows: Sequence[dict[str, Any]], width: int | str) -> Any:
    """A dot for each seed at its steps until the stated score, crosses at the end for those that do not reach it."""
    alt = altair_module()
    order = [one.norm for one in verdict.standings]
    here = [kind for kind in ("reached", "not reached") if kind in {row["reached"] for row in rows}]
    tones = {"reached": "#228833", "not reached": "#cc6677"}
    shapes = {"reached": "circle", "not reached": "cross"}
    legend = alt.Legend(orient="top", symbolOpacity=1)
    return (
        alt.Chart(alt.Data(values=list(rows)))
        .mark_point(filled=True, size=55, opacity=0.7)
        .encode(
            x=alt.X("steps:Q", title="optimizer steps", scale=alt.Scale(zero=True)),
            y=alt.Y("norm:N", sort=order, title=None, axis=alt.Axis(grid=True, labelFontSize=12)),
            color=alt.Color("reached:N", title=None, legend=legend,
                            scale=alt.Scale(domain=here, range=[tones[kind] for kind in here])),
            shape=alt.Shape("reached:N", title=None, legend=legend,
                            scale=alt.Scale(domain=here, range=[shapes[kind] for kind in here])),
            tooltip=["norm:N", "seed:Q", "steps:Q", "reached:N"],
        )
        .properties(width=width, height=ROW * len(order) + 10)
    )  # fmt: skip


def tuned_figures(
    verdicts: Sequence[Verdict], logs: Logs, width: int | str = "container"
) -> list[tuple[Verdict, list[Figure]]]:
    """Of each verdict its figures.

    Args:
        verdicts: of the tables.
        logs: of their runs, which say when a score was reached.
        width: of each figure in pixels, or ``container``.
    """
    made = []
    for i, one in enumerate(verdicts):
        table = one.table
        suffix = f"-{i}" if [v.table for v in verdicts].count(table) > 1 else ""
        first = one.best.group.first
        seeds = max(s.over.n for s in one.standings)
        trials = len(one.best.tuning.trials)
        batch = f"{first.batch.micro_batch} per device, {first.batch.effective_batch} per step"
        drawn = [
            Figure(f"dots-{table}{suffix}", "Each norm at its own learning rate",
                   f"{batch}, {first.steps} steps; {seeds} fresh seeds per norm (ticks), 95 % interval of the mean."
                   f"{' The dashed line is chance.' if chance_in_sight(one) else ''}", dots(one, width), table),
            Figure(f"rates-{table}{suffix}", "How each depends on its learning rate",
                   f"Score on held-out training data, {trials} trials per norm; dashed: plain weights, solid: with WS. "
                   "Rings: the rates that were chosen.", rate_curves(one, width), table),
        ]  # fmt: skip
        rows = steps_rows(one, logs)
        if rows:
            title = f"Steps to {metric_name(one.metric)} of {tuned.target_of(first):g} %"
            drawn.append(
                Figure(f"steps-{table}{suffix}", title,
                       "A dot per seed at its own learning rate, as far as one evaluation an epoch tells; crosses: not "
                       f"within {first.steps} steps. Where a plateau makes the final score a lottery this says more.",
                       steps_to_score(one, rows, width), table)
            )  # fmt: skip
        made.append((one, drawn))
    return made
