"""Images with class masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.masks import open_mask
from wsbench.datamodules.palette import VOID
from wsbench.datamodules.pictures import read_picture
from wsbench.datamodules.sampling import Draw
from wsbench.datamodules.transforms import SegmentationTransform, pad_to, read_mask


class SegmentationSample(TypedDict):
    """One sample, or a batch of them with N in front."""

    image: Tensor
    """uint8 (3, H, W)."""
    mask: Tensor
    """uint8 (H, W): class numbers, 255 void."""
    size: Tensor
    """int64 (2,): height and width of the image; what is beyond them, right and below, is padding."""


class SegmentationDataset(Dataset[SegmentationSample]):
    """Images and masks.

    Args:
        images: the images.
        masks: their masks, in the same order.
        num_classes: masks hold 0 .. num_classes - 1 and 255; anything else is an error naming the file.
        transform: the training transform, drawn from the seed of each Draw; None is evaluation, full resolution.
        pad: evaluation only: pad right and bottom to this side, the mask with void.
    """

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        num_classes: int,
        transform: SegmentationTransform | None = None,
        pad: int = 0,
    ) -> None:
        self.images, self.masks = images, masks
        self.num_classes, self.transform, self.pad = num_classes, transform, pad

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> Path:
        """The image of a sample."""
        return self.images[index]

    def __getitem__(self, draw: Draw | int) -> SegmentationSample:
        """Read one sample; a Draw says which and seeds its augmentation."""
        index = draw.index if isinstance(draw, Draw) else draw
        image, labels = self._read(index)
        size: tuple[int, ...] = tuple(labels.shape)
        if self.transform is None:
            image, labels = pad_to(image, self.pad, self.pad, 0), pad_to(labels, self.pad, self.pad, VOID)
        elif not isinstance(draw, Draw):
            raise TypeError("training samples are drawn with a seed: index with Draw(index, seed)")
        else:
            image, labels, size = self.transform(image, labels, torch.Generator().manual_seed(draw.seed))
        return {"image": image, "mask": labels, "size": torch.tensor(size)}

    def check(self, index: int) -> None:
        """Read an image and its mask; DatasetError if it cannot be done."""
        self._read(index)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = read_picture(self.images[index]), self._read_mask(index)
        if labels.shape != image.shape[1:]:
            sizes = [f"{t.shape[-1]}x{t.shape[-2]}" for t in (labels, image)]
            raise DatasetError(f"'{self.masks[index]}' is {sizes[0]}, its image {sizes[1]} (width x height); they "
                               "must agree")  # fmt: skip
        return image, labels

    def _read_mask(self, index: int) -> Tensor:
        path = self.masks[index]
        mask = open_mask(path)
        counts = mask.histogram()
        wrong = [value for value in range(self.num_classes, VOID) if counts[value]]
        if wrong:
            raise DatasetError(
                f"'{path}' holds class numbers {wrong[:5]}, expected 0 to {self.num_classes - 1} and {VOID} for void; "
                "set --data.num_classes or --data.class_names, or correct the mask"
            )
        return read_mask(mask)


def collate(batch: Sequence[SegmentationSample]) -> dict[str, Tensor]:
    """Stack samples; smaller images are padded right and bottom to the largest, their masks with void."""
    height, width = (max(s["image"].shape[side] for s in batch) for side in (1, 2))
    return {
        "image": torch.stack([pad_to(s["image"], height, width, 0) for s in batch]),
        "mask": torch.stack([pad_to(s["mask"], height, width, VOID) for s in batch]),
        "size": torch.stack([s["size"] for s in batch]),
    }


def read_padded(path: Path, side: int, upright: bool = True) -> dict[str, Any]:
    """A user's image, uint8 (3, H, W), padded right and bottom to ``side``, and its size (H, W)."""
    image = read_picture(path, upright)
    return {"image": pad_to(image, side, side, 0), "size": torch.tensor(image.shape[1:])}
