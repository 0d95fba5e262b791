"""What followed BN for small batches: SyncBN, ghost BN, batch renormalization, moving averages, batch-channel norm."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wsbench.norms.activation import (
    BatchNorm,
    fitted_groups,
    per_channel,
    pooled,
    scale_and_shift,
    values_per_channel,
)
from wsbench.norms.base import RunningNorm, all_but_channels, moments
from wsbench.norms.facts import NormFacts
from wsbench.norms.moments import wide
from wsbench.norms.registry import register_activation
from wsbench.norms.tracing import as_leaf, without_autocast


class _SumOverDevices(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return cast(Tensor, _SumOverDevices.apply(grad.contiguous()))


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@register_activation("syncbn")
class SyncBatchNorm(BatchNorm):
    """BN with the statistics of the micro-batches of all devices (Peng et al. 2018, MegDet); on one device it is BN.

    Two sums of C numbers each go over the network, of means and then of squares around the common mean, so nothing
    cancels; devices may have different numbers of samples. Works on CPUs too, unlike torch's layer.
    """

    facts = NormFacts(
        "one channel of the micro-batches of all devices", "Peng et al., CVPR (MegDet)", 2018, per_channel=True,
        one_value="running statistics in training", starts_from="bn", across_devices=True,
        bn_momentum=True, channels_last_from=8,
    )  # fmt: skip

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "SyncBatchNorm":
        """Build with BN's defaults."""
        return cls(channels)

    def samples_seen(self, micro_batch: int, devices: int) -> int:
        """Samples behind a statistic in training."""
        return micro_batch * devices

    def _over_devices(self, mean: Tensor, var: Tensor, values: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance (1, C) over all devices, and the values behind them (1, 1), from this one's."""
        count = mean.new_full((1, 1), float(values))
        sums: Tensor = _SumOverDevices.apply(torch.cat((mean * count, count), 1))
        total = sums[:, -1:].detach()
        common = sums[:, :-1] / total
        square: Tensor = _SumOverDevices.apply((var + (mean - common).square()) * count)
        return common, square / total, total

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        leaf: Any = as_leaf(self, input)
        if leaf is not None:
            return cast(Tensor, leaf)
        if _processes() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm expects (N, C) or (N, C, *), got {tuple(input.shape)}")
        with without_autocast(input):
            x = wide(input)
            values = self.values_per_statistic(x.shape)
            # not var_mean, which is nan of nothing: the graph, and so the order of its sums over devices, is one
            dims, count = all_but_channels(x), max(values, 1)
            mean = x.sum(dims) / count
            var = (x - per_channel(mean, x)).square().sum(dims) / count
            scale, shift = self._from_devices(mean[None], var[None], values)
            return torch.addcmul(per_channel(shift[0], x), x, per_channel(scale[0], x)).to(input.dtype)

    def _from_devices(self, mean: Tensor, var: Tensor, values: int) -> tuple[Tensor, Tensor]:
        mean, var, total = self._over_devices(mean, var, values)
        if self.running_mean is not None and self.running_var is not None:
            one = total <= 1  # on the device: asking for it would wait for the network
            mean = torch.where(one, self.running_mean[None].to(mean.dtype), mean)
            unbiased = var * (total / (total - 1).clamp(min=1))
            unbiased = torch.where(one, self.running_var[None].to(var.dtype), unbiased)
            var = torch.where(one, self.running_var[None].to(var.dtype), var)
            if self.training and self.track_running_stats:
                self._track(mean[0].detach(), unbiased[0].detach())
        return scale_and_shift(mean, var, self.eps, self.weight, self.bias)

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`GroupNorm.from_moments`, over the samples of all devices."""
        if _processes() == 1 or not (self.training or self.running_mean is None):
            return super().from_moments(mean, var, count)
        values = mean.shape[0] * count
        mean, var = pooled(mean, var, 0) if values else (mean.sum(0, keepdim=True), var.sum(0, keepdim=True))
        return self._from_devices(mean, var, values)


@register_activation("gbn", number="samples of a ghost batch")
class GhostBatchNorm(RunningNorm):
    """Ghost batch normalization (Hoffer et al. 2017, Alg. 1): BN of each virtual batch of so many samples by itself.

    ``gbn`` has 32 samples a ghost batch, ``gbn4`` has 4; what is left over is a batch of its own. Running statistics
    move by each ghost batch in turn. One value a channel in a ghost batch is normalized by the running statistics.
    """

    facts = NormFacts(
        "one channel of a part of the micro-batch", "Hoffer et al., NeurIPS", 2017, per_channel=True,
        one_value="running statistics in training", starts_from="bn", bn_momentum=True,
    )  # fmt: skip

    def __init__(self, num_features: int, samples: int = 32, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.samples = samples

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "GhostBatchNorm":
        """Build for ``channels``; ``groups`` is the number of samples."""
        return cls(channels, 32 if groups is None else groups)

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one mean and variance in training, of the smallest ghost batch."""
        return min(shape[0] % self.samples or self.samples, shape[0]) * values_per_channel(shape)

    def samples_seen(self, micro_batch: int, devices: int) -> int:
        """Samples behind a statistic in training."""
        return min(self.samples, micro_batch)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if not self.training:
            return self.by_running(x)
        return torch.cat([self._ghost(part) for part in torch.split(x, self.samples)])

    def _ghost(self, x: Tensor) -> Tensor:
        values = len(x) * values_per_channel(x.shape)
        if values == 1:
            return self.by_running(x)
        mean, var = moments(x)
        self.track(mean, var * (values / (values - 1)))
        return self.affine((x - per_channel(mean, x)) * torch.rsqrt(per_channel(var, x) + self.eps))

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return f"{super().extra_repr()}, samples={self.samples}"


class _Warming(RunningNorm):
    """A norm with a schedule, counted in training passes; a run that is shorter has it in proportion.

    Its own schedule is for runs of :attr:`whole` passes or more.
    """

    whole = 80_000

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.01) -> None:
        super().__init__(num_features, eps, momentum)
        self._stretch = 1.0

    def starts_training(self, batches: int | None) -> None:
        """Fit the schedule to a run of so many forward passes; None is one without an end."""
        self._stretch = 1.0 if batches is None else min(1.0, batches / self.whole)

    @torch.no_grad()
    def restart_schedule(self) -> None:
        """Count from 0: statistics came from elsewhere, and training begins."""
        self.num_batches_tracked.zero_()

    @property
    def passes(self) -> Tensor:
        """Training passes so far, as the schedule counts them, 0-d."""
        return self.num_batches_tracked / self._stretch


@register_activation("brn")
class BatchRenorm(_Warming):
    """Batch renormalization (Ioffe 2017, Alg. 1): y = gamma ((x - mu_B) / sigma_B r + d) + beta.

    r = clip(sigma_B / sigma, 1/r_max, r_max) and d = clip((mu_B - mu) / sigma, -d_max, d_max) by the running mu and
    sigma, both without gradient; sigma_B is biased, with eps inside the root, and sigma, not its square, is what moves.
    The paper's schedule: r_max 1 and d_max 0 for 5,000 steps (BN), then r_max rises to 3 at 40,000 and d_max to 5 at
    25,000; momentum 0.01. Steps are the layer's training passes (micro-steps); a run of fewer than 80,000 has the
    schedule in proportion.
    """

    facts = NormFacts(
        "one channel of the micro-batch, corrected towards running statistics", "Ioffe, NeurIPS", 2017,
        per_channel=True, one_value="running statistics in training", starts_from="bn",
    )  # fmt: skip

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """r_max and d_max now, 0-d."""
        r, d = (((self.passes - 5_000) / length).clamp(0, 1) for length in (35_000, 20_000))
        return 1 + 2 * r, 5 * d

    def _map(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The affine map by the moments of a batch (1, C); the running statistics move."""
        r_max, d_max = self.limits
        with torch.no_grad():
            running_mean = self.running_mean[None].to(mean.dtype)
            sigma = (self.running_var[None].to(var.dtype) + self.eps).sqrt()
            sigma_batch = (var + self.eps).sqrt()
            r = (sigma_batch / sigma).clamp(1 / r_max, r_max)
            d = ((mean - running_mean) / sigma).clamp(-d_max, d_max)
            moved = torch.lerp(sigma, sigma_batch, self.momentum)[0]
            self.running_mean.lerp_(mean[0].to(self.running_mean.dtype), self.momentum)
            self.running_var.copy_(moved.square() - self.eps)
            self.num_batches_tracked += 1
        inverse = torch.rsqrt(var + self.eps) * r
        weight, bias = (p[None].to(mean.dtype) for p in (self.weight, self.bias))
        return inverse * weight, (d - mean * inverse) * weight + bias

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if not self.training or self.values_per_statistic(x.shape) <= 1:
            return self.by_running(x)
        mean, var = moments(x)
        scale, shift = self._map(mean[None], var[None])
        return torch.addcmul(per_channel(shift[0], x), x, per_channel(scale[0], x))

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`wsbench.norms.GroupNorm.from_moments`; in training the running statistics move."""
        if self.training and mean.shape[0] * count > 1:
            return self._map(*pooled(mean, var, 0))
        mean, var = self.running_mean[None].to(mean.dtype), self.running_var[None].to(var.dtype)
        return scale_and_shift(mean, var, self.eps, self.weight, self.bias)


class _MovingAverage(torch.autograd.Function):
    """MABN's normalization of x by sqrt(var + eps) / r, and its backward by the moving average of mean(g z)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, var: Tensor, r: Tensor, gradients: Tensor, slot: int, averaged: bool,
                eps: float) -> Tensor:  # fmt: skip
        inverse = per_channel(torch.rsqrt(var + eps), x)
        z = x * inverse
        ctx.save_for_backward(z, inverse, r)
        ctx.gradients, ctx.slot, ctx.averaged = gradients, slot, averaged
        return z * per_channel(r, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("MovingAverageBatchNorm has no second derivative: its backward is no gradient")
        z, inverse, r = ctx.saved_tensors
        g = grad * per_channel(r, z)
        psi = (g * z).mean(all_but_channels(z))
        ctx.gradients[ctx.slot] = psi
        if ctx.averaged:
            psi = ctx.gradients.mean(0).to(z.dtype)
        return inverse * (g - z * per_channel(psi, z)), *(None,) * 6


@register_activation("mabn", number="passes of a moving average")
class MovingAverageBatchNorm(_Warming):
    """Moving-average batch normalization (Yan et al. 2020): BN's two backward and forward statistics over m passes.

    Forward: y = gamma r x / sqrt(chi + eps) + beta with chi the mean of x^2 over the last m training passes (``mabn``:
    16, ``mabn8``: 8) and r = clip(sqrt(chi + eps) / sqrt(running chi + eps), 1/5, 5), without gradient. Backward:
    dL/dx = (g r - z psi) / sqrt(chi + eps) with z = x / sqrt(chi + eps), g = gamma dL/dy, and psi the mean of g r z
    over the last m passes: this is no gradient of the forward map, and has none itself. Nothing is centred: the paper
    centres the weights instead, which is ``mabn+ws-mo``. As in the authors' code r is 1 for the first 1,000 passes and
    averages start after 100; a run of fewer than 16,000 has both in proportion. Momentum 0.02.
    """

    facts = NormFacts(
        "one channel of the last micro-batches, not centred", "Yan et al., ICLR", 2020,
        one_value="running statistics in training",
    )  # fmt: skip
    whole = 16_000
    gradients: Tensor
    squares: Tensor

    def __init__(self, num_features: int, window: int = 16, eps: float = 1e-5, momentum: float = 0.02) -> None:
        super().__init__(num_features, eps, momentum)
        self.window = window
        del self.running_mean
        self.register_buffer("squares", torch.zeros(window, num_features))
        self.register_buffer("gradients", torch.zeros(window, num_features))

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "MovingAverageBatchNorm":
        """Build for ``channels``; ``groups`` is the number of passes."""
        return cls(channels, 16 if groups is None else groups)

    def by_running(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *) by the running statistics, as in evaluation."""
        return self.affine(x * torch.rsqrt(per_channel(self.running_var, x).to(x.dtype) + self.eps))

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if not self.training or self.values_per_statistic(x.shape) <= 1:
            return self.by_running(x)
        with torch.no_grad():
            self.num_batches_tracked += 1
            number = int(self.num_batches_tracked)
            slot = number % self.window
            square = x.square().mean(all_but_channels(x))
            self.squares[slot] = square
            averaged = number > self.window and number >= 100 * self._stretch
            var = self.squares.mean(0).to(x.dtype) if averaged else square
            r = torch.ones_like(var)
            if number > 1_000 * self._stretch:
                r = ((var + self.eps) / (self.running_var.to(x.dtype) + self.eps)).sqrt().clamp(1 / 5, 5)
            self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        out: Tensor = _MovingAverage.apply(x, var, r, self.gradients, slot, averaged, self.eps)
        return self.affine(out)

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return f"{super().extra_repr()}, window={self.window}"


#: whose definition the batch half of BCN may be: name and meaning
BCN_SEMANTICS = {
    "estimate": "the batch half uses running estimates in training, too, without gradient in them: for micro-batches"
}


@register_activation("bcn", takes_groups=True, semantics=BCN_SEMANTICS)
class BatchChannelNorm(RunningNorm):
    """Batch-channel normalization (Qiao et al., arXiv:1911.09738): BN, then GN with a gain and shift for each group.

    y = BN(x) by the statistics of a channel, z = gamma_g (y - mean_g) / sqrt(var_g + eps) + beta_g by those of a group
    of y's channels in each sample; 32 groups, fitted to the channels, biased variances, eps 1e-5. With the semantics
    ``estimate`` (the paper's micro-batch form, the authors' EstBN) BN's mean and variance are running ones that move
    before they are used: mu += m (mean - mu), var += m (mean((x - mu_before)^2) - var), m = 0.01, starting at 0 and 1.

    Args:
        num_features: channels C.
        num_groups: groups G of the second half.
        eps: of both.
        momentum: of the running statistics; None is 0.1, and 0.01 for estimates.
        semantics: ``estimate`` or None.
    """

    facts = NormFacts(
        "one channel of the micro-batch, then a group of channels of one sample", "Qiao et al., arXiv:1911.09738", 2019,
        per_channel=True, one_value="running statistics in training",
    )  # fmt: skip

    def __init__(self, num_features: int, num_groups: int, eps: float = 1e-5, momentum: float | None = None,
                 semantics: str | None = None) -> None:  # fmt: skip
        if semantics is not None and semantics not in BCN_SEMANTICS:
            raise ValueError(
                f"BatchChannelNorm has no semantics {semantics!r}; choose from {', '.join(BCN_SEMANTICS)} or None"
            )
        default = 0.1 if semantics is None else 0.01
        super().__init__(num_features, eps, default if momentum is None else momentum)
        self.num_groups, self.semantics = num_groups, semantics
        self.channel_weight = nn.Parameter(torch.ones(num_groups))
        self.channel_bias = nn.Parameter(torch.zeros(num_groups))

    @classmethod
    def from_channels(cls, channels: int, groups: int | None, semantics: str | None = None) -> "BatchChannelNorm":
        """Build for ``channels``; raises GroupsError if explicit ``groups`` do not divide them."""
        return cls(channels, fitted_groups(channels, groups, "bcn"), semantics=semantics)

    def signed_gain(self) -> Tensor:
        """Of the sign of the whole map, (C,)."""
        return self.weight * self.channel_weight.repeat_interleave(self.num_features // self.num_groups)

    def _batch_map(self, mean: Tensor, var: Tensor, values: int) -> tuple[Tensor, Tensor]:
        """BN's affine map (1, C) by the moments of the batch (1, C); the running statistics move."""
        if self.training and values > 0 and (values > 1 or self.semantics is not None):
            with torch.no_grad():
                if self.semantics is None:
                    seen_var = var * (values / (values - 1))
                else:
                    seen_var = var + (mean - self.running_mean.to(mean.dtype)).square()
                self.track(mean[0], seen_var[0])
        if not self.training or values <= 1 or self.semantics is not None:
            mean, var = self.running_mean[None].to(mean.dtype), self.running_var[None].to(var.dtype)
        return scale_and_shift(mean, var, self.eps, self.weight, self.bias)

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`wsbench.norms.GroupNorm.from_moments`; in training the running statistics move."""
        samples, channels = mean.shape
        scale, shift = self._batch_map(*pooled(mean, var, 0), samples * count)
        members = channels // self.num_groups
        gain, offset = (p.to(mean.dtype).repeat_interleave(members)[None] for p in
                        (self.channel_weight, self.channel_bias))  # fmt: skip
        if members * count == 1:
            return scale * gain, shift * gain + offset
        split = (samples, self.num_groups, members)
        group_mean, group_var = pooled((mean * scale + shift).view(split), (var * scale.square()).view(split), 2)
        spread_mean, spread_var = (s.expand(split).reshape(mean.shape) for s in (group_mean, group_var))
        outer = torch.rsqrt(spread_var + self.eps) * gain
        return scale * outer, (shift - spread_mean) * outer + offset

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        flat = x.flatten(2) if x.dim() > 2 else x[..., None]
        var, mean = torch.var_mean(flat, dim=2, correction=0)
        scale, shift = self.from_moments(mean, var, flat.shape[2])
        ends = (1,) * (x.dim() - 2)
        return torch.addcmul(shift.view(*shift.shape, *ends), x, scale.view(*scale.shape, *ends))

    def extra_repr(self) -> str:
        """Arguments, for print."""
        semantics = "" if self.semantics is None else f", semantics={self.semantics!r}"
        return f"{super().extra_repr()}, num_groups={self.num_groups}{semantics}"
