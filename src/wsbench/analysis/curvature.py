"""Eq. 17-19 of arXiv:1903.10520 on a live network: what subtracting the mean does to the Hessian of the loss.

With H' the Hessian with respect to the centred weight, each row of fan-in values taken as free, and P = I - 11^T / I,
the Hessian with respect to the weight is H = P H' P (Eq. 17), so its entries sum to zero in every row (Eq. 18) and

    ||H||_F^2 <= ||H'||_F^2 - (sum of the entries of H')^2 / I^2

for each output channel. (Eq. 19 is printed without the squares; with norms instead of squared norms it is false.)
Frobenius norms are estimated from Hessian-vector products: E ||M v||^2 = ||M||_F^2 for v of independent signs
(Hutchinson 1990, on M^T M).
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wsbench.analysis.problem import Problem, ProblemError
from wsbench.norms import NormalizedLayer, substituted
from wsbench.norms.layers import rows_of, shaped_as_weight
from wsbench.norms.weight import WeightStandardization

NETWORK = "network"


@dataclass(frozen=True)
class Estimate:
    """A mean over random vectors and its standard error."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """From at least two values."""
        return cls(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))

    @classmethod
    def ratio(cls, upper: Sequence[float], lower: Sequence[float]) -> "Estimate":
        """Of two means over the same vectors; the error by the delta method."""
        below = statistics.fmean(lower)
        if below == 0:
            return cls(math.nan, math.nan)
        ratio = statistics.fmean(upper) / below
        rest = [u - ratio * v for u, v in zip(upper, lower, strict=True)]
        spread = math.sqrt(sum(r * r for r in rest) / (len(rest) * (len(rest) - 1)))
        return cls(ratio, spread / abs(below))


@dataclass(frozen=True)
class Curvature:
    """Squared Frobenius norms of a Hessian block: of one layer's weight, or of all layers' together."""

    name: str
    """The layer; ``network`` for all of them with their mixed derivatives."""
    free: Estimate
    """||H'||_F^2, with respect to the centred weight (of a plain layer or ``do``: the weight) as it is."""
    centred: Estimate
    """||P H' P||_F^2: with ``ws`` and ``mo`` what the optimizer sees, else what it would see of a centred weight."""
    ratio: Estimate
    """``centred`` / ``free``."""


def project(layer: nn.Module, weight: Tensor) -> Tensor:
    """P applied to every row of fan-in values of a tensor in the shape of the layer's weight."""
    rows = rows_of(layer, weight)
    return shaped_as_weight(layer, rows - rows.mean(1, keepdim=True))


def _divided(layer: NormalizedLayer, free: Tensor) -> Tensor:
    """What the layer computes with, from its centred weight: Eq. 6 and what follows it, by the layer's definition."""
    method, rows = layer.method, rows_of(layer, free)
    assert isinstance(method, WeightStandardization)
    if method.spec.variant != "mo":
        scale = rows.square().mean(1, keepdim=True)
        if method.unbiased and method.spec.variant != "do":
            scale = scale * (rows.shape[1] / (rows.shape[1] - 1))
        rows = rows * torch.rsqrt(scale + method.eps) if method.inside else rows / (scale.sqrt() + method.eps)
    if method.spec.variant == "af":
        gain, shift = (getattr(layer, name).detach().view(-1, 1) for name in ("weight_gain", "weight_shift"))
        rows = rows * gain + shift
    return shaped_as_weight(layer, rows)


@contextmanager
def centred_weights(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Let the layers compute from leaves: a standardized one from its centred weight, a plain one from its weight.

    Yields:
        Name to leaf, in the shape of the layer's ``.weight``. The network's output is what it was.
    """
    leaves: dict[str, Tensor] = {}
    values: dict[NormalizedLayer, Callable[[], Tensor]] = {}
    for name, layer in layers.items():
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if not isinstance(layer, NormalizedLayer):
            leaves[name] = weight
            continue
        centred = weight.detach().clone() if layer.spec.variant == "do" else project(layer, weight.detach())
        leaves[name] = centred.requires_grad_()
        values[layer] = partial(_divided, layer, centred)
    with substituted(values):
        yield leaves


def _require_second_derivatives(gradients: Iterable[Tensor]) -> None:
    """Refuse a graph with a function that is marked ``once_differentiable``.

    Asked for the derivative with respect to a leaf, autograd leaves such a function out silently: it would be
    taken for constant.
    """
    waiting = [g.grad_fn for g in gradients]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise ProblemError(
                "a function of this network can be differentiated once only, so its curvature cannot be measured"
            )
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)


class _Products:
    """Squared norms of Hessian-vector products, summed over micro-batches before they are squared.

    Args:
        layers: name to layer.
        probes: random vectors of each layer.
        seed: of them.
    """

    def __init__(self, layers: Mapping[str, nn.Module], probes: int, seed: int) -> None:
        self._layers, self._probes = layers, probes
        generator = torch.Generator().manual_seed(seed)
        self._vectors: list[dict[str, Tensor]] = [{} for _ in range(probes)]
        for signs in self._vectors:
            for name, layer in layers.items():
                weight: Tensor = layer.weight  # type: ignore[assignment]
                drawn = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.int8)
                signs[name] = (2 * drawn - 1).to(weight)
        self._sums: dict[tuple[str, int, bool], dict[str, Tensor]] = {}

    def add(self, part: Tensor, leaves: dict[str, Tensor]) -> None:
        """Add the products of one micro-batch's part of the loss."""
        names = list(leaves)
        first = torch.autograd.grad(part, list(leaves.values()), create_graph=True, allow_unused=True)
        gradients = {name: grad for name, grad in zip(names, first, strict=True) if grad is not None}
        if not self._sums:
            _require_second_derivatives(gradients.values())
        for name in gradients:
            self._multiply(name, [name], gradients, leaves)
        self._multiply(NETWORK, list(gradients), gradients, leaves)

    def _multiply(
        self, key: str, names: list[str], gradients: dict[str, Tensor], leaves: dict[str, Tensor]
    ) -> None:  # fmt: skip
        for probe, signs in enumerate(self._vectors):
            for centred in (False, True):
                vectors = [project(self._layers[n], signs[n]) if centred else signs[n] for n in names]
                products = torch.autograd.grad(
                    [gradients[n] for n in names], [leaves[n] for n in names], vectors, retain_graph=True,
                    allow_unused=True,
                )  # fmt: skip
                kept = self._sums.setdefault((key, probe, centred), {})
                for n, product in zip(names, products, strict=True):
                    if product is not None:
                        kept[n] = kept[n] + product if n in kept else product

    def estimates(self) -> list[Curvature]:
        """Layers first, then the network."""
        curvatures = []
        for key in (*self._layers, NETWORK):
            if (key, 0, False) not in self._sums:
                continue
            free = [self._squared(key, probe, False) for probe in range(self._probes)]
            centred = [self._squared(key, probe, True) for probe in range(self._probes)]
            ratio = Estimate.ratio(centred, free)
            curvatures.append(Curvature(key, Estimate.of(free), Estimate.of(centred), ratio))
        return curvatures

    def _squared(self, key: str, probe: int, centred: bool) -> float:
        total = 0.0
        for name, product in self._sums[key, probe, centred].items():
            product = project(self._layers[name], product) if centred else product
            total += float(product.double().square().sum())
        return total


def curvature(problem: Problem, probes: int = 8, seed: int = 0) -> list[Curvature]:
    """Squared Frobenius norms of the Hessian of a network's loss, by layer and of all layers together.

    Costs two Hessian-vector products for each layer and random vector, and holds them all.

    Args:
        problem: the network and its loss.
        probes: random vectors, at least 2; the standard error falls with their root.
        seed: of the vectors; the same for all networks of the same layers.

    Returns:
        One entry a layer in the network's order, then ``network``.

    Raises:
        ProblemError: an operation of the network cannot be differentiated twice, or there are too few probes.
    """
    if probes < 2:
        raise ProblemError(f"--probes {probes}: at least 2, for a standard error")
    layers = problem.layers
    products = _Products(layers, probes, seed)
    with problem.undisturbed(), centred_weights(layers) as leaves:
        for part in problem.parts():
            try:
                products.add(part, leaves)
            except RuntimeError as error:
                if not any(phrase in str(error) for phrase in ("derivative", "double backward")):
                    raise
                raise ProblemError(
                    f"an operation of this network has no second derivative ({str(error).splitlines()[0]}), so its "
                    "curvature cannot be measured"
                ) from error
    return products.estimates()
