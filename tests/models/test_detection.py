"""The detectors' parts: what is normalized, what is frozen, how they start."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork

from wsbench.models.anchors import ReferenceAnchors, ReferenceRPN
from wsbench.models.detection import (
    ANCHORS,
    DIFFERENCES,
    TORCHVISION_ANCHOR_DIFFERENCES,
    Anchors,
    DetectorSettings,
    build_detector,
    keep_all_boxes,
)
from wsbench.norms import NormalizedLayer, normalize

SMALL: dict[str, Any] = {
    "width": 32, "head_convs": 1, "fc_width": 64, "min_size": 64, "max_size": 64, "anchor_size": 8, "proposals": 50,
    "rois": 16,
}  # fmt: skip


def test_the_papers_mask_rcnn() -> None:
    """69 standardized convolutions: 53 of the body, 8 of the FPN, 4 of each head; 45.77 M parameters for 91 classes."""
    model = build_detector("resnet50", 91, settings=DetectorSettings(min_size=64, max_size=64))
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
        model = build_detector("resnet_mini", 5, settings=DetectorSettings(**SMALL))
    frozen = {
        n.removeprefix("backbone.body.").split(".")[0] for n, p in model.named_parameters() if not p.requires_grad
    }
    assert frozen == {"conv1", "bn1", "layer1"}
    assert not any(p.requires_grad for p in model.backbone.body.layer1.parameters())
    with torch.device("meta"):
        whole = build_detector("resnet_mini", 5, settings=DetectorSettings(trainable_layers=5, **SMALL))
        assert all(p.requires_grad for p in whole.parameters())
    with pytest.raises(ValueError, match="trainable_layers must be 0 to 5, got 6"):
        DetectorSettings(trainable_layers=6)


def test_initialization() -> None:
    model = build_detector("resnet_mini", 5, settings=DetectorSettings(**(SMALL | {"width": 64, "fc_width": 256})))
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
    model = build_detector("resnet_mini", 5, settings=DetectorSettings(**SMALL))
    with keep_all_boxes(model):
        normalize(model, "gn+ws", [torch.rand(3, 64, 64)])
    assert isinstance(model.backbone.fpn.inner_blocks[0][0], NormalizedLayer)
    features = model.backbone.body(torch.randn(2, 3, 64, 96))
    inner, outer = model.backbone.fpn.inner_blocks, model.backbone.fpn.layer_blocks
    above, expected = None, list[Tensor]()
    for level in (3, 2, 1, 0):
        lateral = inner[level][1](inner[level][0](features[str(level)]))
        above = lateral if above is None else lateral + F.interpolate(above, size=lateral.shape[-2:])
        expected.insert(0, outer[level][1](outer[level][0](above)))
    found = list(model.backbone.fpn(features).values())
    for ours, theirs in zip(found, expected, strict=False):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found[4], F.max_pool2d(expected[3], 1, 2))


def a_target() -> dict[str, Tensor]:
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 10:50, 8:40] = 1
    return {"boxes": torch.tensor([[8.0, 10.0, 40.0, 50.0]]), "labels": torch.tensor([2]), "masks": mask}


@pytest.mark.parametrize("anchors", ANCHORS)
def test_kinds_of_anchors(anchors: Anchors) -> None:
    """Either trains and finds; their settings are those that were asked for."""
    torch.manual_seed(0)
    model = build_detector(
        "resnet_mini", 5, settings=DetectorSettings(anchors=anchors, **SMALL), rpn_pre_nms_top_n_test=70,
        rpn_nms_thresh=0.6,
    )  # fmt: skip
    rpn = model.rpn
    reference = anchors == "reference"
    assert type(rpn) is (ReferenceRPN if reference else RegionProposalNetwork)
    assert type(rpn.anchor_generator) is (ReferenceAnchors if reference else AnchorGenerator)
    assert rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 2000, "testing": 70}, {"training": 50, "testing": 1000}
    )  # fmt: skip
    assert (rpn.nms_thresh, rpn.min_size, rpn.score_thresh) == (0.6, 1e-3, 0.0)
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.7, 0.3)
    assert rpn.proposal_matcher.allow_low_quality_matches
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    losses = model([torch.rand(3, 64, 64)] * 2, [a_target(), a_target()])
    assert len(losses) == 5
    assert all(bool(loss.isfinite()) for loss in losses.values())
    with keep_all_boxes(model.eval()), torch.no_grad():
        (found,) = model([torch.rand(3, 64, 80)])
    assert len(found["boxes"]) == len(found["masks"]) > 0


def test_kinds_of_anchors_share_their_weights() -> None:
    """The same keys, shapes and, from one seed, the same numbers: a checkpoint loads into either."""
    states = []
    for anchors in ANCHORS:
        torch.manual_seed(0)
        settings = DetectorSettings(anchors=anchors, **SMALL)
        states.append(build_detector("resnet_mini", 5, settings=settings).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with pytest.raises(ValueError, match="anchors must be one of reference, torchvision, got 'x'"):
        DetectorSettings(anchors="x")  # type: ignore[arg-type]


def test_torchvisions_anchors_are_torchvisions() -> None:
    model = build_detector("resnet_mini", 5, settings=DetectorSettings(anchors="torchvision", **SMALL))
    plain = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5)
    found = model.rpn.anchor_generator.cell_anchors
    assert all(torch.equal(a, b) for a, b in zip(found, plain.cell_anchors, strict=True))


def test_anchors_do_not_depend_on_the_default_device() -> None:
    """A detector that is built on meta has its anchors, which are no part of the state."""
    with torch.device("meta"):
        model = build_detector("resnet_mini", 5, settings=DetectorSettings(**SMALL))
    assert {a.device.type for a in model.rpn.anchor_generator.cell_anchors} == {"cpu"}


def test_differences_are_phrases_for_a_record() -> None:
    for phrase in (*DIFFERENCES, *TORCHVISION_ANCHOR_DIFFERENCES):
        assert len(phrase) < 120
        assert phrase == phrase.strip(" .;")
