"""Faster and Mask R-CNN with FPN and 4conv1fc heads, as the paper ran them, from torchvision's public parts.

Source: configs/gn_baselines of joe-siyuan-qiao/maskrcnn-benchmark @ 8721745. Anchors and the RPN's targets are the
reference's (:mod:`wsbench.models.anchors`); what differs:

| | here, as torchvision | there |
|---|---|---|
| box head's smooth L1 | beta 1/9 | beta 1 |
| mask targets | bitmaps, RoIAligned to 28 x 28 | polygons, cropped and rasterized at 28 x 28 |
| pixels | RGB in [0, 1], less ImageNet's mean, over its standard deviation | BGR in [0, 255], less the mean |
| resizing | bilinear without antialiasing | Pillow's, which antialiases; a side may differ by a pixel |
| proposals in training | ``proposals`` of each image | 2,000 of all images of a device |
| smallest proposal | 1e-3 pixels a side (a detection: 1e-2) | 0: what lies outside is clipped to one pixel and kept |
| RoIAlign | samples a box from edge to edge | from first to last pixel: a pixel less each way |
| boxes of resized images | edges times the scale | first and last pixels times the scale: scale - 1 pixels narrower |
| schedule | step t has the rate of t | stepped before the optimizer: the same under PyTorch 1.0, t + 1 from 1.1 on |
| image without an anchor inside | RPN losses 0 | not a number |

RoIAlign and the resized boxes are what is left of the reference's "+ 1": in IoUs, matching, box coding, suppression and
areas it gives the same numbers in other coordinates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from wsbench.models.anchors import RATIOS, ReferenceAnchors, ReferenceRPN
from wsbench.models.by_name import Pyramid, is_named
from wsbench.models.resnet import resnet_features

#: names of the body's parts, first to last; what is not trainable is frozen from the front
_PARTS = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

Anchors = Literal["reference", "torchvision"]
ANCHORS: tuple[Anchors, ...] = ("reference", "torchvision")

DIFFERENCES = (
    "smooth L1 of the box head with beta 1/9 (authors: 1)",
    "mask targets are bitmaps, RoIAligned (authors: rasterized polygons)",
    "pixels are RGB, less ImageNet's mean and over its standard deviation (authors: BGR from 0 to 255, less the mean)",
    "pictures resized without antialiasing (authors: Pillow)",
    "proposals kept per image (authors: per batch of a device)",
    "proposals smaller than 1e-3 pixels dropped (authors: none)",
    "no legacy +1 in RoIAlign and in the resizing of boxes",
    "the schedule is stepped after the optimizer (authors: before, which is one step ahead from PyTorch 1.1 on)",
)
"""What still differs from the authors' code, for a record; the module's docstring has it value by value."""

TORCHVISION_ANCHOR_DIFFERENCES = (
    "anchors that leave the image are trained, too (authors: not)",
    "anchors of torchvision's shapes, in the corners of the cells (authors: rounded before scaling, in the middle)",
)
"""What differs besides with ``anchors="torchvision"``."""


@dataclass(frozen=True)
class DetectorSettings:
    """Sizes and choices of a detector; the defaults are the paper's.

    Raises:
        ValueError: for an unknown kind of anchors, trainable_layers outside 0 to 5, or min_size above max_size.
    """

    trainable_layers: int = 3
    """Parts of the body, counted from the end, that are trained; 3 freezes stem and layer1."""
    width: int = 256
    """Channels of the FPN and of the heads' convolutions."""
    head_convs: int = 4
    """3x3 convolutions of each head."""
    fc_width: int = 1024
    """Of the box head's linear layer."""
    anchor_size: int = 32
    """Of the finest level in pixels; it doubles from level to level."""
    min_size: int = 800
    """Shorter side that images are resized to, in pixels."""
    max_size: int = 1333
    """Limit of the longer side, in pixels."""
    proposals: int = 1000
    """Kept of an image in training after non-maximum suppression."""
    rois: int = 512
    """Sampled of an image to train the heads."""
    anchors: Anchors = "reference"
    """``reference``: the shapes and places of maskrcnn-benchmark, none outside the image in the RPN's losses;
    ``torchvision``: torchvision's own. Either way the state dict is the same."""

    def __post_init__(self) -> None:
        if self.anchors not in ANCHORS:
            raise ValueError(f"anchors must be one of {', '.join(ANCHORS)}, got {self.anchors!r}")
        if not 0 <= self.trainable_layers <= len(_PARTS):
            raise ValueError(f"trainable_layers must be 0 to {len(_PARTS)}, got {self.trainable_layers}")
        if self.min_size > self.max_size:
            raise ValueError(f"min_size {self.min_size} is larger than max_size {self.max_size}")


def build_detector(
    backbone: str,
    num_classes: int = 81,
    masks: bool = True,
    settings: DetectorSettings = DetectorSettings(),
    normalized_heads: bool = True,
    pretrained: bool = False,
    **kwargs: Any,
) -> FasterRCNN:
    """A detector with BN wherever the paper's have a normalization: body, FPN, box head, mask head.

    Under ``gn+ws`` and ResNet-50 that makes 69 standardized convolutions; RPN, predictors and fc6 have none.

    Args:
        backbone: name of a ResNet, or a network by name (:mod:`wsbench.models.by_name`).
        num_classes: classes including background.
        masks: Mask R-CNN; false: Faster R-CNN.
        settings: sizes, anchors, and what is trained.
        normalized_heads: false: FPN and heads are plain convolutions with biases, as in detectors with frozen BN.
        pretrained: a network by name with its package's own weights.
        kwargs: further arguments of torchvision's FasterRCNN.

    Raises:
        ValueError: for an unknown backbone, or one by name of which a part is to be frozen.
    """
    norm = nn.BatchNorm2d if normalized_heads else None
    if is_named(backbone):
        if settings.trainable_layers != len(_PARTS):
            raise ValueError(f"of '{backbone}' nothing can be frozen; set trainable_layers to {len(_PARTS)}")
        features: nn.Module = Pyramid(backbone, settings.width, norm, pretrained)
    else:
        body = resnet_features(backbone)
        channels = [getattr(body, f"layer{i}")[-1].conv3.out_channels for i in (1, 2, 3, 4)]
        layers = {f"layer{i + 1}": str(i) for i in range(4)}
        features = BackboneWithFPN(body, layers, channels, settings.width, norm_layer=norm)
    box_head = FastRCNNConvFCHead(
        (settings.width, 7, 7), [settings.width] * settings.head_convs, [settings.fc_width], norm_layer=norm
    )
    sizes = [settings.anchor_size * 2**level for level in range(5)]
    parts: dict[str, Any] = {
        "rpn_anchor_generator": ReferenceAnchors(sizes)
        if settings.anchors == "reference"
        else AnchorGenerator(tuple((size,) for size in sizes), (RATIOS,) * len(sizes)),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(settings.fc_width, num_classes),
        "rpn_post_nms_top_n_train": settings.proposals,
        "box_batch_size_per_image": settings.rois,
        "min_size": settings.min_size,
        "max_size": settings.max_size,
    }
    if masks:
        parts["mask_head"] = MaskRCNNHeads(settings.width, [settings.width] * settings.head_convs, 1, norm_layer=norm)
        parts["mask_predictor"] = MaskRCNNPredictor(settings.width, settings.width, num_classes)
    model: FasterRCNN = (MaskRCNN if masks else FasterRCNN)(features, **(parts | kwargs))
    if settings.anchors == "reference":
        model.rpn = ReferenceRPN.like(model.rpn)
    model.transform = DetectorTransform.like(model.transform)
    _initialize(model)
    freeze(model, settings.trainable_layers)
    return model


class DetectorTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's, which can leave the last part of a detection to be done later, elsewhere.

    Pasting masks into the image asks for the numbers of each box in turn; on a GPU the host would wait for the device
    more than ten times for every mask.
    """

    #: whether detections are left as they are, in the resized image, with their ``sizes``
    unfinished = False

    @classmethod
    def like(cls, transform: GeneralizedRCNNTransform) -> "DetectorTransform":
        """One with the settings of ``transform``."""
        new = cls.__new__(cls)
        new.__dict__ = transform.__dict__
        return new

    def postprocess(
        self, result: list[dict[str, Any]], image_shapes: list[tuple[int, int]], original: list[tuple[int, int]]
    ) -> list[dict[str, Any]]:
        """As torchvision's: boxes and masks of the original images."""
        if self.training or not self.unfinished:
            return super().postprocess(result, image_shapes, original)  # type: ignore[no-any-return]
        return [
            {**r, "sizes": sizes} for r, sizes in zip(result, zip(image_shapes, original, strict=True), strict=True)
        ]

    def finish(self, detection: dict[str, Any]) -> dict[str, Tensor]:
        """An unfinished detection, on any device, to what :meth:`postprocess` gives."""
        rest = {k: v for k, v in detection.items() if k != "sizes"}
        shape, original = detection["sizes"]
        (finished,) = super().postprocess([rest], [shape], [original])
        return finished  # type: ignore[no-any-return]


def freeze(model: FasterRCNN, trainable_layers: int) -> list[nn.Module]:
    """Freeze the body's parts from the front, save the last ``trainable_layers``; returns the frozen modules."""
    names = [name for part in _PARTS[: len(_PARTS) - trainable_layers] for name in part]
    return [model.backbone.body[name].requires_grad_(False) for name in names]


def _initialize(model: FasterRCNN) -> None:
    """As the authors: the parts that torchvision initializes otherwise."""
    for module in model.backbone.body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
    for module in model.roi_heads.box_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=1)
            nn.init.zeros_(module.bias)
    predictor = model.roi_heads.box_predictor
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    if model.roi_heads.has_mask():
        for name, parameter in model.roi_heads.mask_predictor.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)


@contextmanager
def keep_all_boxes(model: FasterRCNN) -> Iterator[None]:
    """Let evaluation keep boxes of any score, so that an untrained network's mask head has something to run on."""
    heads = model.roi_heads
    before = heads.score_thresh
    heads.score_thresh = -1.0
    try:
        yield
    finally:
        heads.score_thresh = before


Detector = Literal["mask_rcnn", "faster_rcnn"]
DETECTORS: tuple[Detector, ...] = ("mask_rcnn", "faster_rcnn")
