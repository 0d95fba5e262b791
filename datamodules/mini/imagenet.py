"""The miniature of ImageNet: one handwritten digit on clutter, in class folders of JPEG files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsbench.datamodules.mini.digits import Split, digits, stamp

NAME = "imagenet-mini-v1"
COUNTS: dict[Split, int] = {"train": 2000, "val": 500}
CLASSES = tuple(f"n0000000{digit}" for digit in range(10))


def picture(rng: np.random.Generator, ink: NDArray[np.float32], clutter: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of one light digit, whole, on a dark, smooth background with corners of other digits."""
    height, width = (int(v) for v in rng.integers(64, 81, 2))
    coarse = rng.integers(0, 111, (4, 4, 3), dtype=np.uint8)
    canvas = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    for other in clutter:
        scrap = stamp(other, int(rng.integers(20, 32)), float(rng.uniform(0, 360)))
        scrap = scrap[: scrap.shape[0] // 2, : scrap.shape[1] // 2]
        top, left = int(rng.integers(height - len(scrap))), int(rng.integers(width - scrap.shape[1]))
        canvas = _paint(canvas, scrap, top, left, rng.integers(90, 151, 3))
    top, left = int(rng.integers(height - ink.shape[0] + 1)), int(rng.integers(width - ink.shape[1] + 1))
    canvas = _paint(canvas, ink, top, left, rng.integers(170, 256, 3))
    return np.clip(canvas + rng.normal(0, 10, canvas.shape), 0, 255).astype(np.uint8)


def _paint(
    canvas: NDArray[np.float32], ink: NDArray[np.float32], top: int, left: int, colour: NDArray[np.int64]
) -> NDArray[np.float32]:
    alpha = np.zeros((*canvas.shape[:2], 1), np.float32)
    alpha[top : top + ink.shape[0], left : left + ink.shape[1], 0] = np.clip((ink - 0.25) / 0.3, 0, 1)
    painted: NDArray[np.float32] = (canvas * (1 - alpha) + colour.astype(np.float32) * alpha).astype(np.float32)
    return painted


def write(folder: Path) -> None:
    """Write ``folder/{train,val}/<wnid>/<wnid>_<number>.JPEG``, digits evenly over the classes."""
    for number, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(100 + number)
        images, labels = digits(split)
        for i in range(count):
            label = i % len(CLASSES)
            which = rng.choice(np.flatnonzero(labels == label))
            ink = stamp(images[which], int(rng.integers(40, 49)), float(rng.uniform(-15, 15)))
            place = folder / split / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            scene = picture(rng, ink, images[rng.integers(len(images), size=2)])
            Image.fromarray(scene).save(place / f"{CLASSES[label]}_{i}.JPEG", quality=92)
