"""Activation normalizations: BN, GN, LN, IN and none, for (N, C) and (N, C, *) features.

One rule covers the degenerate cells of the grid: **a statistic over a single value does not exist, so the layer then
applies its affine map only.** It holds for IN on 1x1 maps and on (N, C), GN with one element a group, and BN in
training with one value a channel, which uses its running statistics there and does not update them.
(PyTorch raises or returns zeros in these cells, depending on layer and batch; see tests/norms/test_activation.py.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsbench.norms.registry import register_activation

DEFAULT_GROUPS = 32


class GroupsError(ValueError):
    """An explicit number of groups that does not divide the channels."""


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """View a (C,) vector so that it broadcasts over (N, C, *) features."""
    return vector.view(1, -1, *(1 for _ in range(like.dim() - 2)))


def values_per_channel(shape: torch.Size) -> int:
    """Values of one channel of one sample: 1 for (N, C) and for 1x1 maps."""
    return shape[2:].numel()


def largest_divisor(channels: int, limit: int) -> int:
    """The largest divisor of ``channels`` that is not above ``limit``."""
    return next(g for g in range(min(channels, limit), 0, -1) if channels % g == 0)


@register_activation("bn")
class BatchNorm(_BatchNorm):
    """Batch normalization (Ioffe & Szegedy 2015) of (N, C, *), statistics of the micro-batch on this device.

    PyTorch's layer, for any number of dimensions, save that one value a channel in training (N = 1 on a 1x1 map) is
    normalized by the running statistics instead of raising; they are not updated from it.
    """

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "BatchNorm":
        """Build with PyTorch's defaults: eps 1e-5, momentum 0.1, affine, running statistics."""
        return cls(channels)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm expects (N, C) or (N, C, *), got {tuple(input.shape)}")

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one mean and variance in training."""
        return shape[0] * values_per_channel(shape)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if self.training and self.running_mean is not None and self.values_per_statistic(input.shape) == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


@register_activation("gn", takes_groups=True)
class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He 2018) of (N, C, *), biased variance, eps 1e-5.

    ``gn`` is 32 groups, or where 32 does not divide the channels the largest divisor below; ``gn16`` is 16 or an error.
    """

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "GroupNorm":
        """Build for ``channels``; raises GroupsError if explicit ``groups`` do not divide them."""
        if groups is None:
            groups = largest_divisor(channels, DEFAULT_GROUPS)
        elif channels % groups:
            raise GroupsError(
                f"{groups} groups do not divide {channels} channels; write 'gn' for the largest divisor not above "
                f"{DEFAULT_GROUPS} ({largest_divisor(channels, DEFAULT_GROUPS)}), or a number that divides"
            )
        return cls(groups, channels)

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one mean and variance."""
        return self.num_channels // self.num_groups * values_per_channel(shape)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if self.values_per_statistic(input.shape) == 1:
            return input * per_channel(self.weight, input) + per_channel(self.bias, input)
        return super().forward(input)


@register_activation("ln")
class LayerNorm(GroupNorm):
    """Layer normalization as the paper means it: one group over (C, *) of each sample, affine per channel.

    This is GroupNorm(1, C), not the per-pixel LayerNorm over C of ConvNeXt and transformers.
    """

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "LayerNorm":
        """Build for ``channels``."""
        return cls(1, channels)


@register_activation("in")
class InstanceNorm(GroupNorm):
    """Instance normalization (Ulyanov et al. 2016), affine: every channel of every sample by itself.

    Computed as GroupNorm with one channel a group, which measured 2.2x as fast as torch's InstanceNorm2d.
    """

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "InstanceNorm":
        """Build for ``channels``."""
        return cls(channels, channels)


@register_activation("none")
class NoNorm(nn.Identity):
    """No activation normalization; it remembers the channels, so that a model can be turned over again.

    Args:
        num_features: channels C.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "NoNorm":
        """Build for ``channels``."""
        return cls(channels)
