"""Weight normalizations, as functions of the weight's rows: one row of fan-in values for each output channel.

A method sees ``rows`` of shape (O, I) in float32 or wider, whatever the layer is (convolution of any dimension,
transposed, grouped, or linear) and under any precision; :mod:`wsbench.norms.layers` does the layout.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wsbench.norms.moments import VARIANCE_FLOOR
from wsbench.norms.registry import register_weight
from wsbench.norms.spec import NormSpec
from wsbench.norms.tracing import traced


class WeightNorm(ABC):
    """One weight normalization: rows (O, I) of W to rows of the effective weight.

    Args:
        spec: the specification, whose variant and semantics the method reads.
    """

    #: The smallest fan-in I that the method is defined for.
    min_fan_in: ClassVar[int] = 1

    def __init__(self, spec: NormSpec) -> None:
        self.spec = spec

    def extra_parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """Initial values, each of shape (O,), of the parameters the method adds to a layer that has ``rows``."""
        return {}

    @abstractmethod
    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        """The effective rows (O, I); ``extra`` holds the added parameters, each of shape (O,)."""


def _standardize_rows(rows: Tensor, eps: float, unbiased: bool, inside: bool) -> Tensor:
    """The definition in primitive operations; differentiable any number of times."""
    mean = rows.mean(1, keepdim=True)
    var = (rows - mean).square().mean(1, keepdim=True)
    if inside:
        return (rows - mean) * torch.rsqrt(var + eps)
    correction = math.sqrt(rows.shape[1] / (rows.shape[1] - 1)) if unbiased else 1.0
    return (rows - mean) / (correction * torch.sqrt(var + VARIANCE_FLOOR[rows.dtype]) + eps)


class _Standardize(torch.autograd.Function):
    """Standardized rows by PyTorch's fused group-norm kernels: one for the forward, one for the backward.

    The kernel divides by sqrt(var + e). For eps outside the root, with r = 1/sigma, d = k sigma + eps (k = 1, or
    sqrt(I/(I-1)) for the unbiased sigma) and f = sigma/d, Eq. 2-4 are y = f (W - mean) r, and

        dL/dW = f r (g - mean(g) - k f y' mean(g y')),    y' = (W - mean) r.

    That is the kernel's own backward when it is handed r' = r sqrt(k f) and the gain sqrt(f / k): the product r' gain
    is f r, and its cubic term gain r'^3 is k f^2 r^3. So no pass over the weight is spent on eps.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float, unbiased: bool, inside: bool) -> Tensor:
        channels, fan_in = rows.shape
        contiguous = rows.contiguous()
        floor = eps if inside else VARIANCE_FLOOR[rows.dtype]
        out, mean, inv_sigma = torch.native_group_norm(
            contiguous[None], None, None, 1, channels, fan_in, channels, floor
        )
        out = out.view_as(contiguous)
        if not inside:
            k = math.sqrt(fan_in / (fan_in - 1)) if unbiased else 1.0
            out.mul_((inv_sigma.view(-1, 1) * eps + k).reciprocal_())
        ctx.eps, ctx.unbiased, ctx.inside = eps, unbiased, inside
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, mean, inv_sigma)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        rows, mean, inv_sigma = ctx.saved_tensors
        if grad is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # create_graph=True: the fused backward has no derivative of its own
            with torch.enable_grad():
                out = _standardize_rows(rows, ctx.eps, ctx.unbiased, ctx.inside)
                (grad_rows,) = torch.autograd.grad(out, rows, grad, create_graph=True)
            return grad_rows, None, None, None
        channels, fan_in = rows.shape
        gain = None
        if not ctx.inside:
            k = math.sqrt(fan_in / (fan_in - 1)) if ctx.unbiased else 1.0
            f = (inv_sigma * ctx.eps + k).reciprocal_()
            gain = (f / k).sqrt_().view(-1)
            inv_sigma = inv_sigma * (f * k).sqrt_()
        grad_rows = torch.ops.aten.native_group_norm_backward(
            grad.contiguous()[None], rows.contiguous()[None], mean, inv_sigma, gain, 1, channels, fan_in, channels,
            [True, False, False],
        )[0]  # fmt: skip
        return grad_rows.view_as(rows), None, None, None


def standardize(rows: Tensor, eps: float = 1e-5, unbiased: bool = False, inside: bool = False) -> Tensor:
    """Weight standardization, Eq. 2-4 of arXiv:1903.10520: (W - mean) / (sigma + eps), each row by itself.

    Args:
        rows: (O, I) float32 or float64, I > 1.
        eps: added to sigma, or to the variance if ``inside`` the root.
        unbiased: sigma with 1/(I-1), as the authors' PyTorch code has it, instead of Eq. 4's 1/I.
        inside: sqrt(var + eps) instead of sigma + eps; always with the biased variance.
    """
    if traced():
        return _standardize_rows(rows, eps, unbiased, inside)
    out: Tensor = _Standardize.apply(rows, eps, unbiased, inside)
    return out


@register_weight(
    "ws",
    variants={
        "mo": "Eq. 5 only: W - mean(W)",
        "do": "Eq. 6 only: W / (sqrt(mean(W^2)) + eps)",
        "af": "a learned gain and shift for each output channel on top, starting at 1 and 0",
    },
    semantics={
        "authors": "the authors' PyTorch code and mmcv: unbiased sigma, eps 1e-5 outside the root",
        "timm": "StdConv2d: biased variance, eps 1e-6 inside the root",
        "bit": "Big Transfer: biased variance, eps 1e-10 inside the root",
    },
)
class WeightStandardization(WeightNorm):
    """Weight standardization (Qiao et al. 2019); by default Eq. 2-4: biased sigma, eps 1e-5 outside the root.

    The paper defines neither ``do`` nor ``af`` beyond a sentence; the readings chosen here are in the registry's text.
    """

    min_fan_in = 2

    def __init__(self, spec: NormSpec) -> None:
        super().__init__(spec)
        semantics = spec.weight_semantics
        self.eps = {"timm": 1e-6, "bit": 1e-10}.get(semantics or "", 1e-5)
        self.inside = semantics in ("timm", "bit")
        self.unbiased = semantics == "authors"

    def extra_parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """``weight_gain`` and ``weight_shift`` for the variant ``af``."""
        if self.spec.variant != "af":
            return {}
        return {"weight_gain": rows.new_ones(rows.shape[0]), "weight_shift": rows.new_zeros(rows.shape[0])}

    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        """(O, I) to (O, I)."""
        if self.spec.variant == "mo":
            return rows - rows.mean(1, keepdim=True)
        if self.spec.variant == "do":
            scale: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True) / math.sqrt(rows.shape[1])
            if self.inside:
                return rows * torch.rsqrt(scale.square() + self.eps)
            return rows / (scale + self.eps)
        out = standardize(rows, self.eps, self.unbiased, self.inside)
        if self.spec.variant == "af":
            out = torch.addcmul(extra["weight_shift"].view(-1, 1), out, extra["weight_gain"].view(-1, 1))
        return out


@register_weight("wn")
class WeightNormalization(WeightNorm):
    """Weight normalization (Salimans & Kingma 2016): w = g v / ||v||, g starting at ||v||, for each output channel.

    ``.weight`` is v, ``.weight_gain`` is g. A zero filter stays zero (||v|| is kept above 1e-12).
    """

    def extra_parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """``weight_gain``: the norms of the rows, so that the function is unchanged at first."""
        return {"weight_gain": torch.linalg.vector_norm(rows, dim=1)}

    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        """(O, I) to (O, I)."""
        unit: Tensor = F.normalize(rows, dim=1, eps=1e-12)
        return unit * extra["weight_gain"].view(-1, 1)
