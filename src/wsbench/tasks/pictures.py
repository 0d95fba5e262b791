"""Pictures on the device."""

from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalized(pictures: Tensor, dtype: Tensor) -> Tensor:
    """uint8 RGB (*, 3, H, W) to float, ImageNet's mean and standard deviation taken out; the dtype of ``dtype``."""
    scale = dtype.new_tensor([1 / (255 * s) for s in IMAGENET_STD]).view(3, 1, 1)
    shift = dtype.new_tensor([-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]).view(3, 1, 1)
    return pictures.to(dtype.dtype).mul_(scale).add_(shift)
