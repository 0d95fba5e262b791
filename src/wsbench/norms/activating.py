"""Normalizations that are the activation, too: FRN with its thresholded linear unit, EvoNorm-S0 and -B0."""

from typing import cast

import torch
from torch import Tensor, nn

from wsbench.norms.activation import fitted_groups, per_channel, values_per_channel
from wsbench.norms.base import moments
from wsbench.norms.behind import ActivatingNorm
from wsbench.norms.facts import NormFacts
from wsbench.norms.registry import register_activation


@register_activation("frn")
class FilterResponseNorm(ActivatingNorm):
    """Filter response normalization with its thresholded linear unit (Singh & Krishnan 2020, Eq. 1-3), eps 1e-6.

    nu^2 = mean(x^2) over each channel of each sample, y = gamma x / sqrt(nu^2 + eps) + beta, z = max(y, tau). Where no
    activation is behind the layer there is no tau and y is the output. A single value has no statistic worth the name
    (the paper learns eps there): its gain, shift and threshold only.
    """

    facts = NormFacts(
        "one channel of one sample, not centred", "Singh & Krishnan, CVPR", 2020, samplewise=True,
        brings_activation=True, one_value="affine map and threshold only",
    )  # fmt: skip

    without_activation = "no activation follows it, so it has no threshold"

    def __init__(self, num_features: int, eps: float = 1e-6) -> None:
        super().__init__(num_features, eps)
        self.tau: nn.Parameter | None = nn.Parameter(torch.zeros(num_features))

    def drop_activation(self) -> None:
        """Leave tau out: where no ReLU followed there is no threshold to learn."""
        super().drop_activation()
        self.tau = None

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one statistic."""
        return values_per_channel(shape)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        y = x
        if values_per_channel(x.shape) > 1:
            y = x * torch.rsqrt(x.square().mean(tuple(range(2, x.dim())), keepdim=True) + self.eps)
        y = self.affine(y)
        return y if self.tau is None else torch.maximum(y, per_channel(self.tau, y).to(y.dtype))


class _EvoNorm(ActivatingNorm):
    without_activation = "no activation follows it, so it is its gain and shift only and normalizes nothing"
    normalizes_without = False

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.v: nn.Parameter | None = nn.Parameter(torch.ones(num_features))

    def drop_activation(self) -> None:
        """Without v: the gain and shift only, as in the paper's code."""
        super().drop_activation()
        self.v = None


@register_activation("evos", takes_groups=True)
class EvoNormS0(_EvoNorm):
    """EvoNorm-S0 (Liu et al. 2020): x sigmoid(v x) / sqrt(var + eps) gamma + beta.

    var is biased, of a group of a sample's channels: 32 groups as in the paper, fitted to the channels like those of
    ``gn``; eps 1e-5. Where no activation is behind the layer it is x gamma + beta, as in the paper's code.
    """

    facts = NormFacts(
        "a group of channels of one sample, not centred", "Liu et al., NeurIPS", 2020, samplewise=True,
        brings_activation=True, one_value="activation and affine map only",
    )  # fmt: skip

    def __init__(self, num_features: int, num_groups: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.num_groups = num_groups

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "EvoNormS0":
        """Build for ``channels``; raises GroupsError if explicit ``groups`` do not divide them."""
        return cls(channels, fitted_groups(channels, groups, "evos"))

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one statistic."""
        return self.num_features // self.num_groups * values_per_channel(shape)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if self.v is None:
            return self.affine(x)
        y = x * torch.sigmoid(per_channel(self.v, x).to(x.dtype) * x)
        if self.values_per_statistic(x.shape) > 1:
            var = x.reshape(x.shape[0], self.num_groups, -1).var(2, correction=0)
            members = self.num_features // self.num_groups
            scale = torch.rsqrt(var + self.eps).repeat_interleave(members, 1)
            y = y * scale.view(*scale.shape, *(1,) * (x.dim() - 2))
        return self.affine(y)


@register_activation("evob")
class EvoNormB0(_EvoNorm):
    """EvoNorm-B0 (Liu et al. 2020): x / max(sqrt(var_B + eps), v x + sqrt(var_I + eps)) gamma + beta.

    var_B is of a channel over the micro-batch, running in evaluation (with the unbiased one, as BN's), var_I of a
    channel of each sample; eps 1e-5. Where no activation is behind the layer it is x gamma + beta, as in the paper's
    code. One value a channel has no var_I, whose root is then left out; one value in the batch uses the running var_B.
    """

    facts = NormFacts(
        "one channel of the micro-batch, and of one sample; not centred", "Liu et al., NeurIPS", 2020,
        brings_activation=True, one_value="running variance in training",
    )  # fmt: skip

    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps)
        self.momentum = momentum
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def drop_activation(self) -> None:
        """Without v and the running variance."""
        super().drop_activation()
        self.running_var = self.num_batches_tracked = None

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind var_B in training."""
        return shape[0] * values_per_channel(shape)

    def _batch_variance(self, x: Tensor) -> Tensor:
        running, values = cast(Tensor, self.running_var), self.values_per_statistic(x.shape)
        if not self.training or values == 1:
            return running.to(x.dtype)
        _, var = moments(x)
        with torch.no_grad():
            cast(Tensor, self.num_batches_tracked).add_(1)
            running.lerp_((var * (values / (values - 1))).to(running.dtype), self.momentum)
        return var

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if self.v is None:
            return self.affine(x)
        other = per_channel(self.v, x).to(x.dtype) * x
        if values_per_channel(x.shape) > 1:
            other = other + (x.var(tuple(range(2, x.dim())), correction=0, keepdim=True) + self.eps).sqrt()
        return self.affine(x / torch.maximum((per_channel(self._batch_variance(x), x) + self.eps).sqrt(), other))
