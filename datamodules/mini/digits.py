"""scikit-learn's 1,797 handwritten digits, in two disjoint sets, as stamps to paint with."""

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Split = Literal["train", "val"]


@cache
def digits(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 8, 8) of 0..255 and labels (n,); 1,257 train and 540 validation digits, none in both."""
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(images, data.target, test_size=0.3, random_state=0, stratify=data.target)
    return (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])


def stamp(image: NDArray[np.uint8], size: int, angle: float) -> NDArray[np.float32]:
    """Ink in 0..1 of a digit drawn ``size`` pixels high and turned by ``angle`` degrees, cropped to the ink."""
    big = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    turned = big.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    ink: NDArray[np.float32] = np.asarray(turned, np.float32) / np.float32(255)
    rows, columns = np.where(ink > 0.4)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
