"""What activation normalizations with one gain and shift a channel share, for ours and for those of other packages."""

from abc import ABC, abstractmethod
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from wsbench.norms.activation import per_channel, values_per_channel
from wsbench.norms.facts import NormFacts
from wsbench.norms.tracing import as_leaf, without_autocast


class ChannelNorm(nn.Module, ABC):
    """A normalization of (N, C, *) by one class: say ``facts``, and compute.

    Statistics are in float32 or wider under any precision, for (N, C) and any number of dimensions behind.

    Args:
        num_features: channels C.
        eps: the method's.
    """

    facts = NormFacts()

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> Self:
        """Build for ``channels``."""
        return cls(channels)

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """The layer's output of ``x`` (N, C, *), float32 or wider."""

    def affine(self, x: Tensor) -> Tensor:
        """Gain and shift of each channel: x * weight + bias."""
        weight, bias = (per_channel(p, x).to(x.dtype) for p in (self.weight, self.bias))
        return torch.addcmul(bias, x, weight)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        leaf: Any = as_leaf(self, input)
        if leaf is not None:
            return cast(Tensor, leaf)
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"{type(self).__name__} expects (N, {self.num_features}, *), got {tuple(input.shape)}")
        with without_autocast(input):
            x = input.to(torch.promote_types(input.dtype, torch.float32))
            out = self.affine(x) if x.numel() == 0 else self.compute(x)  # a batch of nothing has no statistic
            return out.to(input.dtype)

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return f"{self.num_features}, eps={self.eps}"

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script asks before it reads a layer."""
        raise TypeError(
            f"torch.jit.script cannot read {type(self).__name__}; use torch.jit.trace, torch.export or torch.fx"
        )


class RunningNorm(ChannelNorm):
    """A :class:`ChannelNorm` with BN's state: in evaluation BN by running statistics.

    Args:
        num_features: channels C.
        eps: added to the variance, inside the root.
        momentum: weight of the new batch in the running statistics, PyTorch's convention.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one statistic of a training pass."""
        return shape[0] * values_per_channel(shape)

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards a batch's (C,)."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)

    def by_running(self, x: Tensor) -> Tensor:
        """BN in evaluation."""
        mean, var = (per_channel(s, x).to(x.dtype) for s in (self.running_mean, self.running_var))
        return self.affine((x - mean) * torch.rsqrt(var + self.eps))

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return f"{super().extra_repr()}, momentum={self.momentum}"


def all_but_channels(x: Tensor) -> list[int]:
    """The dimensions of (N, C, *) that a statistic of a channel over the batch is over."""
    return [d for d in range(x.dim()) if d != 1]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of a batch (N, C, *)."""
    var, mean = torch.var_mean(x, dim=all_but_channels(x), correction=0)
    return mean, var
