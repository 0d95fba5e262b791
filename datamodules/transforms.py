"""Segmentation transforms in the order of the paper's code."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from wsbench.datamodules.palette import VOID

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["lanczos", "bilinear", "bicubic"]


def to_normalized_tensor(image: Image.Image) -> Tensor:
    """RGB picture to float32 (3, H, W), ImageNet's mean and standard deviation taken out."""
    tensor = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
    normalized: Tensor = F.normalize(tensor, list(IMAGENET_MEAN), list(IMAGENET_STD))
    return normalized


def mask_tensor(mask: Image.Image) -> Tensor:
    """Class mask to uint8 (H, W), palette or not."""
    tensor: Tensor = F.pil_to_tensor(mask)
    return tensor[0]


def pad_to(tensor: Tensor, height: int, width: int, fill: float) -> Tensor:
    """Pad (*, H, W) at the right and the bottom to at least ``height`` x ``width``."""
    right, bottom = max(0, width - tensor.shape[-1]), max(0, height - tensor.shape[-2])
    return torch.nn.functional.pad(tensor, (0, right, 0, bottom), value=fill)


@dataclass(frozen=True)
class SegmentationTransform:
    """Flip, scale, normalize, pad, crop.

    1. with probability ``flip`` mirror both;
    2. resize both by 2^U(log2 low, log2 high), the picture by ``interpolation``, the mask by nearest neighbour;
    3. picture to float, ImageNet's mean and standard deviation;
    4. pad right and bottom to the crop: the picture with 0, which is the mean colour now, the mask with 255;
    5. crop at a uniform place.

    Source: chenxi116/DeepLabv3.pytorch @ 046818d.

    Args:
        crop: side of the square crop in pixels.
        scale: low and high of the scale; (1, 1) does not resize.
        flip: probability of the mirror.
        interpolation: of the picture; the authors used Pillow's antialiasing filter, which is Lanczos.
    """

    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    interpolation: Interpolation = "lanczos"

    def __call__(self, image: Image.Image, mask: Image.Image, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An RGB picture and its mask to float32 (3, crop, crop) and uint8 (crop, crop)."""

        def uniform() -> float:
            return float(torch.rand((), generator=generator, dtype=torch.float64))

        if uniform() < self.flip:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        low, high = (math.log2(s) for s in self.scale)
        factor = 2 ** (low + (high - low) * uniform())
        if self.scale != (1.0, 1.0):
            size = [max(1, int(side * factor)) for side in (image.height, image.width)]
            image = F.resize(image, size, InterpolationMode(self.interpolation))
            mask = F.resize(mask, size, InterpolationMode.NEAREST)
        picture = pad_to(to_normalized_tensor(image), self.crop, self.crop, 0.0)
        labels = pad_to(mask_tensor(mask), self.crop, self.crop, VOID)
        top = int(uniform() * (picture.shape[1] - self.crop + 1))
        left = int(uniform() * (picture.shape[2] - self.crop + 1))
        place = (..., slice(top, top + self.crop), slice(left, left + self.crop))
        return picture[place], labels[place]
