"""Normalizations over the channels of one position, as transformers and ConvNeXt have them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsbench.norms.base import ChannelNorm
from wsbench.norms.facts import NormFacts
from wsbench.norms.registry import register_activation


class _PerPixelNorm(ChannelNorm):
    def __init__(self, num_features: int, eps: float = 1e-6) -> None:
        super().__init__(num_features, eps)

    def values_per_statistic(self, shape: torch.Size) -> int:
        """Values behind one statistic."""
        return shape[1]


@register_activation("cln")
class ChannelLayerNorm(_PerPixelNorm):
    """Layer normalization over the channels of each position, as in ConvNeXt (Liu et al. 2022) and transformers.

    y_nci = gamma_c (x_nci - mean_c(x_ni)) / sqrt(var_c(x_ni) + eps) + beta_c with the biased variance, eps 1e-6. The
    paper's LN, one statistic over (C, *), is ``ln``.
    """

    facts = NormFacts("all channels of one position", "Liu et al., CVPR (ConvNeXt)", 2022, samplewise=True)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if x.shape[1] == 1:
            return self.affine(x)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x.movedim(1, -1), (x.shape[1],), weight, bias, self.eps).movedim(-1, 1)


@register_activation("rms")
class RMSNorm(_PerPixelNorm):
    """Root-mean-square normalization over the channels of each position (Zhang & Sennrich 2019, Eq. 4).

    y_nci = gamma_c x_nci / sqrt(mean_c(x_ni^2) + eps) + beta_c; eps 1e-6, and the bias is that of the paper's Eq. 2.
    """

    facts = NormFacts("all channels of one position, not centred", "Zhang & Sennrich, NeurIPS", 2019, samplewise=True)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        if x.shape[1] == 1:
            return self.affine(x)
        return self.affine(x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps))
