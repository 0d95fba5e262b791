"""torchvision's ResNet as a feature extractor."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet


class ResNetFeatures(ResNet):  # type: ignore[misc]
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
        self._max_planes = max_planes
        dilate = [False, output_stride <= 8, output_stride <= 16]
        super().__init__(Bottleneck, list(layers), replace_stride_with_dilation=dilate, **kwargs)
        self.out_channels = self.inplanes
        del self.avgpool, self.fc

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        stage: nn.Sequential = super()._make_layer(block, min(planes, self._max_planes), *args, **kwargs)
        return stage

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, out_channels, H / output_stride, W / output_stride), rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features
