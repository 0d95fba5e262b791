"""The temporal shift module (Lin et al. 2019) with residual placement, on any ResNet (mit-han-lab @ 1f6a834)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from wsbench.models.by_name import LastFeatures, is_named
from wsbench.models.resnet import resnet_features
from wsbench.norms.tracing import traced


class _Shift(torch.autograd.Function):
    """Three slab copies into fresh memory; its adjoint is the shift the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segments: int, fold: int, ahead: bool) -> Tensor:
        ctx.form = segments, fold, ahead
        clips = x.view(-1, segments, *x.shape[1:])
        out = torch.empty_like(clips)
        first, second = (slice(0, fold), slice(fold, 2 * fold)) if ahead else (slice(fold, 2 * fold), slice(0, fold))
        out[:, :-1, first] = clips[:, 1:, first]
        out[:, -1, first] = 0
        out[:, 1:, second] = clips[:, :-1, second]
        out[:, 0, second] = 0
        out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
        return out.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        segments, fold, ahead = ctx.form
        return cast(Tensor, _Shift.apply(grad.contiguous(), segments, fold, not ahead)), None, None, None


def temporal_shift(x: Tensor, segments: int, divisor: int = 8) -> Tensor:
    """Each frame sees an eighth of the next frame's channels and an eighth of the previous one's.

    The first C // divisor channels come from one frame ahead, the second from one frame back, the rest stay; beyond the
    ends of a clip there are zeros.

    Args:
        x: (N segments, C, H, W), the frames of a clip one after the other.
        segments: frames of a clip.
        divisor: 8 in the reference.

    Raises:
        ValueError: the first dimension is no multiple of ``segments``.
    """
    if x.shape[0] % segments:
        raise ValueError(f"{x.shape[0]} frames are no whole clips of {segments}")
    fold = x.shape[1] // divisor
    if traced():
        clips = x.view(-1, segments, *x.shape[1:])
        first, second, rest = torch.split(clips, [fold, fold, x.shape[1] - 2 * fold], 2)
        edge = torch.zeros_like(first[:, :1])
        moved = (torch.cat((first[:, 1:], edge), 1), torch.cat((edge, second[:, :-1]), 1), rest)
        return torch.cat(moved, 2).view(x.shape)
    return cast(Tensor, _Shift.apply(x.contiguous(), segments, fold, True))


class TemporalShift(nn.Module):
    """A layer whose input is shifted in time first.

    Args:
        net: the layer.
        segments: frames of a clip.
        divisor: see :func:`temporal_shift`.
    """

    def __init__(self, net: nn.Module, segments: int, divisor: int = 8) -> None:
        super().__init__()
        self.net, self.segments, self.divisor = net, segments, divisor

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return f"segments={self.segments}, divisor={self.divisor}"

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, on the shifted input."""
        return cast(Tensor, self.net(temporal_shift(x, self.segments, self.divisor)))


def add_temporal_shift(resnet: nn.Module, segments: int, divisor: int = 8) -> list[str]:
    """Shift the input of the first convolution of residual branches; the identity path stays. In place.

    Every block of a bottleneck ResNet; of a stage that counts 23 blocks or more where the third does, every second one.

    Returns:
        The names of the wrapped convolutions.
    """
    if not all(hasattr(resnet, f"layer{i}") for i in (1, 2, 3, 4)):
        raise ValueError("the temporal shift is for ResNets; without it, call the network tsn_ instead of tsm_")
    stages = [cast(nn.Sequential, getattr(resnet, f"layer{i}")) for i in (1, 2, 3, 4)]
    every = 2 if len(stages[2]) >= 23 else 1
    names = []
    for number, stage in enumerate(stages, start=1):
        for index, block in enumerate(stage):
            if index % every == 0:
                block.conv1 = TemporalShift(cast(nn.Module, block.conv1), segments, divisor)
                names.append(f"layer{number}.{index}.conv1")
    return names


class TSM(nn.Module):
    """A ResNet on the frames of a clip, shifted in time; logits are averaged over frames.

    Args:
        backbone: name of a ResNet, or a network by name (:mod:`wsbench.models.by_name`).
        num_classes: classes.
        segments: frames of a clip.
        shift: whether to shift; without it this is TSN, which sees a clip as a bag of frames.
        divisor: see :func:`temporal_shift`.
        dropout: before the classifier.
        pretrained: a network by name with its package's own weights.
    """

    def __init__(
        self, backbone: str, num_classes: int, segments: int = 8, shift: bool = True, divisor: int = 8,
        dropout: float = 0.5, pretrained: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if is_named(backbone):
            self.backbone: nn.Module = LastFeatures(backbone, pretrained=pretrained)
        else:
            self.backbone = resnet_features(backbone)
        self.segments = segments
        body = cast(nn.Module, self.backbone.body) if is_named(backbone) else self.backbone
        self.shifted = add_temporal_shift(body, segments, divisor) if shift else []
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(cast(int, self.backbone.out_channels), num_classes)
        nn.init.normal_(self.classifier.weight, 0.0, 0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, segments, 3, H, W) to logits (N, num_classes)."""
        features = self.backbone(clips.flatten(0, 1)).mean((2, 3))
        logits = self.classifier(self.dropout(features))
        return cast(Tensor, logits.view(-1, self.segments, logits.shape[1]).mean(1))
