"""torchvision's bottleneck ResNets and ResNeXts, as classifiers and as feature extractors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet


@dataclass(frozen=True)
class Architecture:
    """A ResNet: blocks of its four stages, groups and width of its 3x3 convolutions, upper limit of a stage's width."""

    layers: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    max_planes: int = 512


RESNETS = {
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x4d": Architecture((3, 4, 23, 3), groups=32, width_per_group=4),
    "resnet_mini": Architecture((1, 1, 1, 1), max_planes=64),
    "resnet_small": Architecture((2, 2, 2, 2), max_planes=128),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name; ValueError with the choices for any other."""
    if name not in RESNETS:
        raise ValueError(f"unknown ResNet '{name}'; choose from {', '.join(RESNETS)}")
    return RESNETS[name]


class _LimitedResNet(ResNet):  # type: ignore[misc]
    """The bottleneck ResNet of torchvision with an upper limit on a stage's width."""

    def __init__(self, layers: Sequence[int], max_planes: int, **kwargs: Any) -> None:
        self._max_planes = max_planes
        super().__init__(Bottleneck, list(layers), **kwargs)
        self.out_channels = self.inplanes

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        inputs = self.inplanes
        stage: nn.Sequential = super()._make_layer(block, min(planes, self._max_planes), *args, **kwargs)
        if stage[0].downsample is None:
            # equal widths, and dilated instead of strided: project all the same, so that a network has the same weights
            # at every output stride, and one trained on classification fits segmentation
            projection = nn.Conv2d(inputs, self.inplanes, 1, bias=False)
            stage[0].downsample = nn.Sequential(projection, self._norm_layer(self.inplanes))
        return stage


class ResNetFeatures(_LimitedResNet):
    """The bottleneck ResNet of torchvision up to layer4; its state-dict keys, save those of the classifier.

    Args:
        layers: blocks of the four stages, for instance (3, 4, 23, 3).
        output_stride: 32, 16 or 8; below 32 the last stages are dilated instead of strided.
        max_planes: upper limit of a stage's width (64, 128, 256, 512), for small networks; the output has 4x as many.
        kwargs: further arguments of torchvision's ResNet.
    """

    def __init__(self, layers: Sequence[int], output_stride: int = 32, max_planes: int = 512, **kwargs: Any) -> None:
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        dilate = [False, output_stride <= 8, output_stride <= 16]
        super().__init__(layers, max_planes, replace_stride_with_dilation=dilate, **kwargs)
        del self.avgpool, self.fc

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, out_channels, H / output_stride, W / output_stride), rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


class ResNetClassifier(_LimitedResNet):
    """The bottleneck ResNet of torchvision; its state-dict keys, forward and initialization.

    Args:
        name: one of ``RESNETS``; ``resnet_mini`` and ``resnet_small`` (0.8 and 2.5 M parameters) are wsbench's own.
        num_classes: classes.
    """

    def __init__(self, name: str, num_classes: int = 1000) -> None:
        form = architecture(name)
        super().__init__(
            form.layers, form.max_planes, groups=form.groups, width_per_group=form.width_per_group,
            num_classes=num_classes,
        )  # fmt: skip
        if form.max_planes < 512:
            self.fc = nn.Linear(self.out_channels, num_classes)


def resnet_features(name: str, output_stride: int = 32) -> ResNetFeatures:
    """The feature extractor of a ResNet of that name."""
    form = architecture(name)
    return ResNetFeatures(
        form.layers, output_stride, form.max_planes, groups=form.groups, width_per_group=form.width_per_group
    )
