"""Pictures on the device."""

from collections.abc import Sequence

from torch import Tensor

from wsbench.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD


def picture_words(shape: str, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> str:
    """What a network on pictures takes, in words."""
    return f"float32 ({shape}): RGB in [0, 1], less {tuple(mean)}, over {tuple(std)}"


def normalized(
    pictures: Tensor, dtype: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """uint8 RGB (*, 3, H, W) to the dtype of ``dtype``, mean and standard deviation (of [0, 1]) taken out."""
    scale = dtype.new_tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
    shift = dtype.new_tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)
    return pictures.to(dtype.dtype).mul_(scale).add_(shift)
