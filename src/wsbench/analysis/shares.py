"""Section 2.3 of arXiv:1903.10520, Fig. 4 right: how much of a gradient the two steps of standardization take out.

With g = dL/dŴ of one output channel, I its fan-in, y = (W - mean) / ||W - mean|| and d what Eq. 6 divides by,

    A = <y, g>^2         taken out by Eq. 6 (division by sigma)
    B = <1, g>^2 / I     taken out by Eq. 5 (subtraction of the mean)
    R = d^2 ||dL/dW||^2  what is left, but for the scale

and A + B + R = ||g||^2, because y, 1 / sqrt(I) and the rest are orthogonal. The paper writes A as <Ŵ, g>^2 / I, which
is the same for the biased sigma and eps 0, where ||Ŵ||^2 = I; for the unbiased sigma of the authors' code ||Ŵ||^2 is
I - 1. An eps leaves the share (1 - f)^2 of A in the gradient, with f = sigma / d outside the root and its square
inside; it is taken off R here, so that the sum is exact for every definition.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsbench.errors import UserError
from wsbench.norms import NormalizedLayer
from wsbench.norms.layers import rows_of
from wsbench.norms.moments import VARIANCE_FLOOR
from wsbench.norms.weight import WeightStandardization

#: names of the three parts, in the order of every array here
PARTS = ("A", "B", "R")


class SharesError(UserError, ValueError):
    """A layer or gradient that the decomposition is not defined for."""


def standardized_layers(model: nn.Module) -> dict[str, NormalizedLayer]:
    """The layers with ``ws`` or a variant of it, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, NormalizedLayer) and isinstance(module.method, WeightStandardization)
    }


@dataclass(frozen=True)
class ChannelShares:
    """A, B, R and ||g||^2 of every output channel of a layer, float64."""

    parts: Tensor
    """(3, O): A, B, R, in the unit of g squared."""
    total: Tensor
    """(O,): ||g||^2."""
    printed: Tensor
    """(O,): <Ŵ, g>^2 / I + B + sigma^2 ||dL/dW||^2, the paper's formula taken literally for whatever sigma and eps the
    layer has; by how much it misses ``total`` is what the convention costs."""
    sigma: Tensor
    """(O,): what Eq. 6 divides by, without eps; 1 for ``mo``."""
    retained: Tensor
    """(O,): f = sigma / (sigma + eps), 1 for no damping by eps; 1 for ``mo``."""

    @property
    def ratios(self) -> Tensor:
        """(3, channels with a gradient): the parts relative to ||g||^2."""
        return (self.parts / self.total)[:, self.total > 0]

    @property
    def error(self) -> float:
        """Largest ``|A + B + R - ||g||^2|`` of a channel, relative to ``||g||^2``; 0 if there is no gradient at all."""
        return _worst(self.parts.sum(0), self.total)

    @property
    def printed_error(self) -> float:
        """The same of the paper's formula taken literally."""
        return _worst(self.printed, self.total)


def _worst(parts: Tensor, total: Tensor) -> float:
    nonzero = total > 0
    relative = (parts[nonzero] - total[nonzero]).abs() / total[nonzero]
    return float(relative.max()) if relative.numel() else 0.0


@dataclass(frozen=True)
class Aggregate:
    """Shares of ||g||^2 of many channels or layers, by both readings of the paper's "percentage"."""

    mean_of_ratios: tuple[float, float, float]
    """Each channel's shares, averaged over the channels of a layer, then over layers."""
    ratio_of_sums: tuple[float, float, float]
    """The sum of A, B, R over all channels of all layers, relative to that of ||g||^2."""


def scale_of(layer: NormalizedLayer) -> tuple[Tensor, Tensor]:
    """Sigma, and what Eq. 6 divides by (sigma with its eps), of every output channel, both (O,) in float64.

    Args:
        layer: with ``ws`` or a variant that divides, so not ``mo``.

    Raises:
        SharesError: the layer has no such weight normalization.
    """
    method = layer.method
    if not isinstance(method, WeightStandardization) or method.spec.variant == "mo":
        raise SharesError(f"'{layer.spec}' divides by no sigma")
    rows = rows_of(layer, layer.weight.detach()).double()
    fan_in = rows.shape[1]
    if method.spec.variant == "do":
        sigma = rows.square().mean(1).sqrt()
    else:
        floor = VARIANCE_FLOOR[torch.promote_types(layer.weight.dtype, torch.float32)]
        k = (fan_in / (fan_in - 1)) ** 0.5 if method.unbiased else 1.0
        sigma = k * (rows.var(1, correction=0) + floor).sqrt()
    return sigma, (sigma.square() + method.eps).sqrt() if method.inside else sigma + method.eps


def decompose(layer: NormalizedLayer, grad_effective: Tensor, grad_weight: Tensor) -> ChannelShares:
    """A, B and R of a layer from the two gradients, R from the second: that they add up is a check of both.

    Args:
        layer: with ``ws`` or its variants; ``mo`` has no A, ``do`` no B. Its weight is the one that the gradients
            belong to, so call this before the optimizer steps.
        grad_effective: dL/dŴ in the shape of ``.weight``, as :class:`~wsbench.norms.GradientTap` gathers it.
        grad_weight: dL/dW of the same loss, as in ``.weight.grad``.

    Raises:
        SharesError: the layer's weight normalization is not ``ws``, or shapes differ.
    """
    method = layer.method
    if not isinstance(method, WeightStandardization):
        raise SharesError(f"'{layer.spec}' is no weight standardization; the identity holds for ws, ws-mo and ws-do")
    for name, grad in (("grad_effective", grad_effective), ("grad_weight", grad_weight)):
        if grad.shape != layer.weight.shape:
            raise SharesError(f"{name} is {tuple(grad.shape)}, expected that of the weight {tuple(layer.weight.shape)}")
    rows, g, gw = (rows_of(layer, t.detach()).double() for t in (layer.weight, grad_effective, grad_weight))
    variant, fan_in = method.spec.variant, rows.shape[1]
    if variant == "af":  # the gain comes behind Eq. 2-4, which this is about
        gain: Tensor = layer.weight_gain  # type: ignore[assignment]
        g = g * gain.detach().double().reshape(-1, 1)
    centred = rows if variant == "do" else rows - rows.mean(1, keepdim=True)
    zero = rows.new_zeros(rows.shape[0])

    b = zero if variant == "do" else g.sum(1).square() / fan_in
    total, left = g.square().sum(1), gw.square().sum(1)
    if variant == "mo":
        return ChannelShares(torch.stack((zero, b, left)), total, b + left, zero + 1, zero + 1)

    sigma, divisor = scale_of(layer)
    kept = (sigma / divisor).square() if method.inside else sigma / divisor
    norm = torch.linalg.vector_norm(centred, dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    a = ((centred / norm[:, None]) * g).sum(1).square()
    r = divisor.square() * left - (1 - kept).square() * a
    printed = ((centred / divisor[:, None]) * g).sum(1).square() / fan_in + b + sigma.square() * left
    return ChannelShares(torch.stack((a, b, r)), total, printed, sigma, sigma / divisor)


def aggregate(layers: Mapping[str, ChannelShares]) -> Aggregate:
    """Both aggregations over the channels of all layers; layers without any gradient do not count.

    Raises:
        SharesError: no layer has a gradient.
    """
    nonzero = [s for s in layers.values() if bool((s.total > 0).any())]
    if not nonzero:
        raise SharesError("no layer with weight standardization has a gradient")
    ratios = torch.stack([s.ratios.mean(1) for s in nonzero]).mean(0)
    sums = torch.stack([s.parts.sum(1) for s in nonzero]).sum(0) / torch.stack([s.total.sum() for s in nonzero]).sum()
    return Aggregate(_triple(ratios), _triple(sums))


def _triple(values: Tensor) -> tuple[float, float, float]:
    a, b, r = values.tolist()
    return a, b, r
