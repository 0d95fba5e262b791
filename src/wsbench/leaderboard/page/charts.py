"""The figures: Vega-Lite charts made with Altair from groups of runs; the page embeds them, --png writes them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsbench.extras import altair as altair_module
from wsbench.leaderboard.logs import Logs
from wsbench.leaderboard.naming import short
from wsbench.leaderboard.verdict import metric_name
from wsbench.leaderboard.wide import Group, settings_of
from wsbench.records import lower_is_better
from wsbench.registry import TASKS
from wsbench.run.identity import LR

#: a colour for each norm, told apart by colour-blind readers (Paul Tol's muted scheme)
COLOURS = {
    "bn": "#4477aa", "bn+ws": "#66ccee", "gn": "#cc6677", "gn+ws": "#228833", "ln": "#ccaa33", "ln+ws": "#887700",
    "in": "#aa4499", "in+ws": "#882255", "sn": "#999999", "sn+ws": "#44aa99",
}  # fmt: skip
_FURTHER = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#6a3d9a", "#b15928")
#: the four of the paper's figures
MAIN = ("bn", "bn+ws", "gn", "gn+ws")
HEIGHT = 260
#: of figures outside of the page, whose script says it for those inside: one legend below the other
CONFIG = {"legend": {"layout": {"top": {"anchor": "start", "direction": "vertical", "margin": 4}}}}


@dataclass(frozen=True)
class Figure:
    """A chart with what a reader must know about it."""

    name: str
    """Of its file, and of its place on the page."""
    title: str
    caption: str
    chart: Any
    table: str
    """Whose runs it shows."""


def _colour(alt: Any, norms: Iterable[str]) -> Any:
    fixed = [n for n in COLOURS if n in (given := set(norms))]
    other = sorted(given - set(COLOURS))
    colours = [COLOURS[n] for n in fixed] + [_FURTHER[i % len(_FURTHER)] for i in range(len(other))]
    scale = alt.Scale(domain=[*fixed, *other], range=colours)
    columns = 4 if max(map(len, given), default=0) <= len("bn+ws") + 1 else 2  # what fits a phone
    return alt.Color(
        "norm:N", scale=scale, title=None, legend=alt.Legend(orient="top", columns=columns, symbolOpacity=1)
    )


def _good(metric: str, value: float) -> float:
    """So that higher is better: an error as accuracy."""
    return 100 - value if lower_is_better(metric) else value


def _good_name(metric: str) -> str:
    return metric_name(metric).replace("error", "accuracy")


def metric_title(metric: str) -> str:
    """Of an axis: ``top-1 error (%), lower is better``."""
    return f"{metric_name(metric)} (%), {'lower' if lower_is_better(metric) else 'higher'} is better"


def _chart(alt: Any, rows: Sequence[Mapping[str, Any]], width: int | str) -> Any:
    return alt.Chart(alt.Data(values=list(rows))).properties(width=width, height=HEIGHT)


def _batch(group: Group) -> str:
    batch = group.first.batch
    return f"{batch.micro_batch} per device, {batch.effective_batch} per step"


def bars(grouped: Sequence[Group], width: int | str) -> Any:
    """Fig. 1: a bar for each of the four main norms, a dot a seed."""
    alt = altair_module()
    metric = TASKS[grouped[0].first.task].headline
    rows, seeds = [], []
    for group in grouped:
        norm, over = short(group.first.labelled_norm), group.spread(metric)
        if over is None or norm not in MAIN:
            continue
        shown = f"{over.mean:.2f}" + ("" if over.std is None else f" ± {over.std:.2f}")
        rows.append({"norm": norm, "value": _good(metric, over.mean), metric: shown, "seeds": over.n})
        seeds += [{"norm": norm, "value": _good(metric, v), "seed": s} for s, v in group.values(metric).items()]
    order = [n for n in MAIN if n in {r["norm"] for r in rows}]
    x = alt.X("norm:N", sort=order, title=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y("value:Q", title=f"{_good_name(metric)} (%)", scale=alt.Scale(zero=True))
    colour = _colour(alt, order).legend(None)
    bar = (
        _chart(alt, rows, width).mark_bar().encode(x=x, y=y, color=colour, tooltip=["norm:N", f"{metric}:N", "seeds:Q"])
    )
    dot = _chart(alt, seeds, width).mark_point(
        filled=True, color="black", stroke="white", strokeWidth=0.7, opacity=1, size=26
    )
    return bar + dot.encode(x=x, y=y, tooltip=["norm:N", "seed:Q", alt.Tooltip("value:Q", format=".2f")])


def batch_curve(grouped: Sequence[Group], width: int | str) -> Any:
    """Error against images per device at a constant effective batch; a band from the best seed to the worst."""
    alt = altair_module()
    metric = TASKS[grouped[0].first.task].headline
    rows: list[dict[str, Any]] = []
    for group in grouped:
        values = list(group.values(metric).values())
        batch = group.first.batch
        if not values:
            continue
        rows.append(
            {"norm": short(group.first.labelled_norm), "batch": batch.micro_batch, "mean": sum(values) / len(values),
             "least": min(values), "most": max(values), "seeds": len(values), "of": batch.effective_batch}
        )  # fmt: skip
    ticks = sorted({r["batch"] for r in rows}, reverse=True)
    x = alt.X(
        "batch:Q", title="images per device (log scale)", axis=alt.Axis(values=ticks, grid=False),
        scale=alt.Scale(type="log", base=2, domain=[max(ticks), min(ticks)], nice=False),
    )  # fmt: skip
    title = f"{metric.replace('_', ' ')} (%)"
    y = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=True))
    base = _chart(alt, rows, width)
    colour = _colour(alt, {r["norm"] for r in rows})
    band = base.mark_area(opacity=0.15).encode(x=x, y=alt.Y("least:Q", title=title), y2="most:Q", color=colour)
    tooltip = ["norm:N", "batch:Q", alt.Tooltip("mean:Q", format=".2f"), "least:Q", "most:Q", "seeds:Q"]
    return band + base.mark_line(point=True).encode(x=x, y=y, color=colour, tooltip=tooltip)


def _curve_rows(grouped: Sequence[Group], logs: Logs, metric: str, part: str) -> list[dict[str, Any]]:
    """Means over the seeds of a logged metric, at the steps that all of them have."""
    rows: list[dict[str, Any]] = []
    for group in grouped:
        series = [logs.get(r.id, {}).get(metric, {}) for r in group.records]
        if short(group.first.labelled_norm) not in MAIN or not all(series):
            continue
        steps = sorted(set.intersection(*(set(s) for s in series)))
        rows += [
            {
                "norm": short(group.first.labelled_norm),
                "part": part,
                "step": step,
                "value": sum(s[step] for s in series) / len(series),
            }
            for step in steps
        ]
    return rows


def errors(grouped: Sequence[Group], logs: Logs, width: int | str) -> Any | None:
    """Fig. 5: training error dashed, validation error solid; None if no run has logged both."""
    alt = altair_module()
    task = grouped[0].first.task
    metric = TASKS[task].headline
    rows = [r for part in ("train", "val") for r in _curve_rows(grouped, logs, f"{part}/{metric}", part)]
    if {r["part"] for r in rows} != {"train", "val"}:
        return None
    for row in rows:
        row["error"] = row["value"] if lower_is_better(metric) else 100 - row["value"]
        row["split"] = {"train": "training", "val": "validation"}[row["part"]]
    dash = alt.StrokeDash(
        "split:N", title=None, legend=alt.Legend(orient="top"),
        scale=alt.Scale(domain=["validation", "training"], range=[[1, 0], [5, 4]]),
    )  # fmt: skip
    encoding = {
        "x": alt.X("step:Q", title="optimizer step"),
        "y": alt.Y("error:Q", title="error (%)", scale=alt.Scale(zero=True)),
        "color": _colour(alt, {r["norm"] for r in rows}),
        "tooltip": ["norm:N", "split:N", "step:Q", alt.Tooltip("error:Q", format=".2f")],
    }
    return _chart(alt, rows, width).mark_line(point={"size": 18}).encode(strokeDash=dash, **encoding)


def losses(grouped: Sequence[Group], logs: Logs, width: int | str) -> Any | None:
    """Fig. 6: the training loss; None if no run has logged it."""
    alt = altair_module()
    rows = _curve_rows(grouped, logs, "train/loss", "train")
    if not rows:
        return None
    return (
        _chart(alt, rows, width)
        .mark_line(point={"size": 18})
        .encode(
            x=alt.X("step:Q", title="optimizer step"),
            y=alt.Y("value:Q", title="training loss", scale=alt.Scale(zero=False)),
            color=_colour(alt, {r["norm"] for r in rows}),
            tooltip=["norm:N", "step:Q", alt.Tooltip("value:Q", format=".3f")],
        )
    )


def against(grouped: Sequence[Group], cost: str, title: str, width: int | str) -> Any:
    """Accuracy against what it costs; the shape says whether weights are standardized."""
    alt = altair_module()
    metric = TASKS[grouped[0].first.task].headline
    rows: list[dict[str, Any]] = []
    for group in grouped:
        over = group.spread(metric)
        if over is None:
            continue
        norm = short(group.first.labelled_norm)
        weights = "+".join(norm.split("+")[1:]) or "plain"
        rows.append(
            {"norm": norm, "weights": weights, "cost": group.mean_of_cost(cost), "value": _good(metric, over.mean)}
        )
    return (
        _chart(alt, rows, width)
        .mark_point(filled=True, size=90, opacity=0.9)
        .encode(
            x=alt.X("cost:Q", title=title, scale=alt.Scale(zero=False)),
            y=alt.Y("value:Q", title=f"{_good_name(metric)} (%)", scale=alt.Scale(zero=False)),
            color=_colour(alt, {r["norm"] for r in rows}),
            shape=alt.Shape("weights:N", title=None, legend=alt.Legend(orient="top", columns=4)),
            tooltip=["norm:N", alt.Tooltip("cost:Q", format=".1f", title=title), alt.Tooltip("value:Q", format=".2f")],
        )
    )


def curves_of(grouped: Sequence[Group]) -> list[list[Group]]:
    """Groups of one table and effective batch at three or more numbers of images per device: a batch curve each."""
    kept: dict[tuple[object, ...], list[Group]] = {}
    for group in grouped:
        varied = {"data.micro_batch"} | ({LR} if group.first.tuning else set())
        changed = {k: v for k, v in group.first.overrides.items() if k not in varied}
        key = (group.table, group.first.network, str(sorted(changed.items())), group.first.batch.effective_batch)
        kept.setdefault(key, []).append(group)
    return [each for each in kept.values() if len({g.first.batch.micro_batch for g in each}) >= 3]


def figures(grouped: Sequence[Group], logs: Logs, width: int | str = "container") -> list[Figure]:
    """All figures that the runs give; the most telling first."""
    made = []
    curves = curves_of(grouped)
    for i, each in enumerate(curves):
        effective = each[0].first.batch.effective_batch
        seeds = max(len(g.records) for g in each)
        made.append(
            Figure(
                f"batch-{each[0].table}" + (f"-{i}" if i else ""),
                f"{each[0].table}: images per device",
                f"{effective} images per optimizer step throughout, so that only what the normalization sees changes. "
                f"Lines are means over {seeds} seed(s), bands reach from the best seed to the worst. Lower is better.",
                batch_curve(each, width),
                each[0].table,
            )
        )
    swept = {id(group) for each in curves for group in each}
    settings = [s for s in settings_of(grouped) if not all(id(g) in swept for g in s)]
    for each in settings:
        table, subtitle = each[0].table, _batch(each[0])
        main = max((s for s in settings if s[0].table == table), key=len)  # the first of the largest
        suffix = "" if each is main else f"-{settings.index(each)}"
        if {short(g.first.labelled_norm) for g in each} & set(MAIN):
            made.append(
                Figure(
                    f"bars-{table}{suffix}", f"Fig. 1 - {table}",
                    f"Final weights, {subtitle}; bars are means, dots are seeds. Higher is better.", bars(each, width),
                    table,
                )
            )  # fmt: skip
        error = errors(each, logs, width)
        if error is not None:
            caption = f"Means over seeds, {subtitle}."
            made.append(Figure(f"error-{table}{suffix}", f"Fig. 5 - {table}", caption, error, table))
        loss = losses(each, logs, width)
        if loss is not None:
            caption = f"Means over seeds, {subtitle}."
            made.append(Figure(f"loss-{table}{suffix}", f"Fig. 6 - {table}", caption, loss, table))
        for cost, name, title in (
            ("samples_per_second", "speed", "training images/s"), ("peak_memory_mib", "memory", "peak memory (MiB)")
        ):  # fmt: skip
            if len(each) < 2:  # nothing to compare
                continue
            heading = f"Accuracy against {'images/s' if name == 'speed' else 'memory'} - {table}"
            chart = against(each, cost, title, width)
            made.append(Figure(f"{name}-{table}{suffix}", heading, _cost_caption(each, name), chart, table))
    return made


def _cost_caption(grouped: Sequence[Group], name: str) -> str:
    hardware = sorted({r.provenance.hardware for g in grouped for r in g.records})
    memory = "the process, most of it torch itself" if any("CPU" in h for h in hardware) else "allocated on the device"
    return f"Measured while training on {'; '.join(hardware)}" + (f"; memory of {memory}." if name == "memory" else ".")
