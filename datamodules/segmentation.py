"""Pictures with class masks, and folders of pictures to predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.palette import VOID
from wsbench.datamodules.pictures import picture_paths, read_picture
from wsbench.datamodules.sampling import Draw
from wsbench.datamodules.transforms import SegmentationTransform, pad_to, read_mask


class SegmentationSample(TypedDict):
    """One sample, or a batch of them with N in front."""

    image: Tensor
    """uint8 (3, H, W)."""
    mask: Tensor
    """uint8 (H, W): class numbers, 255 void."""
    size: Tensor
    """int64 (2,): height and width of the picture; what is beyond them, right and below, is padding."""


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
        picture, labels = read_picture(self.images[index]), self._read_mask(index)
        if labels.shape != picture.shape[1:]:
            sizes = [f"{t.shape[-1]}x{t.shape[-2]}" for t in (labels, picture)]
            raise DatasetError(f"'{self.masks[index]}' is {sizes[0]}, its picture {sizes[1]} (width x height); they "
                               "must agree")  # fmt: skip
        size: tuple[int, ...] = tuple(labels.shape)
        if self.transform is None:
            picture, labels = pad_to(picture, self.pad, self.pad, 0), pad_to(labels, self.pad, self.pad, VOID)
        elif not isinstance(draw, Draw):
            raise TypeError("training samples are drawn with a seed: index with Draw(index, seed)")
        else:
            picture, labels, size = self.transform(picture, labels, torch.Generator().manual_seed(draw.seed))
        return {"image": picture, "mask": labels, "size": torch.tensor(size)}

    def _read_mask(self, index: int) -> Tensor:
        path = self.masks[index]
        mask = open_picture(path)
        if mask.mode not in ("P", "L"):
            raise DatasetError(f"'{path}' is a {mask.mode} image; a mask is a palette or grey PNG of class numbers")
        counts = mask.histogram()
        wrong = [value for value in range(self.num_classes, VOID) if counts[value]]
        if wrong:
            raise DatasetError(
                f"'{path}' holds class numbers {wrong[:5]}, expected 0 to {self.num_classes - 1} and {VOID} for void; "
                "set --data.num_classes"
            )
        return read_mask(mask)


class PictureFolder(Dataset[dict[str, Any]]):
    """A folder of the user's pictures, for prediction."""

    def __init__(self, folder: Path, pad: int) -> None:
        self.paths = picture_paths(folder)
        self.pad = pad

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The padded picture, its path and its size (H, W)."""
        picture = F.pil_to_tensor(open_upright(self.paths[index]))
        padded = pad_to(picture, self.pad, self.pad, 0)
        return {"image": padded, "path": str(self.paths[index]), "size": torch.tensor(picture.shape[1:])}
