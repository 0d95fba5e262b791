"""Faster and Mask R-CNN with FPN and 4conv1fc heads, as the paper ran them, from torchvision's public parts.

Source: configs/gn_baselines of joe-siyuan-qiao/maskrcnn-benchmark @ 8721745. Differences that remain: torchvision's
smooth L1 of the box head has beta 1/9 (1 there), boxes have no legacy +1, and proposals are kept per picture instead of
per batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from wsbench.models.resnet import resnet_features

#: names of the body's parts, first to last; what is not trainable is frozen from the front
_PARTS = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


def build_detector(
    backbone: str,
    num_classes: int = 81,
    masks: bool = True,
    trainable_layers: int = 3,
    width: int = 256,
    head_convs: int = 4,
    fc_width: int = 1024,
    anchor_size: int = 32,
    min_size: int = 800,
    max_size: int = 1333,
    proposals: int = 1000,
    rois: int = 512,
    normalized_heads: bool = True,
    **kwargs: Any,
) -> FasterRCNN:
    """A detector with BN wherever the paper's have a normalization: body, FPN, box head, mask head.

    Under ``gn+ws`` and ResNet-50 that makes 69 standardized convolutions; RPN, predictors and fc6 have none.

    Args:
        backbone: name of a ResNet.
        num_classes: classes including background.
        masks: Mask R-CNN; false: Faster R-CNN.
        trainable_layers: parts of the body, counted from the end, that are trained; 3 freezes stem and layer1.
        width: channels of the FPN and of the heads' convolutions.
        head_convs: 3x3 convolutions of each head.
        fc_width: of the box head's linear layer.
        anchor_size: of the finest level in pixels; it doubles from level to level.
        min_size: shorter side that pictures are resized to.
        max_size: limit of the longer side.
        proposals: kept of a picture in training after non-maximum suppression.
        rois: sampled of a picture to train the heads.
        normalized_heads: false: FPN and heads are plain convolutions with biases, as in detectors with frozen BN.
        kwargs: further arguments of torchvision's FasterRCNN.

    Raises:
        ValueError: for an unknown backbone, or trainable_layers outside 0 to 5.
    """
    if not 0 <= trainable_layers <= len(_PARTS):
        raise ValueError(f"trainable_layers must be 0 to {len(_PARTS)}, got {trainable_layers}")
    body = resnet_features(backbone)
    channels = [getattr(body, f"layer{i}")[-1].conv3.out_channels for i in (1, 2, 3, 4)]
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    norm = nn.BatchNorm2d if normalized_heads else None
    features = BackboneWithFPN(body, layers, channels, width, norm_layer=norm)
    box_head = FastRCNNConvFCHead((width, 7, 7), [width] * head_convs, [fc_width], norm_layer=norm)
    parts: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(
            tuple((anchor_size * 2**level,) for level in range(5)), ((0.5, 1.0, 2.0),) * 5
        ),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(fc_width, num_classes),
        "rpn_post_nms_top_n_train": proposals,
        "box_batch_size_per_image": rois,
        "min_size": min_size,
        "max_size": max_size,
    }
    if masks:
        parts["mask_head"] = MaskRCNNHeads(width, [width] * head_convs, 1, norm_layer=norm)
        parts["mask_predictor"] = MaskRCNNPredictor(width, width, num_classes)
    model: FasterRCNN = (MaskRCNN if masks else FasterRCNN)(features, **(parts | kwargs))
    _initialize(model)
    freeze(model, trainable_layers)
    return model


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
