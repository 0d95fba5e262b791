"""Pictures with class masks, and folders of pictures to predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.palette import VOID
from wsbench.datamodules.pictures import picture_paths
from wsbench.datamodules.sampling import Draw
from wsbench.datamodules.transforms import SegmentationTransform, mask_tensor, pad_to, to_normalized_tensor


class SegmentationSample(TypedDict):
    """One sample, or a batch of them with N in front."""

    image: Tensor
    """float32 (3, H, W), normalized."""
    mask: Tensor
    """uint8 (H, W): class numbers, 255 void."""


def open_picture(path: Path) -> Image.Image:
    """Read a picture completely; a DatasetError names a file that cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError) as error:
        raise DatasetError(f"cannot read '{path}': {error}; replace the file") from error


def open_upright(path: Path) -> Image.Image:
    """Read a user's picture as RGB, turned as its camera says."""
    return ImageOps.exif_transpose(open_picture(path)).convert("RGB")


class SegmentationDataset(Dataset[SegmentationSample]):
    """Pictures and masks.

    Args:
        images: the pictures.
        masks: their masks, in the same order.
        num_classes: masks hold 0 .. num_classes - 1 and 255; anything else is an error naming the file.
        transform: the training transform, drawn from the seed of each Draw; None is evaluation, full resolution.
        pad: evaluation only: pad right and bottom to this side, the mask with void.
        help_command: the command that says how to get the data.

    Raises:
        DatasetError: files are missing.
    """

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        num_classes: int,
        transform: SegmentationTransform | None = None,
        pad: int = 0,
        help_command: str = "python -m wsbench data",
    ) -> None:
        self.images, self.masks = images, masks
        self.num_classes, self.transform, self.pad = num_classes, transform, pad
        missing = [p for p in (*self.images, *self.masks) if not p.is_file()]
        if missing:
            some = ", ".join(f"'{p}'" for p in missing[:3])
            raise DatasetError(f"{len(missing)} files are missing, among them {some}; see `{help_command}`")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw | int) -> SegmentationSample:
        """Read one sample; a Draw says which and seeds its augmentation."""
        index = draw.index if isinstance(draw, Draw) else draw
        image, mask = open_picture(self.images[index]).convert("RGB"), open_picture(self.masks[index])
        self._check(index, image, mask)
        if self.transform is None:
            picture, labels = to_normalized_tensor(image), mask_tensor(mask)
            return {"image": pad_to(picture, self.pad, self.pad, 0.0), "mask": pad_to(labels, self.pad, self.pad, VOID)}
        if not isinstance(draw, Draw):
            raise TypeError("training samples are drawn with a seed: index with Draw(index, seed)")
        picture, labels = self.transform(image, mask, torch.Generator().manual_seed(draw.seed))
        return {"image": picture, "mask": labels}

    def _check(self, index: int, image: Image.Image, mask: Image.Image) -> None:
        path = self.masks[index]
        if mask.mode not in ("P", "L"):
            raise DatasetError(f"'{path}' is a {mask.mode} image; a mask is a palette or grey PNG of class numbers")
        if mask.size != image.size:
            raise DatasetError(f"'{path}' is {mask.size}, its picture {image.size} (width, height); they must agree")
        wrong = [value for _, value in mask.getcolors() or [] if isinstance(value, int)]
        wrong = sorted(v for v in wrong if self.num_classes <= v != VOID)
        if wrong:
            raise DatasetError(
                f"'{path}' holds class numbers {wrong[:5]}, expected 0 to {self.num_classes - 1} and {VOID} for void; "
                "set --data.num_classes"
            )


class PictureFolder(Dataset[dict[str, Any]]):
    """A folder of the user's pictures, for prediction."""

    def __init__(self, folder: Path, pad: int) -> None:
        self.paths = picture_paths(folder)
        self.pad = pad

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The padded picture, its path and its size (H, W)."""
        picture = to_normalized_tensor(open_upright(self.paths[index]))
        padded = pad_to(picture, self.pad, self.pad, 0.0)
        return {"image": padded, "path": str(self.paths[index]), "size": tuple(picture.shape[1:])}
