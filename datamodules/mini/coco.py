"""The miniature of COCO: the scenes of VOC's miniature with their instances, in COCO's layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from wsbench.datamodules.mini.digits import Split
from wsbench.datamodules.mini.voc import scene
from wsbench.datamodules.palette import VOID

NAME = "coco-mini-v1"
COUNTS: dict[Split, int] = {"train": 500, "val": 100}


def instances(classes: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """The annotations of a scene, without ids: what is visible of each digit, as run lengths, category = digit + 1."""
    shapes = []
    for number in sorted(set(np.unique(numbers)) - {0, VOID}):
        visible = numbers == number
        if visible.sum() < 40:
            continue
        rows, columns = np.nonzero(visible)
        box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        encoded = rle.encode(np.asfortranarray(visible.astype(np.uint8)))
        encoded["counts"] = encoded["counts"].decode("ascii")
        category = int(np.bincount(classes[visible]).argmax())
        shapes.append({"category_id": category, "bbox": box, "area": int(visible.sum()), "iscrowd": 0,
                       "segmentation": encoded})  # fmt: skip
    return shapes


def write(folder: Path) -> None:
    """Write ``train2017``, ``val2017`` and ``annotations/instances_{train,val}2017.json``."""
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)]
    for seed, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(400 + seed)
        place = folder / f"{split}2017"
        place.mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(1, count + 1):
            picture, classes, numbers = scene(rng, split)
            name = f"{i:012d}.jpg"
            Image.fromarray(picture).save(place / name, quality=92)
            height, width = classes.shape
            images.append({"id": i, "file_name": name, "height": height, "width": width})
            for shape in instances(classes, numbers):
                annotations.append({"id": len(annotations) + 1, "image_id": i} | shape)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
