"""The miniature of PASCAL VOC: scenes of handwritten digits, with occlusion and void borders, in VOC's layout."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation
from wsbench.datamodules.mini.digits import Split, digits, stamp
from wsbench.datamodules.palette import palette_image

NAME = "voc-mini-v1"
COUNTS: dict[Split, int] = {"train": 500, "val": 120}
CLASSES = ("background", *"0123456789")
VOID = 255


def scene(rng: np.random.Generator, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture (H, W, 3), its class mask (H, W; 0 background, d + 1 for digit d, 255 void) and its instance mask.

    Two to five digits of 28 to 64 pixels are painted over each other on a smooth background; a border of one pixel
    around each is void, as in VOC.
    """
    images, labels = digits(split)
    height, width = (int(v) for v in rng.integers(96, 129, 2))
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    picture = 64 + picture / 2
    classes = np.zeros((height, width), np.uint8)
    instances = np.zeros((height, width), np.uint8)
    for number in range(1, int(rng.integers(2, 6)) + 1):
        which = int(rng.integers(len(images)))
        ink = stamp(images[which], int(rng.integers(28, 65)), float(rng.uniform(-15, 15)))
        h, w = min(ink.shape[0], height), min(ink.shape[1], width)
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        place = np.s_[top : top + h, left : left + w]
        cover = np.zeros((height, width), np.float32)
        cover[place] = ink[:h, :w]
        shape = cover > 0.4
        under = picture[shape].mean(0)
        colour = np.where(rng.random(3) < 0.5, 0, 255)
        colour = np.where(np.abs(colour - under).max() > 110, colour, np.where(under > 127, 0, 255))
        alpha = np.clip((cover - 0.25) / 0.3, 0, 1)[..., None]
        picture = picture * (1 - alpha) + (0.85 * colour + 0.15 * under) * alpha
        border = binary_dilation(shape, iterations=1) & ~shape
        classes[border] = instances[border] = VOID
        classes[shape], instances[shape] = labels[which] + 1, number
    picture += rng.normal(0, 8, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), classes, instances


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
    for split, lines in names.items():
        (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(lines) + "\n")
