"""``python -m wsbench norms``: every normalization, with its paper, what its statistics see, and what it costs here."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import torch
from rich.table import Table
from torch import Tensor, nn

from wsbench import plugins
from wsbench.norms import ACTIVATIONS, WEIGHTS, NormalizedLayer, NormSpec, normalized
from wsbench.norms.registry import ActivationMethod
from wsbench.run.report import console

#: the feature and the weight that costs are measured on
FEATURE, FILTERS = (4, 64, 28, 28), (256, 256, 3, 3)
ROUNDS = 7


@dataclass(frozen=True)
class Entry:
    """A normalization as the catalogue has it."""

    name: str
    paper: str
    year: int | None
    sees: str
    """What a statistic is over."""
    spec: str
    """How it may be written further: a number, variants, definitions."""
    parameters: str
    """Learned values, of C channels or O filters."""
    cost: float | None
    """Time of forward and backward over that of ``bn``, or of copying the weight and adding its gradient."""
    package: str
    """Where it comes from."""


def _package(factory: object) -> str:
    origin = plugins.source(factory)
    return "wsbench" if origin is None else " ".join(v for k, v in origin.items() if k != "sha256")


def _learned(method: ActivationMethod) -> str:
    """Its parameters as a function of the channels C, at so many that groups are not of one."""
    few, many = (sum(p.numel() for p in method.build(c).parameters()) for c in (64, 128))
    slope = (many - few) / 64
    return f"{slope:g} C" + (f" + {few - 64 * slope:g}" if few != 64 * slope else "")


def _seconds(work: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median time of each, in interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(ROUNDS + 1):
        for name, run in work.items():
            start = perf_counter()
            run()
            if number:  # the first one warms up
                times[name].append(perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def _norm_run(layer: nn.Module) -> Callable[[], object]:
    x = torch.randn(FEATURE, requires_grad=True)
    grad = torch.randn(FEATURE)

    def run() -> None:
        torch.autograd.grad(layer(x), x, grad)

    return run


def _weight_run(name: str) -> Callable[[], object]:
    layer = normalized(nn.Conv2d(FILTERS[1], FILTERS[0], FILTERS[2:], bias=False), NormSpec("none", weight=name))
    assert isinstance(layer, NormalizedLayer)
    weight, grad = layer.weight, torch.randn(FILTERS)

    def run() -> None:
        torch.autograd.grad(layer.effective_weight(), weight, grad)

    return run


def _copy_run() -> Callable[[], object]:
    weight, grad, total = (torch.randn(FILTERS) for _ in range(3))
    buffer = torch.empty_like(weight)

    def run() -> Tensor:
        buffer.copy_(weight)
        return total.add_(grad)

    return run


def entries(measure: bool) -> tuple[list[Entry], list[Entry]]:
    """All activation and all weight normalizations, the costs measured on this machine or left out."""
    layers = {name: method.build(FEATURE[1]) for name, method in ACTIVATIONS.items()}
    costs: dict[str, float] = {}
    if measure:
        times = _seconds({name: _norm_run(layer) for name, layer in layers.items()})
        costs |= {f"act {name}": value / times["bn"] for name, value in times.items()}
        times = _seconds({"copy": _copy_run(), **{name: _weight_run(name) for name in WEIGHTS}})
        costs |= {f"weight {name}": value / times["copy"] for name, value in times.items()}
    acts = []
    for name, method in ACTIVATIONS.items():
        facts = method.facts
        further = [f"{name}N: {method.number}"] if method.number else []
        further += [f"@{semantics}: {description}" for semantics, description in method.semantics.items()]
        acts.append(Entry(name, facts.paper or "-", facts.year, facts.sees, "; ".join(further), _learned(method),
                          costs.get(f"act {name}"), _package(method.factory)))  # fmt: skip
    weights = []
    for name, kind in WEIGHTS.items():
        layer = normalized(nn.Conv2d(8, 4, 3, bias=False), NormSpec("none", weight=name))
        extra = sum(p.numel() for p in layer.parameters()) - 8 * 4 * 9
        further = [f"-{variant}: {description}" for variant, description in kind.variants.items()]
        further += [f"@{semantics}: {description}" for semantics, description in kind.semantics.items()]
        weights.append(Entry(name, kind.factory.facts.paper or "-", kind.factory.facts.year, kind.factory.facts.sees,
                             "; ".join(further), f"{extra // 4} O", costs.get(f"weight {name}"),
                             _package(kind.factory)))  # fmt: skip
    return acts, weights


def _print(title: str, rows: Sequence[Entry], cost: str) -> None:
    table = Table(title=title, title_justify="left")
    measured = any(row.cost is not None for row in rows)
    for column in ("name", "paper", "year", "a statistic sees", "learned", *((cost,) if measured else ()), "from"):
        table.add_column(column, overflow="fold")
    for row in rows:
        values = [row.name, row.paper, str(row.year or "-"), row.sees, row.parameters]
        values += ["-" if row.cost is None else f"{row.cost:.1f}"] if measured else []
        table.add_row(*values, row.package)
    console().print(table)


def main(args: argparse.Namespace) -> int:
    """Print the catalogue; returns the exit status."""
    acts, weights = entries(not args.no_cost)
    if args.json:
        print(json.dumps({"activation": [asdict(a) for a in acts], "weight": [asdict(w) for w in weights]}, indent=1))
    else:
        _print("Activation normalizations: --norm NAME", acts, "time / bn")
        _print("Weight normalizations: --norm ACT+NAME", weights, "time / copy")
        further = [f"{row.name}: {row.spec}" for row in (*acts, *weights) if row.spec]
        console().print("\n".join(["further spellings:", *further]), markup=False, highlight=False)
        if not args.no_cost:
            console().print(
                f"time of forward and backward, medians of {ROUNDS} interleaved rounds on this machine (CPU, "
                f"{torch.get_num_threads()} threads): of a feature {FEATURE} over bn's; of a weight {FILTERS} over "
                "copying it and adding its gradient", markup=False, highlight=False,
            )  # fmt: skip
    for name, why in plugins.broken.items():
        print(f"wsbench: warning: the norm '{name}' could not be loaded, of {why}", file=sys.stderr)
    return 0
