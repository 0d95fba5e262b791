"""The detectors' parts: what is normalized, what is frozen, how they start."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsbench.models.detection import build_detector, keep_all_boxes
from wsbench.norms import NormalizedLayer, normalize

SMALL: dict[str, Any] = {
    "width": 32, "head_convs": 1, "fc_width": 64, "min_size": 64, "max_size": 64, "anchor_size": 8, "proposals": 50,
    "rois": 16,
}  # fmt: skip


def test_the_papers_mask_rcnn() -> None:
    """69 standardized convolutions: 53 of the body, 8 of the FPN, 4 of each head; 45.77 M parameters for 91 classes."""
    model = build_detector("resnet50", 91, min_size=64, max_size=64)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(45.77, abs=0.005)
    with keep_all_boxes(model):
        report = normalize(model, "gn+ws", [torch.rand(3, 64, 64)])
    names = report.weight_normalized
    parts = ("backbone.body", "backbone.fpn", "roi_heads.box_head", "roi_heads.mask_head")
    assert [sum(n.startswith(p) for n in names) for p in parts] == [53, 8, 4, 4]
    assert len(names) == 69
    assert all(type(m) is nn.Conv2d for m in model.rpn.modules() if isinstance(m, nn.Conv2d))
    plain = [n for n in report.plain if not n.startswith("rpn.")]
    assert [n.removeprefix("roi_heads.") for n in plain] == [
        "box_head.5", "box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.conv5_mask",
        "mask_predictor.mask_fcn_logits",
    ]  # fmt: skip


def test_frozen_parts() -> None:
    """Three trainable layers: the stem, its norm and layer1 with their norms are frozen, nothing else."""
    with torch.device("meta"):
        model = build_detector("resnet_mini", 5, **SMALL)
    frozen = {
        n.removeprefix("backbone.body.").split(".")[0] for n, p in model.named_parameters() if not p.requires_grad
    }
    assert frozen == {"conv1", "bn1", "layer1"}
    assert not any(p.requires_grad for p in model.backbone.body.layer1.parameters())
    with torch.device("meta"):
        assert all(p.requires_grad for p in build_detector("resnet_mini", 5, trainable_layers=5, **SMALL).parameters())
    with pytest.raises(ValueError, match="trainable_layers must be 0 to 5, got 6"):
        build_detector("resnet_mini", 5, trainable_layers=6)


def test_initialization() -> None:
    model = build_detector("resnet_mini", 5, **(SMALL | {"width": 64, "fc_width": 256}))
    heads = model.roi_heads
    assert float(heads.box_head[0][0].weight.std()) == pytest.approx(0.01, rel=0.05)
    assert float(heads.box_predictor.cls_score.weight.std()) == pytest.approx(0.01, rel=0.1)
    assert float(heads.box_predictor.bbox_pred.weight.std()) == pytest.approx(0.001, rel=0.1)
    assert float(model.rpn.head.cls_logits.weight.std()) == pytest.approx(0.01, rel=0.2)
    fc = next(m for m in heads.box_head if isinstance(m, nn.Linear))
    assert float(fc.weight.abs().max()) <= (3 / fc.in_features) ** 0.5, "kaiming uniform, a = 1"


def test_fpn_is_a_hand_written_one() -> None:
    """Lateral 1x1 and norm, added to the level above at twice the size, 3x3 and norm, without a ReLU anywhere."""
    torch.manual_seed(0)
    model = build_detector("resnet_mini", 5, **SMALL)
    with keep_all_boxes(model):
        normalize(model, "gn+ws", [torch.rand(3, 64, 64)])
    assert isinstance(model.backbone.fpn.inner_blocks[0][0], NormalizedLayer)
    features = model.backbone.body(torch.randn(2, 3, 64, 96))
    inner, outer = model.backbone.fpn.inner_blocks, model.backbone.fpn.layer_blocks
    above, expected = None, []
    for level in (3, 2, 1, 0):
        lateral = inner[level][1](inner[level][0](features[str(level)]))
        above = lateral if above is None else lateral + F.interpolate(above, size=lateral.shape[-2:])
        expected.insert(0, outer[level][1](outer[level][0](above)))
    found = list(model.backbone.fpn(features).values())
    for ours, theirs in zip(found, expected, strict=False):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found[4], F.max_pool2d(expected[3], 1, 2))
