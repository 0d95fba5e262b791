"""Anchors and the RPN's targets as in maskrcnn-benchmark, for torchvision's detectors.

**Coordinates.** There a box [x1, y1, x2, y2] includes its last pixel: its width is x2 - x1 + 1, and an object of COCO's
[x, y, w, h] is [x, y, x + w - 1, y + h - 1]. Here, as everywhere in torchvision, x2 is an edge and the width x2 - x1.
The same box is [x1, y1, x2 + 1, y2 + 1] here. Under that map widths, heights and centres (x1 + width / 2 in both), so
intersections, areas, IoUs, matches and regression targets are those of the reference without another change, and a
decoded box is the decoded box. tests/models/test_anchors.py shows each against the formulas in inclusive coordinates.

**Shapes.** A level of stride s has a base box of s x s. For ratio r (height over width) its width is round(s / sqrt(r))
and its height round(width r), half to even; then both are multiplied by size / s. At stride 4, ratio 1/2 and size 32
that is 48 x 24, where torchvision has 46 x 22.

**Places.** The centre is at (s - 1) / 2 in inclusive coordinates, which is s / 2 in edges: the middle of the cell.
torchvision has it in the cell's corner, and takes for s what the padded picture's size divided by the map's gives:
61 and not 64 at the coarsest level of an image of 800 pixels.

**Outside.** An anchor that leaves the image (resized, not padded) takes no part in the RPN's losses, by a straddle
threshold of 0: inside is x1 >= 0, y1 >= 0, x2 < width, y2 < height in inclusive coordinates. It is matched all the
same, so an object whose best anchor is outside is left without that one. torchvision trains all anchors. In both, all
of them make proposals.

Source: modeling/rpn/{anchor_generator,loss}.py, modeling/box_coder.py and structures/{bounding_box,boxlist_ops}.py of
facebookresearch/maskrcnn-benchmark, of which joe-siyuan-qiao/maskrcnn-benchmark @ 8721745 is a fork.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

#: of the levels P2 to P6 of an FPN on a ResNet, in pixels
STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)


def cell_anchors(size: float, stride: int, ratios: Sequence[float] = RATIOS) -> Tensor:
    """The anchors of a level's first cell.

    Args:
        size: side of the square anchor, in pixels.
        stride: of the level, in pixels.
        ratios: height over width.

    Returns:
        (len(ratios), 4) float32: x1, y1, x2, y2 in pixels, x2 and y2 edges.
    """
    # on the CPU whatever the default device: a detector that is built on meta has its anchors, as torchvision's
    ratio = torch.tensor(ratios, dtype=torch.float64, device="cpu")
    widths = (stride**2 / ratio).sqrt().round()
    half = torch.stack((widths, (widths * ratio).round()), 1) * (size / stride / 2)
    return torch.cat((stride / 2 - half, stride / 2 + half), 1).float()


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which boxes do not leave the image, by the reference's rule.

    Its x2 < width for inclusive coordinates is x2 < width + 1 for edges. For whole numbers that is x2 <= width, but a
    box that ends half a pixel outside is inside by this rule.

    Args:
        boxes: (n, 4), x2 and y2 edges.
        size: height and width of the image without padding.

    Returns:
        (n,) bool.
    """
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x1 >= 0) & (y1 >= 0) & (x2 < width + 1) & (y2 < height + 1)


class ReferenceAnchors(AnchorGenerator):  # type: ignore[misc]
    """The reference's anchors at its strides, in edge coordinates; float32 or wider, whatever the features are.

    Args:
        sizes: side of the square anchor of each level, in pixels.
        ratios: height over width, of every level.
        strides: of each level, in pixels.

    Raises:
        ValueError: there are not as many sizes as strides.
    """

    def __init__(
        self, sizes: Sequence[float], ratios: Sequence[float] = RATIOS, strides: Sequence[int] = STRIDES
    ) -> None:
        if len(sizes) != len(strides):
            raise ValueError(f"every level has one size and one stride, got {len(sizes)} and {len(strides)}")
        super().__init__(tuple((size,) for size in sizes), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)
        self.cell_anchors = [cell_anchors(*level, ratios) for level in zip(sizes, strides, strict=True)]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of every image, the same for all.

        Args:
            image_list: the batch.
            feature_maps: (N, C, H, W) of each level, finest first.

        Returns:
            (anchors, 4) for each image, ordered by level, row, column and ratio.
        """
        first = feature_maps[0]
        # half precision cannot tell pixels above 256 (bfloat16) or 2,048 (float16) apart
        self.set_cell_anchors(torch.promote_types(first.dtype, torch.float32), first.device)
        grids = [feature.shape[-2:] for feature in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))
        return [anchors for _ in image_list.image_sizes]


class ReferenceRPN(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's RPN, whose losses leave out the anchors that leave the image."""

    @classmethod
    def like(cls, rpn: RegionProposalNetwork) -> "ReferenceRPN":
        """One with the settings, the head and the anchor generator of ``rpn``."""
        return cls(
            rpn.anchor_generator,
            rpn.head,
            fg_iou_thresh=rpn.proposal_matcher.high_threshold,
            bg_iou_thresh=rpn.proposal_matcher.low_threshold,
            batch_size_per_image=rpn.fg_bg_sampler.batch_size_per_image,
            positive_fraction=rpn.fg_bg_sampler.positive_fraction,
            pre_nms_top_n=rpn._pre_nms_top_n,
            post_nms_top_n=rpn._post_nms_top_n,
            nms_thresh=rpn.nms_thresh,
            score_thresh=rpn.score_thresh,
        )

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Any]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As torchvision's: proposals (n, 4) of each image, and in training the two losses."""
        if targets is not None:  # torchvision's own forward hands the targets on, and not the pictures' sizes
            sized = zip(targets, images.image_sizes, strict=True)
            targets = [{**target, "image_size": size} for target, size in sized]
        return super().forward(images, features, targets)  # type: ignore[no-any-return]

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's, with label -1 for an anchor outside, which the sampler draws neither way.

        Args:
            anchors: (n, 4) of each image.
            targets: ``boxes`` (m, 4), x2 and y2 edges, and ``image_size``, height and width without padding.

        Returns:
            Labels (n,): 1 object, 0 background, -1 neither; and the matched boxes (n, 4), of each image.
        """
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            label.masked_fill_(~inside(anchor, target["image_size"]), -1.0)
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As torchvision's; zero where every anchor has label -1, as in an image smaller than all anchors.

        (The reference's losses, means over no anchors, are not a number there.)
        """
        if not any(bool((label >= 0).any()) for label in labels):
            return objectness.sum() * 0.0, pred_bbox_deltas.sum() * 0.0
        return super().compute_loss(  # type: ignore[no-any-return]
            objectness, pred_bbox_deltas, labels, regression_targets
        )
