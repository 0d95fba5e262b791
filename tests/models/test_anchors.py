"""Anchors and RPN targets against maskrcnn-benchmark's formulas, written out in inclusive coordinates with NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou, nms

from wsbench.models.anchors import RATIOS, STRIDES, ReferenceAnchors, ReferenceRPN, inside

Array = NDArray[np.float64]
SIZES = (32, 64, 128, 256, 512)


def legacy_anchors(sizes: tuple[float, ...], height: int, width: int) -> Array:
    """All levels' anchors (n, 4), x2 and y2 inclusive, for maps of a padded image of height x width."""
    found = []
    for size, stride in zip(sizes, STRIDES, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        for i in range(rows):
            for j in range(columns):
                for ratio in RATIOS:
                    w = np.round(np.sqrt(stride * stride / ratio))
                    h = np.round(w * ratio)
                    w, h = w * size / stride, h * size / stride
                    x, y = j * stride + (stride - 1) / 2, i * stride + (stride - 1) / 2
                    found.append([x - (w - 1) / 2, y - (h - 1) / 2, x + (w - 1) / 2, y + (h - 1) / 2])
    return np.array(found)


def legacy_iou(a: Array, b: Array) -> Array:
    """(len(a), len(b)) of inclusive boxes."""
    a, b = a[:, None], b[None]
    w = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + 1
    h = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + 1
    common = w.clip(0) * h.clip(0)
    areas = [(c[..., 2] - c[..., 0] + 1) * (c[..., 3] - c[..., 1] + 1) for c in (a, b)]
    return np.asarray(common / (areas[0] + areas[1] - common))


def legacy_inside(boxes: Array, height: int, width: int) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 0] >= 0) & (boxes[:, 1] >= 0) & (boxes[:, 2] < width) & (boxes[:, 3] < height))


def legacy_labels(anchors: Array, objects: Array, height: int, width: int) -> tuple[Array, NDArray[np.int64]]:
    """1, 0 or -1 for each anchor, and the object that it is matched with."""
    iou = legacy_iou(objects, anchors)
    best = iou.argmax(0)
    value = iou.max(0)
    labels = np.where(value >= 0.7, 1.0, np.where(value < 0.3, 0.0, -1.0))
    labels[(iou == iou.max(1, keepdims=True)).any(0)] = 1.0  # each object's best anchors, however bad they are
    labels[~legacy_inside(anchors, height, width)] = -1.0
    return labels, best


def legacy_sides(boxes: Array) -> tuple[Array, Array, Array, Array]:
    w, h = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
    return w, h, boxes[:, 0] + w / 2, boxes[:, 1] + h / 2


def legacy_encode(objects: Array, anchors: Array) -> Array:
    w, h, x, y = legacy_sides(anchors)
    ow, oh, ox, oy = legacy_sides(objects)
    return np.stack([(ox - x) / w, (oy - y) / h, np.log(ow / w), np.log(oh / h)], 1)


def legacy_decode(codes: Array, anchors: Array) -> Array:
    w, h, x, y = legacy_sides(anchors)
    x, y, w, h = x + codes[:, 0] * w, y + codes[:, 1] * h, w * np.exp(codes[:, 2]), h * np.exp(codes[:, 3])
    return np.stack([x - w / 2, y - h / 2, x + w / 2 - 1, y + h / 2 - 1], 1)


def edges(boxes: Array) -> Tensor:
    """Inclusive boxes in torchvision's coordinates."""
    return torch.from_numpy(boxes + np.array([0, 0, 1, 1])).float()


def some_objects(height: int, width: int, count: int = 8) -> Array:
    """Inclusive boxes of whole pixels, of COCO's x, y, w, h."""
    draw = np.random.default_rng(1)
    w, h = draw.integers(12, width // 2, count), draw.integers(12, height // 2, count)
    x, y = draw.integers(0, width - w), draw.integers(0, height - h)
    return np.stack([x, y, x + w - 1, y + h - 1], 1).astype(np.float64)


def a_batch(*sizes: tuple[int, int]) -> tuple[ImageList, list[Tensor]]:
    """Pictures of these heights and widths, padded to a multiple of 32, and their five maps."""
    height, width = (-(-max(side) // 32) * 32 for side in zip(*sizes, strict=True))
    maps = [torch.zeros(len(sizes), 4, -(-height // s), -(-width // s)) for s in STRIDES]
    return ImageList(torch.zeros(len(sizes), 3, height, width), list(sizes)), maps


@pytest.mark.parametrize("first", [32, 8, 10])
@pytest.mark.parametrize(("height", "width"), [(320, 480), (96, 800)])
def test_the_references_anchors(first: float, height: int, width: int) -> None:
    """All levels and ratios at every place, in their order; sizes of 10 give halves and quarters of a pixel."""
    sizes = tuple(first * 2**level for level in range(5))
    found = ReferenceAnchors(sizes)(*a_batch((height, width), (height - 7, width)))
    expected = edges(legacy_anchors(sizes, height, width))
    assert len(found) == 2
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)


def test_the_shapes_that_detectron_lists() -> None:
    """Of stride 16 and sizes 128, 256, 512: the nine in Faster R-CNN's comments, from its authors' Matlab code."""
    listed = [
        [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200], [-55, -55, 72, 72],
        [-119, -119, 136, 136], [-247, -247, 264, 264], [-35, -79, 52, 96], [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ]  # fmt: skip
    found = [ReferenceAnchors((size,), strides=(16,)).cell_anchors[0] for size in (128, 256, 512)]
    # Matlab counts pixels from 1: the cell is 1..16 there and 0..15 here
    shifted = np.array(listed, dtype=np.float64) - 1
    torch.testing.assert_close(torch.stack(found, 1).view(-1, 4), edges(shifted), rtol=0, atol=0)


@pytest.mark.parametrize("first", [32, 10])
def test_inside_is_the_references(first: float) -> None:
    """Also for boxes that end on half and quarter pixels, at every border."""
    sizes = tuple(first * 2**level for level in range(5))
    anchors = legacy_anchors(sizes, 160, 160)
    for height, width in ((160, 160), (131, 157), (128, 97)):
        expected = legacy_inside(anchors, height, width)
        assert 0 < expected.sum() < len(anchors)
        assert np.array_equal(inside(edges(anchors), (height, width)).numpy(), expected)
    at_the_border = np.array([[0, 0, 98.5, 99], [0, 0, 99, 99.75], [0, 0, 99.5, 99], [0, 0, 100, 99], [-0.5, 0, 9, 9]])
    assert inside(edges(at_the_border), (100, 100)).tolist() == [True, True, True, False, False]


def test_ious_targets_decoded_boxes_and_suppression_are_the_same_numbers() -> None:
    """Of inclusive boxes and of the same boxes by their edges."""
    anchors, objects = legacy_anchors(SIZES, 96, 128), some_objects(96, 128)
    iou = box_iou(edges(objects), edges(anchors)).numpy()
    np.testing.assert_allclose(iou, legacy_iou(objects, anchors), rtol=1e-5, atol=1e-7)
    matched = objects[np.arange(len(anchors)) % len(objects)]
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    codes = coder.encode_single(edges(matched), edges(anchors))
    np.testing.assert_allclose(codes.numpy(), legacy_encode(matched, anchors), rtol=1e-5, atol=1e-6)
    draw = np.random.default_rng(2).normal(0, 0.3, (len(anchors), 4))
    decoded = coder.decode_single(torch.from_numpy(draw).float(), edges(anchors))
    expected = legacy_decode(draw, anchors)
    np.testing.assert_allclose(decoded.numpy(), edges(expected).numpy(), rtol=1e-4, atol=1e-3)
    some = anchors[::7]
    left, kept = list(range(len(some))), []
    while left:
        kept.append(left[0])
        left = [i for i in left[1:] if legacy_iou(some[kept[-1:]], some[[i]]).item() <= 0.7]
    scores = torch.arange(len(some), 0, -1).float()
    assert nms(edges(some), scores, 0.7).tolist() == kept


class Fixed(nn.Module):
    """A head that has made up its mind: objectness and deltas of each level."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        shapes = [(len(m), len(RATIOS), *m.shape[-2:]) for m in maps]
        self.objectness = [torch.randn(s, generator=draw) for s in shapes]
        self.deltas = [0.1 * torch.randn(s[0], s[1] * 4, *s[2:], generator=draw) for s in shapes]

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.objectness, self.deltas

    def change(self, chosen: Tensor) -> None:
        """Other numbers at ``chosen`` (N, anchors), in the order of the anchors."""
        at = 0
        for objectness, deltas in zip(self.objectness, self.deltas, strict=True):
            n, a, h, w = objectness.shape
            here = chosen[:, at : at + a * h * w].view(n, h, w, a).permute(0, 3, 1, 2)
            at += a * h * w
            objectness += 5.0 * here
            deltas += 0.5 * here.repeat_interleave(4, 1)


def an_rpn(cls: type[RegionProposalNetwork], head: nn.Module, sizes: tuple[int, ...] = SIZES) -> RegionProposalNetwork:
    top = {"training": 100, "testing": 50}
    rpn = RegionProposalNetwork(ReferenceAnchors(sizes), head, 0.7, 0.3, 256, 0.5, top, top, 0.7)
    return ReferenceRPN.like(rpn) if cls is ReferenceRPN else rpn


SHAPES = ((131, 190), (160, 157))


def a_case() -> tuple[ImageList, dict[str, Tensor], list[dict[str, Tensor]], Array, list[Array]]:
    images, maps = a_batch(*SHAPES)
    objects = [some_objects(*shape) for shape in SHAPES]
    anchors = legacy_anchors(SIZES, *images.tensors.shape[-2:])
    features = {str(i): m for i, m in enumerate(maps)}
    return images, features, [{"boxes": edges(o)} for o in objects], anchors, objects


def test_labels_and_targets_are_the_references() -> None:
    """In two images of different sizes, the smaller one padded: outside is -1, whatever it would be matched with."""
    images, features, targets, anchors, objects = a_case()
    rpn = an_rpn(ReferenceRPN, Fixed(list(features.values())))
    boxes = rpn.anchor_generator(images, list(features.values()))
    sized = [{**t, "image_size": s} for t, s in zip(targets, images.image_sizes, strict=True)]
    labels, matched = rpn.assign_targets_to_anchors(boxes, sized)
    plain, _ = an_rpn(RegionProposalNetwork, rpn.head).assign_targets_to_anchors(boxes, targets)
    codes = rpn.box_coder.encode(matched, boxes)
    for k, shape in enumerate(SHAPES):
        expected, best = legacy_labels(anchors, objects[k], *shape)
        assert np.array_equal(labels[k].numpy(), expected)
        assert {1.0, 0.0, -1.0} == set(expected)
        positive = expected == 1
        wanted = legacy_encode(objects[k][best], anchors)
        np.testing.assert_allclose(codes[k].numpy()[positive], wanted[positive], rtol=1e-4, atol=1e-5)
        outside = ~legacy_inside(anchors, *shape)
        assert bool((labels[k][outside] == -1).all())
        assert torch.equal(labels[k][~outside], plain[k][~outside])
        assert bool((plain[k][outside] >= 0).any()), "torchvision trains anchors outside"


def test_a_picture_without_objects() -> None:
    images, features, *_ = a_case()
    rpn = an_rpn(ReferenceRPN, Fixed(list(features.values())))
    boxes = rpn.anchor_generator(images, list(features.values()))
    empty = {"boxes": torch.zeros(0, 4), "image_size": SHAPES[0]}
    (labels,), _ = rpn.assign_targets_to_anchors(boxes[:1], [empty])
    assert torch.equal(labels == 0, inside(boxes[0], SHAPES[0]))
    assert bool(((labels == 0) | (labels == -1)).all())


@pytest.mark.parametrize("cls", [ReferenceRPN, RegionProposalNetwork])
def test_losses_do_not_see_anchors_outside(cls: type[RegionProposalNetwork]) -> None:
    """The same whatever is predicted there; torchvision's change with it, and proposals do in both."""
    images, features, targets, anchors, _ = a_case()
    head = Fixed(list(features.values()))
    rpn = an_rpn(cls, head).train()

    def run() -> tuple[list[Tensor], dict[str, Tensor]]:
        torch.manual_seed(4)  # the same anchors are drawn
        return rpn(images, features, targets)  # type: ignore[no-any-return]

    proposals, losses = run()
    within = torch.stack([torch.from_numpy(legacy_inside(anchors, *shape)) for shape in SHAPES])
    head.change(~within)
    others, after = run()
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg"}
    assert all(torch.equal(after[name], losses[name]) for name in losses) == (cls is ReferenceRPN)
    assert not torch.equal(others[0], proposals[0])
    head.change(within)
    _, last = run()
    assert not any(torch.equal(last[name], losses[name]) for name in losses)


def test_no_anchor_inside_is_no_loss() -> None:
    """Of images of 8 pixels; the reference's are not a number."""
    images, maps = a_batch((8, 8), (8, 8))
    features = {str(i): m for i, m in enumerate(maps)}
    head = Fixed(maps)
    for tensor in (*head.objectness, *head.deltas):
        tensor.requires_grad_(True)
    rpn = an_rpn(ReferenceRPN, head).train()
    target = {"boxes": torch.tensor([[1.0, 1.0, 6.0, 6.0]])}
    _, losses = rpn(images, features, [target, target])
    total = torch.stack(list(losses.values())).sum()
    assert float(total.detach()) == 0.0
    torch.autograd.backward(total)
    assert all(t.grad is not None and not t.grad.any() for t in (*head.objectness, *head.deltas))


def test_in_half_precision_anchors_are_exact() -> None:
    """Also after it: torchvision rounds its cells once and for all."""
    images, maps = a_batch((320, 800))
    ours = ReferenceAnchors(SIZES)
    exact = edges(legacy_anchors(SIZES, 320, 800))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        (found,) = ours(images, [m.to(dtype) for m in maps])
        assert torch.equal(found, exact)
    theirs = AnchorGenerator(tuple((s,) for s in SIZES), (RATIOS,) * 5)
    (rounded,) = theirs(images, [m.bfloat16() for m in maps])
    assert rounded.dtype == torch.bfloat16


def test_wrong_numbers_of_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="one size and one stride, got 4 and 5"):
        ReferenceAnchors((32, 64, 128, 256))
