"""The miniature of PASCAL VOC: scenes of handwritten digits, with occlusion and void borders, in VOC's layout."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

from wsbench.datamodules.mini.digits import Split, digits, stamp
from wsbench.datamodules.palette import VOID, palette_image

NAME = "voc-mini-v1"
COUNTS: dict[Split, int] = {"train": 500, "val": 120}
#: names of the classes, in the order of their numbers
CLASSES = ("background", *(str(digit) for digit in range(10)))
CLASSES = ("background", *"0123456789")
INK = 0.4


def scene(rng: np.random.Generator, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """One image (H, W, 3), its class mask (H, W; 0 background, d + 1 for digit d, 255 void) and its instance mask.

    Up to three light digits of 40 to 64 pixels are painted over each other on a dark, smooth background; a border of
    one pixel around each is void, as in VOC.
    """
    images, labels = digits(split)
    height, width = (int(v) for v in rng.integers(72, 97, 2))
    coarse = rng.integers(0, 91, (4, 4, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    classes = np.zeros((height, width), np.uint8)
    instances = np.zeros((height, width), np.uint8)
    for number in range(1, int(rng.integers(1, 4)) + 1):
        which = int(rng.integers(len(images)))
        ink = stamp(images[which], int(rng.integers(40, 65)), float(rng.uniform(-8, 8)))
        place = _free_place(rng, ink.shape, instances)
        if place is None:
            continue
        cover = np.zeros((height, width), np.float32)
        cover[place] = ink
        shape = cover > INK
        alpha = np.clip((cover - 0.25) / 0.3, 0, 1)[..., None]
        picture = picture * (1 - alpha) + rng.integers(180, 256, 3) * alpha
        border = binary_dilation(shape) & ~shape
        classes[border] = instances[border] = VOID
        classes[shape], instances[shape] = labels[which] + 1, number
    picture += rng.normal(0, 8, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), classes, instances


def _free_place(
    rng: np.random.Generator, size: tuple[int, ...], instances: NDArray[np.uint8]
) -> tuple[slice, slice] | None:
    """A random place of ``size`` of which at most a sixth is painted already; None if ten tries find none."""
    height, width = instances.shape
    for _ in range(10):
        top, left = int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))
        place = np.s_[top : top + size[0], left : left + size[1]]
        if np.count_nonzero(instances[place]) <= size[0] * size[1] / 6:
            return place
    return None


def write(folder: Path) -> None:
    """Write ``folder/VOCdevkit/VOC2012`` with JPEGImages, SegmentationClass, SegmentationObject and ImageSets."""
    devkit = folder / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (devkit / name).mkdir(parents=True)
    names: dict[str, list[str]] = {}
    for number, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(number)
        names[split] = [f"{split}_{i:06d}" for i in range(count)]
        for name in names[split]:
            picture, classes, instances = scene(rng, split)
            Image.fromarray(picture).save(devkit / "JPEGImages" / f"{name}.jpg", quality=92)
            palette_image(classes).save(devkit / "SegmentationClass" / f"{name}.png")
            palette_image(instances).save(devkit / "SegmentationObject" / f"{name}.png")
    names["trainval"] = names["train"] + names["val"]
    for listed, lines in names.items():
        (devkit / "ImageSets" / "Segmentation" / f"{listed}.txt").write_text("\n".join(lines) + "\n")
