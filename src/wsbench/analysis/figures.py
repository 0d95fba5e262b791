"""Fig. 4 of the paper and its companions, drawn from what :mod:`wsbench.analysis.findings` collected."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsbench import extras
from wsbench.analysis.curvature import NETWORK
from wsbench.analysis.shares import PARTS

Run = dict[str, Any]

_OF_SPEC = {"bn": "#3d7ea6", "gn": "#8da0b6", "gn+ws-mo": "#d1495b", "gn+ws-do": "#c9912e", "gn+ws": "#1b7f5c"}
_OTHERS = ("#6a6599", "#8c564b", "#e377c2", "#17becf", "#bcbd22")
_PART_COLOURS = dict(zip(PARTS, ("#d1495b", "#3d7ea6", "#1b7f5c"), strict=True))
_PART_WORDS = {"A": "A: taken out by Eq. 6", "B": "B: taken out by Eq. 5", "R": "R: left for the weight"}


def _colours(runs: Sequence[Run]) -> list[str]:
    others = itertools.cycle(_OTHERS)
    assigned = dict(_OF_SPEC) if len({run["norm"] for run in runs}) == len(runs) else {}
    return [assigned.get(run["norm"]) or next(others) for run in runs]


def _epoch(run: Run, steps: Sequence[float]) -> list[float]:
    return [step / (run["steps_per_epoch"] or 1) for step in steps]


def _along_epochs(axes: Any, run: Run, remark: str = "") -> None:
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(f"{'epoch' if run['steps_per_epoch'] else 'optimizer step'}{remark}")
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)


def _title(runs: Sequence[Run]) -> str:
    run = runs[0]
    batch = f"{run['micro_batch']} a device, {run['effective_batch']} a step"
    return f"{run['task']} / {run['recipe']}, {run['network']}, batch {batch}, seed {run['seed']}"


def _curve(axes: Any, runs: Sequence[Run], name: str, title: str) -> bool:
    """Whether any run has it."""
    drawn = False
    for run, colour in zip(runs, _colours(runs), strict=True):
        points = run["curves"].get(name)
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(_epoch(run, steps), values, color=colour, label=run["norm"], linewidth=1.6)
            drawn = True
    axes.set_title(title, loc="left", fontsize=10)
    _along_epochs(axes, runs[0])
    return drawn


def _shares(axes: Any, run: Run) -> None:
    steps = _epoch(run, [line["step"] for line in run["shares"]])
    for how, style in (("mean_of_ratios", "-"), ("ratio_of_sums", ":")):
        for part in PARTS:
            values = [100 * line["network"][how][part] for line in run["shares"]]
            label = _PART_WORDS[part] if how == "mean_of_ratios" else None
            marker = {"marker": "o", "markersize": 2.5} if how == "mean_of_ratios" else {}
            axes.plot(steps, values, style, color=_PART_COLOURS[part], label=label, linewidth=1.4, **marker)
    axes.axhline(2, color="black", linewidth=0.6, linestyle="--")
    axes.text(0, 2.1, "2 %: the paper's A stays below", fontsize=7, va="bottom")
    axes.set_yscale("log")
    axes.set_ylim(top=130)
    axes.set_title(f"share of ||dL/dŴ||², {run['norm']} (%)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    _along_epochs(axes, run, "; solid: mean of ratios, dotted: ratio of sums")


def _the_standardized(runs: Sequence[Run]) -> Run | None:
    """The run whose shares Fig. 4 shows: of Eq. 5 and 6 both, if there is one."""
    with_shares = [run for run in runs if run["shares"]]
    whole = [run for run in with_shares if "-" not in run["norm"]]
    return next(iter([*whole, *with_shares]), None)


def figure4(runs: Sequence[Run]) -> Any | None:
    """Training dynamics and the shares of the gradient against the epoch; None without either."""
    monitor = runs[0]["monitor"]
    train = f"train/{monitor}" if any(f"train/{monitor}" in run["curves"] for run in runs) else "train/loss"
    panels = [name for name in (train, f"val/{monitor}") if any(name in run["curves"] for run in runs)]
    standardized = _the_standardized(runs)
    count = len(panels) + (standardized is not None)
    if not count:
        return None
    figure, axes = extras.matplotlib().subplots(
        1, count, figsize=(4.4 * count, 3.9), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes[0], panels, strict=False):
        _curve(axis, runs, name, name.replace("train/", "training, ").replace("val/", "validation, "))
    if panels:
        axes[0][0].legend(frameon=False, fontsize=8)
    if standardized is not None:
        _shares(axes[0][-1], standardized)
    figure.suptitle(_title(runs), x=0.01, ha="left", fontsize=10)
    return figure


def by_layer(runs: Sequence[Run]) -> Any | None:
    """Shares of the gradient of every layer, at the last measurement; None without any."""
    measured = [(run, run["shares"][-1]) for run in runs if run["shares"]]
    measured = measured or [(r, c["shares"]) for r in runs for c in r["checkpoints"][-1:] if "shares" in c]
    if not measured:
        return None
    names = list(measured[0][1]["layers"])
    figure, axes = extras.matplotlib().subplots(
        1, len(measured), figsize=(3 + 3.2 * len(measured), 1.6 + 0.2 * len(names)), layout="constrained", sharey=True,
        squeeze=False,
    )  # fmt: skip
    for axis, (run, line) in zip(axes[0], measured, strict=True):
        layers = {n: line["layers"][n]["mean_of_ratios"] for n in names if n in line["layers"]}
        left = [0.0] * len(layers)
        for part in ("B", "A", "R"):
            values = [100 * max(layer[part], 0.0) for layer in layers.values()]
            axis.barh(range(len(layers)), values, left=left, color=_PART_COLOURS[part], label=_PART_WORDS[part])
            left = [a + b for a, b in zip(left, values, strict=True)]
        axis.set_yticks(range(len(layers)), [n.removeprefix("network.") for n in layers], fontsize=7)
        axis.set_xlim(0, 100)
        axis.set_title(f"{run['norm']}, step {line['step']}", loc="left", fontsize=10)
        axis.set_xlabel("% of ||dL/dŴ||², mean over channels")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False,
                  fontsize=8)  # fmt: skip
    figure.suptitle(_title(runs), x=0.01, ha="left", fontsize=10)
    return figure


def curvature_figure(runs: Sequence[Run]) -> Any | None:
    """How much of the squared Hessian centring the weights leaves, by layer, and what the network's is."""
    measured = [(run, run["checkpoints"][-1]) for run in runs if "curvature" in run["checkpoints"][-1]]
    if not measured:
        return None
    names = [entry["name"] for entry in measured[0][1]["curvature"]]
    figure, (left, right) = extras.matplotlib().subplots(
        1, 2, figsize=(11, 1.8 + 0.22 * len(names)), layout="constrained", width_ratios=(2, 1)
    )
    colours = dict(zip([r["run"] for r in runs], _colours(runs), strict=True))
    height = 0.8 / len(measured)
    for i, (run, checkpoint) in enumerate(measured):
        entries = {entry["name"]: entry["ratio"] for entry in checkpoint["curvature"]}
        places = [k - 0.4 + (i + 0.5) * height for k, n in enumerate(names) if n in entries]
        ratios = [entries[n] for n in names if n in entries]
        left.errorbar(
            [r["mean"] for r in ratios], places, xerr=[2 * r["standard_error"] for r in ratios], fmt="o", markersize=4,
            color=colours[run["run"]], label=run["norm"], linewidth=1,
        )  # fmt: skip
    left.set_yticks(range(len(names)), ["all layers" if n == NETWORK else n for n in names], fontsize=7)
    left.invert_yaxis()
    left.set_xlim(0, 1.05)
    left.axvline(1, color="black", linewidth=0.6)
    left.set_xlabel("||P H' P||² / ||H'||²: share of the squared Hessian that subtracting the mean leaves (± 2 s.e.)")
    left.set_title(f"Eq. 17-19 at step {measured[0][1]['step']}", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    left.grid(axis="x", linewidth=0.4, alpha=0.5)
    left.spines[["top", "right"]].set_visible(False)

    for k, (run, checkpoint) in enumerate(measured):
        network = next(entry for entry in checkpoint["curvature"] if entry["name"] == NETWORK)
        for offset, key, alpha in ((-0.2, "free", 0.4), (0.2, "centred", 1.0)):
            right.bar(k + offset, network[key]["mean"], 0.38, yerr=2 * network[key]["standard_error"],
                      color=colours[run["run"]], alpha=alpha)  # fmt: skip
    right.set_yscale("log")
    right.set_xticks(range(len(measured)), [run["norm"] for run, _ in measured], rotation=30, ha="right", fontsize=8)
    right.set_title("all layers: ||H'||² (pale), ||P H' P||²", loc="left", fontsize=10)
    _tidy(right)
    figure.suptitle(_title(runs), x=0.01, ha="left", fontsize=10)
    return figure


def smoothness_figure(runs: Sequence[Run]) -> Any:
    """The loss and the gradient over steps along the gradient, and effective beta, at each checkpoint."""
    figure, axes = extras.matplotlib().subplots(1, 3, figsize=(13.2, 3.9), layout="constrained")
    for run, colour in zip(runs, _colours(runs), strict=True):
        measured = [(c["step"], c["smoothness"]) for c in run["checkpoints"]]
        x = _epoch(run, [step for step, _ in measured])
        losses = [[s["loss"] for s in smooth["steps"]] for _, smooth in measured]
        changes = [[s["gradient_change"] for s in smooth["steps"]] for _, smooth in measured]
        for axis, ranges in ((axes[0], losses), (axes[1], changes)):
            low, high = [min(r) for r in ranges], [max(r) for r in ranges]
            axis.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
            if len(x) == 1:
                axis.errorbar(x, [low[0]], yerr=[[0], [high[0] - low[0]]], color=colour, capsize=4)
        axes[0].plot(x, [smooth["loss"] for _, smooth in measured], "-o", markersize=3, color=colour, label=run["norm"])
        axes[1].plot(x, [smooth["gradient_norm"] for _, smooth in measured], "-o", markersize=3, color=colour)
        axes[2].plot(x, [smooth["beta"] for _, smooth in measured], "-o", markersize=3, color=colour)
    first = runs[0]["checkpoints"][0]["smoothness"]["steps"]
    span = f"{first[0]['eta']:g} to {first[-1]['eta']:g}"
    axes[0].set_title(f"loss (line), and after steps of {span}", loc="left", fontsize=10)
    axes[1].set_title("||gradient|| (line), and by how much it changes", loc="left", fontsize=10)
    axes[2].set_title("effective beta-smoothness", loc="left", fontsize=10)
    axes[1].set_yscale("log")
    axes[2].set_yscale("log")
    for axis in axes:
        _along_epochs(axis, runs[0])
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(_title(runs), x=0.01, ha="left", fontsize=10)
    return figure


def draw(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write the figures that there is data for as PNG; returns their paths."""
    pyplot = extras.matplotlib()
    written = []
    drawings = {
        "fig4": figure4, "layers": by_layer, "curvature": curvature_figure, "smoothness": smoothness_figure,
    }  # fmt: skip
    for name, make in drawings.items():
        figure = make(runs)
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=130)
            pyplot.close(figure)
            written.append(path)
    return written
