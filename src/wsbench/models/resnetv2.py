"""Pre-activation ResNets of Big Transfer (Kolesnikov et al. 2020), with the state-dict keys of timm's ResNetV2."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

LAYERS = {"resnetv2_50": (3, 4, 6, 3), "resnetv2_101": (3, 4, 23, 3)}
#: Convolutions that Big Transfer standardizes though an addition or a pooling lies between them and a norm.
STANDARDIZED = ("stem.conv", "stages.*.conv?", "stages.*.downsample.conv")


def is_resnetv2(name: str) -> bool:
    """Whether ``name`` is that of such a network."""
    return name.startswith("resnetv2_")


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, project: bool) -> None:
        super().__init__()
        middle = outputs // 4
        self.norm1: nn.Module = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.norm3: nn.Module = nn.BatchNorm2d(middle)
        self.relu: nn.Module = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        if project:
            self.downsample = nn.Module()
            self.downsample.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.project = project

    def forward(self, x: Tensor) -> Tensor:
        before = self.relu(self.norm1(x))
        shortcut = cast(nn.Module, self.downsample.conv)(before) if self.project else x
        x = self.conv1(before)
        x = self.conv2(self.relu(self.norm2(x)))
        x = self.conv3(self.relu(self.norm3(x)))
        return x + cast(Tensor, shortcut)


class ResNetV2(nn.Module):
    """Pre-activation bottleneck ResNet.

    Args:
        name: ``resnetv2_50x1``, ``resnetv2_101x3``, ...: depth and width factor.
        num_classes: classes.
    """

    #: of images in [0, 1], taken out of the network's input
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, name: str, num_classes: int = 1000) -> None:
        super().__init__()
        base, _, factor = name.partition("x")
        if base not in LAYERS or not factor.isdigit() or int(factor) < 1:
            raise ValueError(f"unknown ResNet '{name}'; pre-activation ones are {', '.join(LAYERS)}, x and a width")
        width = int(factor)
        self.stem = nn.Module()
        self.stem.conv = nn.Conv2d(3, 64 * width, 7, 2, 3, bias=False)
        inputs, stages = 64 * width, []
        for stage, count in enumerate(LAYERS[base]):
            outputs, blocks = 256 * width * 2**stage, nn.Module()
            units = [
                _Block(inputs if unit == 0 else outputs, outputs, 2 if stage and unit == 0 else 1, unit == 0)
                for unit in range(count)
            ]
            blocks.blocks = nn.ModuleList(units)
            stages.append(blocks)
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.norm: nn.Module = nn.BatchNorm2d(inputs)
        self.relu: nn.Module = nn.ReLU()
        self.head = nn.Module()
        self.head.fc = nn.Conv2d(inputs, num_classes, 1)
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.fc.weight, std=0.01)
        nn.init.zeros_(cast(Tensor, self.head.fc.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes)."""
        x = cast(nn.Module, self.stem.conv)(x)
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)  # padded with zeros, not with -inf
        for stage in self.stages:
            for block in cast(nn.ModuleList, stage.blocks):
                x = block(x)
        x = self.relu(self.norm(x)).mean((2, 3), keepdim=True)
        return cast(Tensor, cast(nn.Module, self.head.fc)(x)).flatten(1)
