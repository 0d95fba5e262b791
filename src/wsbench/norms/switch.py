"""Switchable Normalization (Luo et al., arXiv:1806.10779), written from the paper's equations."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from wsbench.norms.activation import pooled, scale_and_shift, values_per_channel
from wsbench.norms.facts import NormFacts
from wsbench.norms.moments import affine_in_place, broadcast_statistic, gradient, gradient_sums, unit, wide
from wsbench.norms.registry import register_activation
from wsbench.norms.tracing import as_leaf, traced, without_autocast

#: whose definition it may be, besides the paper's: name and meaning
SEMANTICS = {
    "authors": "the authors' PyTorch code: IN's variance is the unbiased one, the running variance starts at 0"
}


@register_activation("sn", semantics=SEMANTICS)
class SwitchNorm(nn.Module):
    """Switchable normalization (Luo et al. 2018): IN, LN and BN statistics mixed by learned softmax weights.

    Statistics are biased and in float32, gathered in one pass over (N, C, *). What does not exist takes no part in the
    softmax: IN where a channel has one value (1x1 maps, (N, C) features), BN where the batch has one sample, and BN in
    evaluation until a batch of two or more has been seen. A network trained at one image per device is thus SN(8,1) of
    the authors in training and in evaluation alike.

    With the semantics ``authors`` IN's variance is the unbiased one, L / (L - 1) times the biased with L values a
    channel. LN's and BN's follow from it as before, v' = mean(v + mu^2) - mu'^2, and so does the running variance,
    which starts at 0. Nothing else changes. One value a channel has no unbiased variance: there IN takes no part, and
    counts as 0 in LN's and BN's, as it does without semantics. Where no batch was seen BN takes no part in evaluation
    either (the authors' code mixes in the zeros).

    Args:
        num_features: channels C.
        eps: added to the mixed variance, inside the root.
        momentum: weight of the new batch in the running statistics, PyTorch's convention.
        semantics: ``authors``, or None for biased variances.

    Raises:
        ValueError: for other semantics.
    """

    facts = NormFacts("learned mixture of in, ln and bn", "Luo et al., ICLR", 2019)

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, semantics: str | None = None
    ) -> None:
        super().__init__()
        if semantics is not None and semantics not in SEMANTICS:
            raise ValueError(f"SwitchNorm has no semantics {semantics!r}; choose from {', '.join(SEMANTICS)} or None")
        self.num_features, self.eps, self.momentum, self.semantics = num_features, eps, momentum, semantics
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer(
            "running_var", torch.ones(num_features) if semantics is None else torch.zeros(num_features)
        )
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    @classmethod
    def from_channels(cls, channels: int, groups: int | None, semantics: str | None = None) -> "SwitchNorm":
        """Build for ``channels``."""
        return cls(channels, semantics=semantics)

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script asks before it reads a layer."""
        raise TypeError("torch.jit.script cannot read SwitchNorm; use torch.jit.trace, torch.export or torch.fx")

    def extra_repr(self) -> str:
        """Arguments, for print."""
        semantics = "" if self.semantics is None else f", semantics={self.semantics!r}"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}{semantics}"

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind the LN statistic, the one that always takes part."""
        return self.num_features * values_per_channel(shape)

    def _state(self) -> "_State":
        return _State(
            self.weight, self.bias, self.mean_weight, self.var_weight, self.running_mean, self.running_var,
            self.num_batches_tracked, self.training, self.momentum, self.eps, self.semantics == "authors",
        )  # fmt: skip

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`wsbench.norms.activation.GroupNorm.from_moments`; in training the running statistics move."""
        state = self._state()
        var = var * state.correction(count)
        state.track(mean, var)
        return state.mix(mean, var, count > 1)

    def in_primitive_operations(self, input: Tensor, track: bool = True) -> Tensor:
        """As :meth:`forward`, in operations that are differentiable any number of times and that a compiler fuses."""
        return self._state().in_primitive_operations(input, track)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        leaf = as_leaf(self, input)
        return cast(Tensor, _switch_norm(input, *self._state()) if leaf is None else leaf)


def _switch_norm(
    input: Tensor, weight: Tensor, bias: Tensor, mean_weight: Tensor, var_weight: Tensor, running_mean: Tensor,
    running_var: Tensor, batches: Tensor, training: bool, momentum: float, eps: float, authors: bool,
) -> Tensor:  # fmt: skip
    if input.dim() < 2 or input.shape[1] != len(weight):
        raise ValueError(f"SwitchNorm expects (N, {len(weight)}, *), got {tuple(input.shape)}")
    parameters = (weight, bias, mean_weight, var_weight)
    state = _State(*parameters, running_mean, running_var, batches, training, momentum, eps, authors)
    with without_autocast(input):
        if traced() or input.numel() == 0:  # the kernels refuse a batch of nothing
            return state.in_primitive_operations(input)
        return cast(Tensor, _Fused.apply(input, state, *parameters))


class _State(NamedTuple):
    """What a forward pass computes with: in its backward the layer may be in another mode, or hold other parameters."""

    weight: Tensor
    bias: Tensor
    mean_weight: Tensor
    var_weight: Tensor
    running_mean: Tensor
    running_var: Tensor
    batches: Tensor
    """Behind the running statistics."""
    training: bool
    momentum: float
    eps: float
    authors: bool

    def unbiased(self, values: int) -> bool:
        """Whether IN's variance of ``values`` values is the unbiased one."""
        return self.authors and values > 1

    def correction(self, values: int) -> float:
        """IN's variance over the biased one."""
        return values / (values - 1) if self.unbiased(values) else 1.0

    def track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics, from the moments (N, C)."""
        if not self.training or mean.shape[0] < 2:
            return
        with torch.no_grad():
            batch_mean, batch_var = pooled(mean, var, 0)
            self.batches.add_(1)
            self.running_mean.lerp_(batch_mean[0].to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(batch_var[0].to(self.running_var.dtype), self.momentum)

    def batch(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """BN's mean and variance, each (1, C)."""
        return pooled(mean, var, 0) if self.training else (self.running_mean[None], self.running_var[None])

    def shares(self, samples: int, has_in: bool, dtype: torch.dtype) -> Tensor:
        """The softmax weights of means and variances (2, 3) for IN, LN, BN; 0 for what does not exist."""
        logits = torch.stack((self.mean_weight, self.var_weight)).to(dtype)
        by_in, by_ln, by_bn = logits.unbind(1)
        nothing = torch.full_like(by_in, -torch.inf)
        if not self.training:
            by_bn = torch.where(self.batches == 0, nothing, by_bn)
        elif samples < 2:
            by_bn = nothing
        return torch.stack((by_in if has_in else nothing, by_ln, by_bn), 1).softmax(1)

    def mix(self, mean: Tensor, var: Tensor, has_in: bool) -> tuple[Tensor, Tensor]:
        """The affine map by the moments (N, C)."""
        (m, v), ln = self.shares(mean.shape[0], has_in, mean.dtype), pooled(mean, var, 1)
        bn = self.batch(mean, var)
        mixed_mean = m[0] * mean + m[1] * ln[0] + m[2] * bn[0]
        mixed_var = v[0] * var + v[1] * ln[1] + v[2] * bn[1]
        return scale_and_shift(mixed_mean, mixed_var, self.eps, self.weight, self.bias)

    def in_primitive_operations(self, input: Tensor, track: bool = True) -> Tensor:
        """(N, C, *) to the same shape."""
        x = wide(input)
        flat, values = x.flatten(2) if x.dim() > 2 else x[..., None], values_per_channel(x.shape)
        # by torch and not by a factor, which an exported graph would have as a constant for inputs of every size
        var, mean = torch.var_mean(flat, dim=2, correction=int(self.unbiased(values)))
        if track:
            self.track(mean, var)
        scale, shift = self.mix(mean, var, values > 1)
        return torch.addcmul(broadcast_statistic(shift, x), x, broadcast_statistic(scale, x)).to(input.dtype)


class _Fused(torch.autograd.Function):
    """SN in two passes each way, its backward written out; saves the input and statistics.

    With the mixed mean M and variance V, r = 1 / sqrt(V + eps): scale = gamma r, shift = beta - M scale, so

        dL/dM = -scale dL/dshift,    dL/dV = -r^3 / 2 gamma (dL/dscale - M dL/dshift),

    and a pool of statistics, mu' = E[mu], v' = E[v] + E[mu^2] - mu'^2, hands on to each of its k members
    dL/dmu'/k + dL/dv' 2 (mu - mu')/k and dL/dv'/k. The v of a channel is the biased variance times a correction, which
    multiplies its gradient, too.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, state: _State, *parameters: Tensor) -> Tensor:
        x = wide(input)
        normalized, values = unit(x), values_per_channel(x.shape)
        correction = state.correction(values)
        mean, var = normalized.mean, normalized.var * correction
        state.track(mean, var)
        gamma, beta = (p.to(mean.dtype) for p in parameters[:2])
        shares = state.shares(len(mean), values > 1, mean.dtype)
        by_in, by_ln, by_bn = shares.view(2, 3, 1, 1).unbind(1)
        moments, ln = torch.stack((mean, var)), torch.stack(pooled(mean, var, 1))
        mixed = torch.addcmul(by_ln * ln, by_in, moments)
        bn = None
        if not state.training or len(mean) > 1:
            bn = torch.stack(state.batch(mean, var)).to(mean.dtype)
            mixed = torch.addcmul(mixed, by_bn, bn)
        mixed_mean, mixed_var = mixed.unbind()
        r = (mixed_var + state.eps).rsqrt_()
        scale = r * gamma
        out = affine_in_place(normalized, scale, torch.addcmul(beta, mixed_mean, scale, value=-1))
        ctx.state, ctx.correction = state, correction
        ctx.save_for_backward(input, *parameters, moments, ln, bn, mixed_mean, r, scale, shares, normalized.inv_sigma)
        ctx.set_materialize_grads(False)
        return out.to(input.dtype)  # not a view of anything: the activation behind it may work in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        input, *rest = ctx.saved_tensors
        parameters, (moments, ln, bn, mixed_mean, r, scale, shares, inv_sigma) = rest[:4], rest[4:]
        if grad is None:
            return (None,) * (2 + len(parameters))
        if torch.is_grad_enabled():  # create_graph=True: what follows has no derivative of its own
            inputs = [t for t in (input, *parameters) if t.requires_grad]
            out = _State(*parameters, *ctx.state[len(parameters) :]).in_primitive_operations(input, track=False)
            gradients = iter(torch.autograd.grad(out, inputs, grad, create_graph=True, allow_unused=True))
            grads = [next(gradients) if t.requires_grad else None for t in (input, *parameters)]
            return (grads[0], None, *grads[1:])
        mean = moments[0]
        x, g = wide(input), wide(grad)
        to_scale, to_shift = gradient_sums(g, x, mean, inv_sigma)
        to_r = torch.addcmul(to_scale, mixed_mean, to_shift, value=-1)
        to_mixed = torch.stack((to_shift, to_r * r * r * 0.5)).mul_(-scale)

        by_in, by_ln, by_bn = shares.view(2, 3, 1, 1).unbind(1)
        to_mean, to_var = (to_mixed * by_in).unbind()
        to_shares = [(to_mixed * moments).sum((1, 2))]
        for share, pool, dim in ((by_ln, ln, 2), (by_bn, bn, 1)):
            if pool is None:
                to_shares.append(torch.zeros_like(to_shares[0]))
                continue
            to_pool = to_mixed.sum(dim, keepdim=True)
            to_shares.append((to_pool * pool).sum((1, 2)))
            if dim == 1 and not ctx.state.training:  # running statistics are constants
                continue
            pool_mean, pool_var = to_pool.mul_(share / to_mixed.shape[dim]).unbind()
            to_mean = torch.addcmul(to_mean + pool_mean, pool_var, mean - pool[0], value=2)
            to_var = to_var + pool_var
        by_share = torch.stack(to_shares, 1).mul_(shares)
        to_logits = torch.addcmul(by_share, shares, by_share.sum(1, keepdim=True), value=-1)
        dx = gradient(g, x, mean, scale, to_mean, to_var * ctx.correction)
        to_parameters = ((to_r * r).sum(0), to_shift.sum(0), to_logits[0], to_logits[1])
        return (
            dx.to(input.dtype), None,
            *(t.to(p) if p.requires_grad else None for t, p in zip(to_parameters, parameters, strict=True)),
        )  # fmt: skip
