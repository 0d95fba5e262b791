"""Moments of each channel of each sample, and the affine map by them, on the fused group-norm kernels.

For a normalization whose result is x * scale + shift with scale and shift made of such moments: two passes over x each
way, and nothing to save but x and what has one value a channel. All take (N, C) or (N, C, *), contiguous.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: var + floor keeps 1/sigma finite where all values are equal, far below what moments of that dtype can resolve
VARIANCE_FLOOR = {torch.float32: 1e-20, torch.float64: 1e-30}


class Unit(NamedTuple):
    """Every channel of every sample normalized by itself, and by what."""

    values: Tensor
    """(x - mean) / sigma, of the shape of x."""
    mean: Tensor
    """(N, C)."""
    inv_sigma: Tensor
    """(N, C), 1 / sqrt(var + floor)."""

    @property
    def var(self) -> Tensor:
        """(N, C), biased."""
        return self.inv_sigma.pow(-2).sub_(VARIANCE_FLOOR[self.mean.dtype]).relu_()


def wide(input: Tensor) -> Tensor:
    """Contiguous, in float32 or wider."""
    return (input if input.dtype in VARIANCE_FLOOR else input.float()).contiguous()


def broadcast_statistic(statistic: Tensor, x: Tensor) -> Tensor:
    """(N, C) or (1, C), so that it broadcasts over x."""
    return statistic.view(*statistic.shape, *(1,) * (x.dim() - 2))


def unit(x: Tensor) -> Unit:
    """One pass over x."""
    n, c = x.shape[:2]
    floor = VARIANCE_FLOOR[x.dtype]
    out, mean, inv_sigma = torch.native_group_norm(x, None, None, 1, n * c, x.shape[2:].numel(), n * c, floor)
    return Unit(out, mean.view(n, c), inv_sigma.view(n, c))


def affine_in_place(normalized: Unit, scale: Tensor, shift: Tensor) -> Tensor:
    """The map x * scale + shift, written over ``normalized.values``; scale and shift are (N, C) or (1, C)."""
    gain, offset = scale / normalized.inv_sigma, torch.addcmul(shift, scale, normalized.mean)
    out = normalized.values
    return torch.addcmul(broadcast_statistic(offset, out), out, broadcast_statistic(gain, out), out=out)


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor, inv_sigma: Tensor) -> tuple[Tensor, Tensor]:
    """sum(g x) and sum(g) over a channel's values, both (N, C): dL/dscale and dL/dshift. One pass."""
    n, c = x.shape[:2]
    # torch 2.8 gives the gain's gradient only where there is a gain, whose value this gradient does not depend on
    gain = torch.ones_like(inv_sigma).flatten()
    _, by_unit, total = torch.ops.aten.native_group_norm_backward(
        grad, x, mean, inv_sigma, gain, 1, n * c, x.shape[2:].numel(), n * c, [False, True, True]
    )
    total = total.view(n, c)
    return torch.addcmul(by_unit.view(n, c) / inv_sigma, mean, total), total


def gradient(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, to_mean: Tensor, to_var: Tensor) -> Tensor:
    """dL/dx = g scale + dL/dmean / L + dL/dvar 2 (x - mean) / L with L values a channel. Two passes."""
    values = x.shape[2:].numel()
    slope = to_var * (2 / values)
    constant = torch.addcmul(to_mean / values, slope, mean, value=-1)
    return torch.addcmul(broadcast_statistic(constant, x), x, broadcast_statistic(slope, x)).addcmul_(
        grad, broadcast_statistic(scale, x)
    )
