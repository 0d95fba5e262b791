"""Pictures on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wsbench.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD


def picture_words(shape: str, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> str:
    """What a network on images takes, as text."""
    return f"float32 ({shape}): RGB in [0, 1], less {tuple(mean)}, over {tuple(std)}"


class PictureScale:
    """uint8 RGB to what networks take: mean and standard deviation, of [0, 1], taken out.

    The two constants are copied to a device once; a copy in every micro-step makes the host wait for the device.

    Args:
        mean: of each channel.
        std: of each channel.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self._constants: tuple[Tensor, Tensor] | None = None

    def __call__(self, pictures: Tensor, like: Tensor) -> Tensor:
        """(*, 3, H, W) uint8 to the dtype of ``like``."""
        constants = self._constants
        if constants is None or (constants[0].dtype, constants[0].device) != (like.dtype, pictures.device):
            with torch.inference_mode(False):  # an evaluation may come first, and training has to be able to use them
                scale = [1 / (255 * s) for s in self.std]
                shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
                made = torch.tensor([scale, shift], dtype=like.dtype, device=pictures.device)
                constants = self._constants = (made[0].view(3, 1, 1), made[1].view(3, 1, 1))
        return pictures.to(like.dtype).mul_(constants[0]).add_(constants[1])

    def __reduce__(self) -> tuple[type["PictureScale"], tuple[Sequence[float], Sequence[float]]]:
        return PictureScale, (self.mean, self.std)
