"""DeepLabv3 as the Weight Standardization paper ran it (chenxi116/DeepLabv3.pytorch @ 046818d).

It differs from torchvision's: output stride 16, rates 6/12/18, align_corners, no 3x3 convolution after the ASPP, no
dropout, no auxiliary head.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsbench.models.by_name import LastFeatures, is_named
from wsbench.models.resnet import resnet_features

BACKBONES = ("resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x4d", "resnet_mini", "resnet_small")


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners aligned, as the authors' code upsamples everywhere."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=True)


def _convolution(inputs: int, outputs: int, kernel: int, rate: int, momentum: float) -> nn.Sequential:
    padding = rate if kernel == 3 else 0
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=rate if kernel == 3 else 1, bias=False),
        nn.BatchNorm2d(outputs, momentum=momentum),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and image pooling, joined by a 1x1.

    Args:
        inputs: channels in.
        width: channels of every branch and of the output.
        rates: dilations of the 3x3 convolutions.
        momentum: of BN, PyTorch's convention.
    """

    def __init__(self, inputs: int, width: int, rates: Sequence[int], momentum: float) -> None:
        super().__init__()
        branches = [_convolution(inputs, width, 1, 1, momentum)]
        branches += [_convolution(inputs, width, 3, rate, momentum) for rate in rates]
        self.branches = nn.ModuleList(branches)
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_convolution(inputs, width, 1, 1, momentum))
        self.project = _convolution(width * (len(branches) + 1), width, 1, 1, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H, W)."""
        parts = [branch(x) for branch in self.branches] + [resize(self.pooling(x), x.shape[2:])]
        joined: Tensor = self.project(torch.cat(parts, 1))
        return joined


class DeepLabV3(nn.Module):
    """ResNet, ASPP, 1x1 classifier, upsampled to the input.

    Args:
        backbone: ``resnet50``, ``resnet101`` (58.04 M parameters in all), ``resnet_small``, ``resnet_mini``, or a
            network by name (:mod:`wsbench.models.by_name`).
        num_classes: classes including background.
        output_stride: 16 in the paper.
        rates: dilations of the ASPP; 6, 12, 18 in the paper.
        width: channels of the ASPP.
        bn_momentum: of the backbone's BN (PyTorch's convention).
        aspp_bn_momentum: of the ASPP's BN.
        pretrained: a network by name with its package's own weights.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        output_stride: int = 16,
        rates: Sequence[int] = (6, 12, 18),
        width: int = 256,
        bn_momentum: float = 0.05,
        aspp_bn_momentum: float = 0.0003,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if is_named(backbone):
            self.backbone: nn.Module = LastFeatures(backbone, output_stride, pretrained)
        elif backbone in BACKBONES:
            self.backbone = resnet_features(backbone, output_stride)
        else:
            raise ValueError(f"unknown backbone '{backbone}'; choose from {', '.join(BACKBONES)}")
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum
        self.aspp = ASPP(cast(int, self.backbone.out_channels), width, rates, aspp_bn_momentum)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        for conv in (m for m in self.aspp.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes, H, W)."""
        return resize(self.classifier(self.aspp(self.backbone(x))), x.shape[2:])
