"""Activation normalizations: BN, GN, LN, IN and none, for (N, C) and (N, C, *) features.

One rule covers the degenerate cells of the grid: **a statistic over a single value does not exist, so the layer then
applies its affine map only.** It holds for IN on 1x1 maps and on (N, C), GN with one element a group, and BN in
training with one value a channel, which uses its running statistics there and does not update them.
(PyTorch raises or returns zeros in these cells, depending on layer and batch; see tests/norms/test_activation.py.)
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm

from wsbench.errors import UserError
from wsbench.norms.facts import NormFacts
from wsbench.norms.registry import register_activation
from wsbench.norms.tracing import as_leaf

DEFAULT_GROUPS = 32


class GroupsError(UserError, ValueError):
    """An explicit number of groups that does not divide the channels."""


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """View a (C,) vector so that it broadcasts over (N, C, *) features."""
    return vector.view([1, -1] + [1] * (like.dim() - 2))


def values_per_channel(shape: torch.Size) -> int:
    """Values of one channel of one sample: 1 for (N, C) and for 1x1 maps."""
    return shape[2:].numel()


def largest_divisor(channels: int, limit: int) -> int:
    """The largest divisor of ``channels`` that is not above ``limit``."""
    return next(g for g in range(min(channels, limit), 0, -1) if channels % g == 0)


def fitted_groups(channels: int, groups: int | None, name: str) -> int:
    """The written number of groups, or the largest divisor of the channels that is not above 32.

    Raises:
        GroupsError: the written number does not divide.
    """
    if groups is None:
        return largest_divisor(channels, DEFAULT_GROUPS)
    if channels % groups:
        raise GroupsError(
            f"{groups} groups do not divide {channels} channels; write '{name}' for the largest divisor not above "
            f"{DEFAULT_GROUPS} ({largest_divisor(channels, DEFAULT_GROUPS)}), or a number that divides"
        )
    return groups


def pooled(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a union of equally large parts, from theirs: Var = E[var] + Var[mean].

    Both terms are at least zero, so nothing can cancel below it as E[x^2] - E[x]^2 does in half precision.
    """
    return mean.mean(dim, keepdim=True), var.mean(dim, keepdim=True) + mean.var(dim, correction=0, keepdim=True)


def scale_and_shift(
    mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The map x * scale + shift that normalizes by ``mean`` and ``var`` and applies the affine parameters."""
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight.to(scale.dtype)
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.to(shift.dtype)


def _one_value_a_channel(input: Tensor) -> bool:
    values = 1
    for size in input.shape[2:]:
        values *= size
    return values == 1


# What runs is in functions that torch.jit.script can read; for torch.fx each layer is one node.


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, batches: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float | None, eps: float,
) -> Tensor:  # fmt: skip
    if input.dim() < 2:
        raise ValueError(f"BatchNorm expects (N, C) or (N, C, *), got {input.shape}")
    if training and running_mean is not None and input.shape[0] == 1 and _one_value_a_channel(input):
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    factor = 0.0 if momentum is None else momentum
    if training and batches is not None:
        batches.add_(1)
        if momentum is None:
            factor = 1.0 / float(batches)
    return F.batch_norm(input, running_mean, running_var, weight, bias, training or running_mean is None, factor, eps)


def _channel_norm(input: Tensor, channels: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Every channel of every sample by itself; one value has no statistic, so only the affine map is left."""
    if not _one_value_a_channel(input):
        return F.group_norm(input, channels, weight, bias, eps)
    out = input if weight is None else input * per_channel(weight, input)
    return out if bias is None else out + per_channel(bias, input)


def _fixed_affine(input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    scale = torch.rsqrt(var + eps) * weight.to(var.dtype)
    shift = bias.to(mean.dtype) - mean * scale
    return torch.addcmul(per_channel(shift.to(input.dtype), input), input, per_channel(scale.to(input.dtype), input))


@register_activation("bn")
class BatchNorm(_BatchNorm):
    """Batch normalization (Ioffe & Szegedy 2015) of (N, C, *), statistics of the micro-batch on this device.

    PyTorch's layer, for any number of dimensions, save that one value a channel in training (N = 1 on a 1x1 map) is
    normalized by the running statistics instead of raising; they are not updated from it.
    """

    facts = NormFacts(
        "one channel of the micro-batch", "Ioffe & Szegedy, ICML", 2015, per_channel=True,
        one_value="running statistics in training", bn_momentum=True, channels_last_from=8,
    )  # fmt: skip

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "BatchNorm":
        """Build with PyTorch's defaults: eps 1e-5, momentum 0.1, affine, running statistics."""
        return cls(channels)

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one mean and variance in training."""
        return shape[0] * values_per_channel(shape)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if not is_scripting():
            leaf: Any = as_leaf(self, input)
            if leaf is not None:
                return cast(Tensor, leaf)
        return _batch_norm(
            input, self.running_mean, self.running_var, self.num_batches_tracked if self.track_running_stats else None,
            self.weight, self.bias, self.training, self.momentum, self.eps,
        )  # fmt: skip

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`GroupNorm.from_moments`; in training the running statistics move as in forward."""
        batch = self.training or self.running_mean is None
        if batch and mean.shape[0] * count > 1:
            values = mean.shape[0] * count
            mean, var = pooled(mean, var, 0)
            if self.training and self.track_running_stats and self.running_mean is not None:
                self._track(mean[0].detach(), var[0].detach() * (values / (values - 1)))
        elif self.running_mean is not None and self.running_var is not None:
            mean, var = self.running_mean[None].to(mean.dtype), self.running_var[None].to(var.dtype)
        return scale_and_shift(mean, var, self.eps, self.weight, self.bias)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), factor)


@register_activation("frozenbn")
class FrozenBatchNorm(nn.Module):
    """Frozen BN: a fixed affine map from BN's statistics and parameters, as detectors fine-tune with.

    Its state has the keys of BN, so a ``bn`` checkpoint loads. Without one it is the identity.

    Args:
        num_features: channels C.
        eps: added to the variance, inside the root.
    """

    facts = NormFacts(
        "nothing: BN's statistics, fixed", "He et al., CVPR (fine-tuning of detectors)", 2016, samplewise=True,
        fixed=True, starts_from="bn", channels_last_from=8,
    )  # fmt: skip

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "FrozenBatchNorm":
        """Build for ``channels``."""
        return cls(channels)

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return f"{self.num_features}, eps={self.eps}"

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`GroupNorm.from_moments`, whatever the moments are."""
        fixed_mean, fixed_var = self.running_mean[None].to(mean.dtype), self.running_var[None].to(var.dtype)
        return scale_and_shift(fixed_mean, fixed_var, self.eps, self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if not is_scripting():
            leaf: Any = as_leaf(self, input)
            if leaf is not None:
                return cast(Tensor, leaf)
        return _fixed_affine(input, self.running_mean, self.running_var, self.weight, self.bias, self.eps)


@register_activation("gn", takes_groups=True)
class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He 2018) of (N, C, *), biased variance, eps 1e-5.

    ``gn`` is 32 groups, or where 32 does not divide the channels the largest divisor below; ``gn16`` is 16 or an error.
    """

    facts = NormFacts("a group of channels of one sample", "Wu & He, ECCV", 2018, samplewise=True)

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "GroupNorm":
        """Build for ``channels``; raises GroupsError if explicit ``groups`` do not divide them."""
        return cls(fitted_groups(channels, groups, "gn"), channels)

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one mean and variance."""
        return self.num_channels // self.num_groups * values_per_channel(shape)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if not is_scripting():
            leaf: Any = as_leaf(self, input)
            if leaf is not None:
                return cast(Tensor, leaf)
        # a group of several channels has several values at any size: no question of the size stays in exported graphs
        if self.num_channels == self.num_groups:
            return _channel_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The normalization of values that are not at hand, as an affine map.

        Every activation normalization that is such a map for each channel has this method, for networks that know the
        moments of a feature without holding it (see ``models/edges.py``): forward(x) is x * scale + shift, and the sign
        of scale is that of ``weight``, or of what the method ``signed_gain()`` gives where there is one.

        Args:
            mean: (N, C), of each channel of each sample, float32 or wider.
            var: (N, C), biased.
            count: values behind each of them.

        Returns:
            scale and shift, (N, C) or (1, C).
        """
        members = self.num_channels // self.num_groups
        if members * count == 1:
            one, zero = torch.ones_like(mean[:1]), torch.zeros_like(mean[:1])
            return (
                one if self.weight is None else self.weight[None].to(mean.dtype),
                zero if self.bias is None else self.bias[None].to(mean.dtype),
            )
        split = (len(mean), self.num_groups, members)
        group_mean, group_var = pooled(mean.view(split), var.view(split), 2)
        mean, var = group_mean.expand(split).reshape(mean.shape), group_var.expand(split).reshape(var.shape)
        return scale_and_shift(mean, var, self.eps, self.weight, self.bias)


@register_activation("ln")
class LayerNorm(GroupNorm):
    """Layer normalization as the paper means it: one group over (C, *) of each sample, affine per channel.

    This is GroupNorm(1, C), not the per-pixel LayerNorm over C of ConvNeXt and transformers.
    """

    facts = NormFacts("all channels of one sample", "Ba et al., arXiv:1607.06450", 2016, samplewise=True)

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "LayerNorm":
        """Build for ``channels``."""
        return cls(1, channels)


@register_activation("in")
class InstanceNorm(GroupNorm):
    """Instance normalization (Ulyanov et al. 2016), affine: every channel of every sample by itself.

    Computed as GroupNorm with one channel a group, which measured 2.2x as fast as torch's InstanceNorm2d.
    """

    facts = NormFacts("one channel of one sample", "Ulyanov et al., arXiv:1607.08022", 2016, samplewise=True,
                      per_channel=True)  # fmt: skip

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "InstanceNorm":
        """Build for ``channels``."""
        return cls(channels, channels)


@register_activation("none")
class NoNorm(nn.Identity):
    """No activation normalization; it remembers the channels, so that a model can be converted again.

    Args:
        num_features: channels C.
    """

    facts = NormFacts("nothing", samplewise=True)

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "NoNorm":
        """Build for ``channels``."""
        return cls(channels)

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Scale 1 and shift 0, whatever the moments: the input is returned as it is."""
        return mean.new_ones(1, self.num_features), mean.new_zeros(1, self.num_features)
