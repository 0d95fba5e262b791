"""The miniature of Something-Something: a digit that visits places on a ring; only the order of the visits is a class.

There are nine places, and a clip shows eight of them in eight equal parts of its frames, each once. Class s goes on by
s places a part (modulo nine), s among 1, 2, 4, 5, 7 and 8, all of which visit every place in nine parts. Where a clip
begins is uniform, so which place is left out is uniform too, for every class: a frame, or the frames in any order but
their own, say nothing about the class.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsbench.datamodules.mini.digits import Split, digits, stamp

NAME = "something-mini-v1"
COUNTS: dict[Split, int] = {"train": 600, "val": 180}
PLACES, PARTS, SIDE = 9, 8, 64
LABELS = {
    "Moving a digit one place to the right": 1,
    "Moving a digit two places to the right": 2,
    "Moving a digit four places to the right": 4,
    "Moving a digit four places to the left": 5,
    "Moving a digit two places to the left": 7,
    "Moving a digit one place to the left": 8,
}
FOLDER = "20bn-something-something-v1"


def places(step: int, start: int) -> list[int]:
    """The place in each of the eight parts."""
    return [(start + step * part) % PLACES for part in range(PARTS)]


def clip(rng: np.random.Generator, image: NDArray[np.uint8], step: int) -> list[NDArray[np.uint8]]:
    """The frames (H, W, 3) of one clip, two or three a part, as a camera that trembles sees them."""
    coarse = rng.integers(0, 91, (4, 4, 3), dtype=np.uint8)
    backdrop = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    ink = stamp(image, int(rng.integers(18, 25)), float(rng.uniform(-10, 10)))
    colour = rng.integers(180, 256, 3).astype(np.float32)
    top, repeat = int(rng.integers(4, SIDE - 28)), int(rng.integers(2, 4))
    frames = []
    for place in places(step, int(rng.integers(PLACES))):
        for _ in range(repeat):
            frame = backdrop.copy()
            y = top + int(rng.integers(-1, 2))
            x = 2 + place * (SIDE - 4) // PLACES + int(rng.integers(-1, 2))
            columns = (np.arange(ink.shape[1]) + x) % SIDE  # what leaves at one side comes in at the other
            alpha = np.clip((ink - 0.25) / 0.3, 0, 1)[..., None]
            rows = slice(y, y + ink.shape[0])
            frame[rows, columns] = frame[rows, columns] * (1 - alpha) + colour * alpha
            frame += rng.normal(0, 8, frame.shape)
            frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def write(folder: Path) -> None:
    """Write the clips' folders and the official CSV files, classes evenly over the clips."""
    (folder / FOLDER).mkdir(parents=True)
    (folder / "something-something-v1-labels.csv").write_text("".join(f"{label}\n" for label in LABELS))
    labels = list(LABELS)
    number = 0
    for seed, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(200 + seed)
        images, _ = digits(split)
        lines = []
        for i in range(count):
            number += 1
            label = labels[i % len(labels)]
            place = folder / FOLDER / str(number)
            place.mkdir()
            for f, frame in enumerate(clip(rng, images[rng.integers(len(images))], LABELS[label]), start=1):
                Image.fromarray(frame).save(place / f"{f:05d}.jpg", quality=90)
            lines.append(f"{number};{label}\n")
        listed = "validation" if split == "val" else split
        (folder / f"something-something-v1-{listed}.csv").write_text("".join(lines))
