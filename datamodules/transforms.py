"""Segmentation transforms in the order of the paper's code, on uint8 tensors."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from wsbench.datamodules.palette import VOID

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["lanczos", "bilinear", "bicubic"]
Rounding = Literal["nearest", "down"]


def pad_to(tensor: Tensor, height: int, width: int, fill: int) -> Tensor:
    """Pad (*, H, W) at the right and the bottom to at least ``height`` x ``width``."""
    right, bottom = max(0, width - tensor.shape[-1]), max(0, height - tensor.shape[-2])
    return torch.nn.functional.pad(tensor, (0, right, 0, bottom), value=fill) if right or bottom else tensor


def resize(picture: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    """uint8 (3, H, W) to (3, height, width), antialiased as Pillow does it."""
    if interpolation == "lanczos" and not _torch_has_lanczos():
        resized: Tensor = F.pil_to_tensor(F.resize(F.to_pil_image(picture), [height, width], InterpolationMode.LANCZOS))
        return resized
    out: Tensor = torch.nn.functional.interpolate(picture[None], (height, width), mode=interpolation, antialias=True)
    return out[0]


@cache
def _torch_has_lanczos() -> bool:
    """Torch 2.14 has it, 2.8 has not."""
    try:
        torch.nn.functional.interpolate(torch.zeros(1, 1, 2, 2), (1, 1), mode="lanczos", antialias=True)
    except (NotImplementedError, ValueError):  # antialiasing refused for this mode, or the mode unknown
        return False
    return True


def resized_crop(picture: Tensor, size: tuple[int, int], place: tuple[slice, slice], mode: Interpolation) -> Tensor:
    """``resize(picture, *size, mode)[:, *place]`` to the bit, without computing most of what the crop leaves out.

    The resize is a horizontal pass and then a vertical one. The first is done for the rows only that the second will
    look at, and the second for the columns only that are kept; both run over whole rows and columns, so the sampling
    grid is that of the whole image.

    Args:
        picture: uint8 (3, H, W).
        size: height and width after the resize.
        place: rows and columns of the crop, within ``size``.
        mode: of the interpolation.
    """
    rows, columns = place
    height = picture.shape[1]
    if size == tuple(picture.shape[1:]):
        return picture[:, rows, columns]
    scale = height / size[0]
    reach = math.ceil(3 * max(scale, 1.0)) + 1  # of Lanczos, the widest of the filters
    first = max(0, math.floor(rows.start * scale) - reach)
    last = min(height, math.ceil(rows.stop * scale) + reach)
    wide = resize(picture[:, first:last], last - first, size[1], mode)[:, :, columns]
    whole = wide.new_empty(3, height, wide.shape[2])
    whole[:, first:last] = wide
    return resize(whole, size[0], wide.shape[2], mode)[:, rows]


def nearest(labels: Tensor, size: tuple[int, int], place: tuple[slice, slice]) -> Tensor:
    """(H, W) resized to ``size`` by nearest neighbour as Pillow does it, and cropped at ``place``."""
    rows, columns = (
        _places(before, after)[part] for part, before, after in zip(place, labels.shape, size, strict=True)
    )
    return labels[rows[:, None], columns]


def _places(before: int, after: int) -> Tensor:
    """Where each of ``after`` values comes from; summed step by step as Pillow does it, whose rounding decides ties."""
    steps = np.full(after, before / after)
    steps[0] *= 0.5
    return torch.from_numpy(steps.cumsum().astype(np.int64))


@dataclass(frozen=True)
class SegmentationTransform:
    """Flip, scale, pad, crop; what it returns is normalized on the device.

    1. with probability ``flip`` mirror both;
    2. resize both by 2^U(log2 low, log2 high), the image by ``interpolation``, the mask by nearest neighbour;
    3. pad right and bottom to the crop: the mask with 255; the image will be 0 there after normalization;
    4. crop at a uniform place.

    Source: chenxi116/DeepLabv3.pytorch @ 046818d, which normalizes between 2 and 3. Nothing is computed twice or
    outside the crop, and pixels are the same.

    Args:
        crop: side of the square crop in pixels.
        scale: low and high of the scale; (1, 1) does not resize.
        flip: probability of the mirror.
        interpolation: of the image; the authors used Pillow's antialiasing filter, which is Lanczos.
        rounding: of the scaled height and width; the authors round to the nearest integer.
    """

    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    interpolation: Interpolation = "lanczos"
    rounding: Rounding = "nearest"

    def scaled(self, height: int, width: int, factor: float) -> tuple[int, int]:
        """Height and width after scaling."""
        to_int = round if self.rounding == "nearest" else int
        return max(1, to_int(height * factor)), max(1, to_int(width * factor))

    def __call__(
        self, picture: Tensor, mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """An image uint8 (3, H, W) and its mask uint8 (H, W).

        Returns:
            uint8 (3, crop, crop) and (crop, crop), and the height and width within which they are not padding.
        """

        def uniform() -> float:
            return float(torch.rand((), generator=generator, dtype=torch.float64))

        if uniform() < self.flip:
            picture, mask = picture.flip(-1), mask.flip(-1)
        low, high = (math.log2(s) for s in self.scale)
        factor = 2 ** (low + (high - low) * uniform())
        height, width = mask.shape
        size = self.scaled(height, width, factor)
        if self.scale == (1.0, 1.0):
            size = (height, width)
        starts = [int(uniform() * (max(side, self.crop) - self.crop + 1)) for side in size]
        stops = [min(start + self.crop, side) for start, side in zip(starts, size, strict=True)]
        place = (slice(starts[0], stops[0]), slice(starts[1], stops[1]))
        image, labels = resized_crop(picture, size, place, self.interpolation), nearest(mask, size, place)
        height, width = labels.shape
        crop = self.crop
        return pad_to(image, crop, crop, 0).contiguous(), pad_to(labels, crop, crop, VOID), (height, width)


def read_mask(mask: Image.Image) -> Tensor:
    """Class mask to uint8 (H, W), palette or not."""
    tensor: Tensor = F.pil_to_tensor(mask)
    return tensor[0]
