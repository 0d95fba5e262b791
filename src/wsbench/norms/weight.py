"""Weight normalizations, as functions of the weight's rows: one row of fan-in values for each output channel.

A method sees ``rows`` of shape (O, I) in float32 or wider, whatever the layer is (convolution of any dimension,
transposed, grouped, or linear) and under any precision; :mod:`wsbench.norms.layers` does the layout.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wsbench.norms.facts import WeightFacts
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
    #: Whether a row of the result is a function of the same row and of ``spec`` alone, so that the rows of several
    #: layers can be given as one matrix. A subclass says so for itself.
    rowwise: ClassVar[bool] = False
    facts: ClassVar[WeightFacts] = WeightFacts()

    def __init__(self, spec: NormSpec) -> None:
        self.spec = spec

    def extra_parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """Initial values, each of shape (O,), of the parameters the method adds to a layer that has ``rows``."""
        return {}

    def extra_buffers(self, rows: Tensor) -> dict[str, Tensor]:
        """Initial values, each of shape (O,), of what the method remembers of a layer that has ``rows``."""
        return {}

    def moved(self, rows: Tensor, **buffers: Tensor) -> dict[str, Tensor]:
        """What is remembered after another training pass; called before it, without gradients."""
        return buffers

    @abstractmethod
    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        """The effective rows (O, I); ``extra`` holds the added parameters and buffers, each of shape (O,)."""


class Damping(NamedTuple):
    """How the division of centred rows by their sigma is kept finite.

    ``outside``: k sigma + eps, with k^2 = I / (I - 1) where the sigma is the unbiased one. ``inside``:
    sqrt(var + eps). ``at_least``: sqrt(max(var, eps)).
    """

    where: Literal["outside", "inside", "at_least"] = "outside"
    eps: float = 1e-5
    unbiased: bool = False

    def k(self, fan_in: int) -> float:
        """The unbiased sigma over the biased one, where it is wanted."""
        return math.sqrt(fan_in / (fan_in - 1)) if self.unbiased else 1.0


#: of a vector's norm, not of a statistic: a filter of nothing stays nothing
_NOTHING = Damping("inside", 0.0)


def _standardize_rows(rows: Tensor, damping: Damping) -> Tensor:
    """The definition in primitive operations; differentiable any number of times."""
    centred = rows - rows.mean(1, keepdim=True)
    var = centred.square().mean(1, keepdim=True)
    floor = VARIANCE_FLOOR[rows.dtype]
    if damping.where == "inside":
        return centred * torch.rsqrt(var + max(damping.eps, floor))
    if damping.where == "at_least":
        return centred * torch.rsqrt(var.clamp(min=damping.eps))
    return centred / (damping.k(rows.shape[1]) * torch.sqrt(var + floor) + damping.eps)


def _affine_rows(out: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
    if gain is not None:
        out = out * gain.view(-1, 1)
    return out if shift is None else out + shift.view(-1, 1)


class _Standardize(torch.autograd.Function):
    """gain (W - mean) h(sigma) + shift by PyTorch's fused group-norm kernels: one pass forward, one backward.

    The kernel knows gain' (W - mean) r' with r' = 1/sqrt(var + e) and its backward

        gain' r' (g - mean(g) - r'^2 (W - mean) mean(g (W - mean))).

    With q = -sigma h'(sigma) / h the wanted one is gain h (g - mean(g) - q r^2 (W - mean) mean(g (W - mean))), r =
    1/sigma: the kernel's own for r' = r sqrt(q) and gain' = gain h / r'. For eps outside the root h = 1/(k sigma + eps)
    and q = k sigma h; for a lower bound q is 1 above it and 0 below. So no pass over the weight is spent on eps.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gain: Tensor | None, shift: Tensor | None, damping: Damping) -> Tensor:
        channels, fan_in = rows.shape
        contiguous = rows.contiguous()
        inside = damping.where == "inside"
        floor = max(damping.eps if inside else 0.0, VARIANCE_FLOOR[rows.dtype])
        out, mean, r = torch.native_group_norm(
            contiguous[None], gain if inside else None, shift if inside else None, 1, channels, fan_in, channels, floor
        )
        out = out.view_as(contiguous)
        relative = None if inside else _relative(r.view(-1), damping, fan_in)
        if relative is not None:
            out.mul_((relative if gain is None else relative * gain).view(-1, 1))
            if shift is not None:  # addcmul of what it has to spread takes twice as long
                out.add_(shift.view(-1, 1))
        ctx.damping = damping
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, gain, shift, mean, r, relative)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, gain, shift, mean, r, h_over_r = ctx.saved_tensors
        if grad is None:
            return (None,) * 4
        if torch.is_grad_enabled():  # create_graph=True: the fused backward has no derivative of its own
            out = _affine_rows(_standardize_rows(rows, ctx.damping), gain, shift)
            return (*_derivatives(out, grad, rows, gain, shift), None)
        channels, fan_in = rows.shape
        if h_over_r is None:  # the kernel's own damping
            r_inner, inner, outer = r, gain, None
        else:
            root_q = _root_q(h_over_r, ctx.damping, fan_in)
            r_inner, outer = (r.view(-1) * root_q).view_as(r), h_over_r / root_q
            inner = outer if gain is None else gain * outer
        to_rows, to_gain, to_shift = torch.ops.aten.native_group_norm_backward(
            grad.contiguous()[None], rows.contiguous()[None], mean, r_inner, inner, 1, channels, fan_in, channels,
            [ctx.needs_input_grad[0], gain is not None, shift is not None],
        )  # fmt: skip
        return (
            to_rows.view_as(rows) if ctx.needs_input_grad[0] else None,
            None if gain is None else to_gain if outer is None else to_gain * outer,
            None if shift is None else to_shift,
            None,
        )


def _relative(r: Tensor, damping: Damping, fan_in: int) -> Tensor:
    """What h sigma of :class:`_Standardize` is, (O,), from r = 1/sigma; for damping that is not the kernel's own."""
    if damping.where == "outside":
        return torch.rsub(r, damping.k(fan_in), alpha=-damping.eps).reciprocal_()  # k + eps r in one kernel
    return (r * math.sqrt(damping.eps)).clamp_(min=1).reciprocal_()


def _root_q(h_over_r: Tensor, damping: Damping, fan_in: int) -> Tensor:
    """sqrt(q) of :class:`_Standardize`, (O,), from h sigma."""
    if damping.where == "outside":
        k = damping.k(fan_in)
        return h_over_r.sqrt() if k == 1 else (h_over_r * k).sqrt_()
    # a q of 0 would leave the kernel without its gain; one of 1e-12 is 0 beside 1 in every precision that sums have
    return torch.where(h_over_r < 1, 1e-6, 1.0)


def _derivatives(out: Tensor, grad: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """Gradients with a graph of their own, of those inputs that ask for them."""
    asking = [t for t in inputs if t is not None and t.requires_grad]
    gradients = iter(torch.autograd.grad(out, asking, grad, create_graph=True))
    return [next(gradients) if t is not None and t.requires_grad else None for t in inputs]


def standardize(
    rows: Tensor,
    eps: float = 1e-5,
    unbiased: bool = False,
    inside: bool = False,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Weight standardization, Eq. 2-4 of arXiv:1903.10520: (W - mean) / (sigma + eps), each row by itself.

    Args:
        rows: (O, I) float32 or float64, I > 1.
        eps: added to sigma, or to the variance if ``inside`` the root.
        unbiased: sigma with 1/(I-1), as the authors' PyTorch code has it, instead of Eq. 4's 1/I.
        inside: sqrt(var + eps) instead of sigma + eps; always with the biased variance.
        gain: (O,), of each row of the result.
        shift: (O,), added to each row of the result.
    """
    return _standardized(rows, Damping("inside" if inside else "outside", eps, unbiased), gain, shift)


def _standardized(rows: Tensor, damping: Damping, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    if traced():
        return _affine_rows(_standardize_rows(rows, damping), gain, shift)
    out: Tensor = _Standardize.apply(rows, gain, shift, damping)
    return out


def _scale_rows(rows: Tensor, gain: Tensor | None, eps: float, inside: bool, mean: bool) -> Tensor:
    """The definition of :class:`_Scale` in primitive operations."""
    square = rows.square().sum(1, keepdim=True)
    if mean:
        square = square / rows.shape[1]
    if inside:
        return _affine_rows(rows * torch.rsqrt(square + eps), gain, None)
    norm = (square + VARIANCE_FLOOR[rows.dtype]).sqrt()
    return _affine_rows(rows / (norm + eps), gain, None)


class _Scale(torch.autograd.Function):
    """gain W h(n) with the norm n of a row: a sum and a product forward, a sum and two products backward.

    dL/dW = gain h (g - q W mean(g W) I / n^2) with q = -n h'(n) / h, which is n h for h = 1/(n + eps).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gain: Tensor | None, eps: float, inside: bool, mean: bool) -> Tensor:
        norm = torch.linalg.vector_norm(rows, dim=1).clamp_(min=math.sqrt(VARIANCE_FLOOR[rows.dtype]))
        fan_in = rows.shape[1] if mean else 1
        inner = norm / math.sqrt(fan_in)
        h = torch.rsqrt(inner.square() + eps) if inside else (inner + eps).reciprocal()
        ctx.options = eps, inside, mean
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, gain, norm, inner, h)
        return rows * (h if gain is None else h * gain).view(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, gain, norm, inner, h = ctx.saved_tensors
        if grad is None:
            return (None,) * 5
        if torch.is_grad_enabled():
            return (*_derivatives(_scale_rows(rows, gain, *ctx.options), grad, rows, gain), None, None, None)
        q = inner.square() * h.square() if ctx.options[1] else inner * h
        along = torch.linalg.vecdot(grad, rows, dim=1)
        scale = h if gain is None else h * gain
        to_rows = None
        if ctx.needs_input_grad[0]:
            back = scale * q * along / norm.square()
            to_rows = torch.mul(grad, scale.view(-1, 1)).addcmul_(rows, back.view(-1, 1), value=-1)
        return to_rows, None if gain is None else along * h, None, None, None


def _scaled(rows: Tensor, gain: Tensor | None, eps: float, inside: bool = False, mean: bool = False) -> Tensor:
    """Rows by their norm (or by its root mean square), times a gain."""
    if traced():
        return _scale_rows(rows, gain, eps, inside, mean)
    out: Tensor = _Scale.apply(rows, gain, eps, inside, mean)
    return out


class _Centre(torch.autograd.Function):
    """W - mean(W), and its backward, which is the same map."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows - rows.mean(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return cast(Tensor, _Centre.apply(grad))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True) if traced() else cast(Tensor, _Centre.apply(rows))


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
    rowwise = True
    facts = WeightFacts("Qiao et al., arXiv:1903.10520", 2019)

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
            return _centred(rows)
        if self.spec.variant == "do":
            return _scaled(rows, None, self.eps, self.inside, mean=True)
        gain, shift = extra.get("weight_gain"), extra.get("weight_shift")
        return standardize(rows, self.eps, self.unbiased, self.inside, gain, shift)


@register_weight("wn")
class SalimansKingma(WeightNorm):
    """Weight normalization (Salimans & Kingma 2016): w = g v / ||v||, g starting at ||v||, for each output channel.

    ``.weight`` is v, ``.weight_gain`` is g. A zero filter stays zero.
    """

    rowwise = True
    facts = WeightFacts("Salimans & Kingma, NeurIPS", 2016)

    def extra_parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """``weight_gain``: the norms of the rows, so that the function is unchanged at first."""
        return {"weight_gain": torch.linalg.vector_norm(rows, dim=1)}

    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        """(O, I) to (O, I)."""
        return _scaled(rows, extra["weight_gain"], 0.0)


@register_weight("cwn")
class CentredWeightNormalization(WeightNorm):
    """Centred weight normalization (Huang et al., ICCV 2017): w = g (v - mean(v)) / ||v - mean(v)|| for each channel.

    g starts at ||v - mean(v)||, so that centring alone changes the function at first. A constant filter is zero.
    """

    min_fan_in = 2
    rowwise = True
    facts = WeightFacts("Huang et al., ICCV", 2017)

    def extra_parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """``weight_gain``: the norms of the centred rows."""
        return {"weight_gain": torch.linalg.vector_norm(rows - rows.mean(1, keepdim=True), dim=1)}

    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        """(O, I) to (O, I)."""
        return _standardized(rows, _NOTHING, extra["weight_gain"] / math.sqrt(rows.shape[1]))


#: what keeps the variance of a standard normal input through a ReLU: sqrt(2 / (1 - 1/pi))
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


@register_weight(
    "sws",
    semantics={"timm": "ScaledStdConv2d: sqrt(var + 1e-6) instead of the lower bound"},
)
class ScaledWeightStandardization(WeightNorm):
    """Scaled WS of normalizer-free networks (Brock et al., ICLR 2021, Eq. 1): gain gamma (W - mean) / (sigma sqrt(I)).

    gain is learned for each output channel and starts at 1; gamma = sqrt(2 / (1 - 1/pi)) makes up for the ReLU that the
    layer's input has been through. sigma is biased; as in the authors' code sigma^2 I is kept above 1e-4. Their
    recipe's adaptive gradient clipping is ``--model.agc 0.01``, or :func:`wsbench.norms.adaptive_clip_grad_`.
    """

    min_fan_in = 2
    rowwise = True
    facts = WeightFacts("Brock et al., ICLR", 2021)

    def extra_parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """``weight_gain``, 1."""
        return {"weight_gain": rows.new_ones(rows.shape[0])}

    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        """(O, I) to (O, I)."""
        fan_in = rows.shape[1]
        timm = self.spec.weight_semantics == "timm"
        damping = Damping("inside", 1e-6) if timm else Damping("at_least", 1e-4 / fan_in)
        return _standardized(rows, damping, extra["weight_gain"] * (RELU_GAIN / math.sqrt(fan_in)))


@register_weight("spectral")
class SpectralNormalization(WeightNorm):
    """Spectral normalization (Miyato et al., ICLR 2018): W / sigma(W), the largest singular value of the rows.

    sigma is estimated as ||W^T u||, whose u a training pass moves by one power iteration, u <- W W^T u / ||W W^T u||,
    before it is used (in an accumulation window: once for each optimizer step). u is a buffer, ``weight_u``, and a
    constant to gradients, as in the paper's Alg. 1. It starts with 15 iterations from the norms of the rows.
    """

    facts = WeightFacts("Miyato et al., ICLR", 2018, "all filters of a layer")

    def extra_buffers(self, rows: Tensor) -> dict[str, Tensor]:
        """``weight_u``: (O,), of length 1."""
        u = F.normalize(torch.linalg.vector_norm(rows, dim=1), dim=0, eps=1e-12)
        for _ in range(15):
            u = self.moved(rows, weight_u=u)["weight_u"]
        return {"weight_u": u}

    def moved(self, rows: Tensor, **buffers: Tensor) -> dict[str, Tensor]:
        """``weight_u`` after one more power iteration (arXiv:1802.05957, Algorithm 1)."""
        v = F.normalize(rows.T @ buffers["weight_u"], dim=0, eps=1e-12)
        return {"weight_u": F.normalize(rows @ v, dim=0, eps=1e-12)}

    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        """(O, I) to (O, I)."""
        sigma: Tensor = torch.linalg.vector_norm(rows.T @ extra["weight_u"])
        return rows / sigma.clamp(min=1e-12)
