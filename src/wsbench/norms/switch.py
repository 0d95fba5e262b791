"""Switchable Normalization (Luo et al., arXiv:1806.10779), written from the paper's equations."""

import torch
from torch import Tensor, nn

from wsbench.norms.activation import pooled, scale_and_shift, values_per_channel
from wsbench.norms.registry import register_activation


@register_activation("sn")
class SwitchNorm(nn.Module):
    """Switchable normalization (Luo et al. 2018): IN, LN and BN statistics mixed by learned softmax weights.

    Statistics are biased and in float32, gathered in one pass over (N, C, *). What does not exist takes no part in the
    softmax: IN where a channel has one value (1x1 maps, (N, C) features), BN where the batch has one sample, and BN in
    evaluation until a batch of two or more has been seen. A network trained at one image a device is thus SN(8,1) of
    the authors in training and in evaluation alike.

    Args:
        num_features: channels C.
        eps: added to the mixed variance, inside the root.
        momentum: weight of the new batch in the running statistics, PyTorch's convention.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "SwitchNorm":
        """Build for ``channels``."""
        return cls(channels)

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind the LN statistic, the one that always takes part."""
        return self.num_features * values_per_channel(shape)

    def _batch_statistics(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance over the batch, and whether they exist, as a 0-d bool tensor."""
        if not self.training:
            return self.running_mean[None], self.running_var[None], self.num_batches_tracked > 0
        batch_mean, batch_var = pooled(mean, var, 0)
        if mean.shape[0] > 1:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(batch_mean[0].to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(batch_var[0].to(self.running_var.dtype), self.momentum)
        return batch_mean, batch_var, torch.tensor(mean.shape[0] > 1, device=mean.device)

    def from_moments(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`wsbench.norms.activation.GroupNorm.from_moments`; in training the running statistics move."""
        mean_ln, var_ln = pooled(mean, var, 1)
        mean_bn, var_bn, has_bn = self._batch_statistics(mean, var)
        has_in = torch.tensor(count > 1, device=mean.device)
        absent = torch.stack([~has_in, torch.zeros_like(has_in), ~has_bn])
        m = self.mean_weight.to(mean.dtype).masked_fill(absent, -torch.inf).softmax(0)
        v = self.var_weight.to(mean.dtype).masked_fill(absent, -torch.inf).softmax(0)
        mixed_mean = m[0] * mean + m[1] * mean_ln + m[2] * mean_bn
        mixed_var = v[0] * var + v[1] * var_ln + v[2] * var_bn
        return scale_and_shift(mixed_mean, mixed_var, self.eps, self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"SwitchNorm expects (N, {self.num_features}, *), got {tuple(input.shape)}")
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, torch.float32))
            flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
            var, mean = torch.var_mean(flat, dim=2, correction=0)
            scale, shift = self.from_moments(mean, var, values_per_channel(input.shape))
            shape = (*scale.shape, *(1 for _ in range(x.dim() - 2)))
            return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype)
