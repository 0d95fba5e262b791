"""PASCAL VOC's colours."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VOID = 255


def voc_palette() -> list[int]:
    """256 x RGB: bit i of red, green and blue, from the top, is bit 3 i, 3 i + 1 and 3 i + 2 of the class."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    flat: list[int] = colours.flatten().tolist()
    return flat


def palette_image(mask: NDArray[np.uint8], colours: list[int] | None = None) -> Image.Image:
    """A mask (H, W) of class numbers as a palette image, which opens in colours (VOC's) and reads back as numbers."""
    image = Image.fromarray(mask)
    image.putpalette(colours or voc_palette())
    return image
