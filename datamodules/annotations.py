"""COCO's annotation files, as anybody may have written them: checked once, completed, and renumbered.

What is defined by the rest is filled in (``area``, ``iscrowd`` 0, an image's size); anything else that is missing or
misshapen is an error that names file, annotation and field before a step is taken. Ids of annotations are assigned
again from 1, because pycocotools takes id 0 for "not matched" and mixes up annotations of one id.
"""

import contextlib
import gc
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO as Annotations

from wsbench.datamodules.errors import DatasetError, one_a_line
from wsbench.datamodules.lists import inside, read_text
from wsbench.datamodules.pictures import picture_size

#: problems that a message lists
_LISTED = 20
#: compressed run lengths: numbers in base 32, least first, of which the last digit has no sign of going on
_COMPRESSED = re.compile(r"[0-o]*[0-O]\Z")
#: digits of a number among them, at most
_LONGEST_NUMBER = 7


class BoxesOnlyError(DatasetError):
    """Masks are asked for, and no object has one: the data is for a network that finds boxes."""


def read_annotations(path: Path, images: Path, masks: bool) -> Annotations:
    """The annotations of a split.

    Args:
        path: the JSON file.
        images: folder of its images, which says the size of one whose entry does not.
        masks: whether every object must have a mask.

    Raises:
        BoxesOnlyError: no object has a mask.
        DatasetError: the file is missing, is no JSON, or has a field that is missing or misshapen.
    """
    if not path.is_file():
        raise DatasetError(f"'{path}' is missing")
    with _no_collection():
        return _read(path, images, masks)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of objects are made that all stay; to look through them for garbage takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(path: Path, images: Path, masks: bool) -> Annotations:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"'{path}' is not JSON: {error}") from error
    problems = _problems(content, images, masks)
    first = [text for _, text in zip(range(_LISTED), problems, strict=False)]
    if first and masks and not any(annotation.get("segmentation") for annotation in _objects(content)):
        raise BoxesOnlyError(f"'{path}': {first[0]}; no object has a mask. For boxes: --model.network faster_rcnn_...")
    if len(first) == 1:
        raise DatasetError(f"'{path}': {first[0]}")
    if first:
        more = sum(1 for _ in problems)
        raise DatasetError(f"'{path}' has {len(first) + more} faults:{one_a_line(first, _LISTED, more)}")
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
    annotations = Annotations()
    annotations.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        annotations.createIndex()
    return annotations


def _objects(content: Any) -> list[dict[str, Any]]:
    annotations = content.get("annotations") if isinstance(content, dict) else None
    return [one for one in annotations if isinstance(one, dict)] if isinstance(annotations, list) else []


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are finite numbers; by their sum, since the official file has 30 million of them."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _problems(content: Any, images: Path, masks: bool) -> Iterator[str]:
    """What is wrong, one text each; fills in what is defined on the way."""
    if not isinstance(content, dict):
        yield f"expected an object with images, annotations and categories, got a {type(content).__name__}"
        return
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list) or not all(isinstance(entry, dict) for entry in content[part]):
            yield f"'{part}' is missing or is no list of objects"
            return
        if not content[part]:
            yield f"'{part}' is empty"
            return
    categories: set[int] = set()
    for place, category in enumerate(content["categories"]):
        if not _is_id(category.get("id")):
            yield f"categories[{place}].id is {category.get('id')!r}, expected a whole number"
        elif category["id"] in categories:
            yield f"categories: the id {category['id']} occurs twice"
        elif not isinstance(category.get("name"), str) or not category["name"]:
            yield f"category {category['id']}: 'name' is {category.get('name')!r}, expected its name"
        else:
            categories.add(category["id"])
    sizes: dict[int, tuple[int, int]] = {}
    names: dict[str, int] = {}
    for place, image in enumerate(content["images"]):
        yield from _image(place, image, images, sizes, names)
    for annotation in content["annotations"]:
        problem = _annotation(annotation, categories, sizes, masks)
        if problem:
            yield problem


def _image(
    place: int, image: dict[str, Any], folder: Path, sizes: dict[int, tuple[int, int]], names: dict[str, int]
) -> Iterator[str]:
    name = image.get("file_name")
    if not _is_id(image.get("id")):
        yield f"images[{place}].id is {image.get('id')!r}, expected a whole number"
        return
    if image["id"] in sizes:
        yield f"images: the id {image['id']} occurs twice"
        return
    if not isinstance(name, str) or not name:
        yield f"image {image['id']}: 'file_name' is {name!r}, expected the name of its file"
        return
    if names.setdefault(name, image["id"]) != image["id"]:
        yield f"images {names[name]} and {image['id']}: both have the 'file_name' {name!r}"
        return
    try:
        path = inside(folder, name)
        if image.get("height") is None or image.get("width") is None:
            image["height"], image["width"] = picture_size(path)
    except DatasetError as error:
        yield f"image {image['id']}: 'file_name' is {name!r}: {error}"
        return
    for field in ("height", "width"):
        if not _is_number(image[field]) or image[field] < 1:
            yield f"image {image['id']}: '{field}' is {image[field]!r}, expected pixels"
            return
    sizes[image["id"]] = (int(image["height"]), int(image["width"]))


def _annotation(
    annotation: dict[str, Any], categories: set[int], sizes: dict[int, tuple[int, int]], masks: bool
) -> str | None:
    """The first thing that is wrong with an object; its defined fields are filled in."""
    where = f"annotation {annotation.get('id', '(without id)')}"
    if not _is_number(annotation.get("image_id")) or annotation["image_id"] not in sizes:
        return f"{where}: 'image_id' is {annotation.get('image_id')!r}, which no image has"
    if not _is_number(annotation.get("category_id")) or annotation["category_id"] not in categories:
        return f"{where}: 'category_id' is {annotation.get('category_id')!r}, which no category has"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        return f"{where}: 'bbox' is {_short(box)}, expected [x, y, width, height]"
    if annotation.get("iscrowd") is None:
        annotation["iscrowd"] = 0
    if annotation["iscrowd"] not in (0, 1):
        return f"{where}: 'iscrowd' is {annotation['iscrowd']!r}, expected 0 or 1"
    size = sizes[annotation["image_id"]]
    if masks or "segmentation" in annotation:
        problem = _segmentation(annotation.get("segmentation"), size)
        if problem and masks:
            return f"{where}: 'segmentation' is {problem}"
        if problem:
            annotation.pop("segmentation", None)
    if annotation.get("area") is None:
        annotation["area"] = _area(annotation, size)
    elif not _is_number(annotation["area"]) or annotation["area"] < 0:
        return f"{where}: 'area' is {annotation['area']!r}, expected square pixels"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _segmentation(value: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a segmentation; None if it is polygons or run lengths."""
    if isinstance(value, dict):
        counts, stated = value.get("counts"), value.get("size")
        if not isinstance(stated, list) or stated != list(size):
            return f"run lengths of the 'size' {_short(stated)}, expected the image's height and width {list(size)}"
        pixels = pixels_of(counts)
        if pixels != size[0] * size[1]:
            fault = "cannot be read" if pixels is None else f"are of {pixels} pixels"
            return f"run lengths whose 'counts' {_short(counts)} {fault}, expected {size[0]} x {size[1]}"
        return None
    if not isinstance(value, list) or not value:
        return f"{_short(value)}, expected polygons [[x1, y1, x2, y2, x3, y3 ...] ...] or run lengths"
    for polygon in value:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _are_numbers(polygon):
            return f"{_short(value)}, expected polygons of three points or more, [[x1, y1, x2, y2, x3, y3 ...] ...]"
        if min(polygon) < -max(size) or max(polygon) > 2 * max(size):  # memory for its outline would be taken, too
            return f"{_short(polygon)}, which lies far outside the image, {size[1]}x{size[0]}"
    return None


def pixels_of(counts: Any) -> int | None:
    """How many pixels run lengths are of, as a list or compressed; None if they are none.

    pycocotools takes whatever is there: counts that cover less than the image leave memory as it was in the mask.
    """
    if isinstance(counts, list):
        whole = all(isinstance(run, int) and not isinstance(run, bool) and run >= 0 for run in counts)
        return sum(counts) if whole else None
    if not isinstance(counts, str) or not _COMPRESSED.match(counts):
        return None
    digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > _LONGEST_NUMBER:
        return None
    places = np.arange(len(digits)) - np.repeat(first, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * places), first)
    runs -= np.where(digits[last] & 16, 1 << (5 * lengths), 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()  # from the fourth on, differences to two before
    return int(runs.sum()) if (runs >= 0).all() else None


def doubtful(annotations: Annotations, tolerated: float) -> Iterator[str]:
    """What can be trained on and is hardly meant: boxes outside their images or empty, corners for sizes, repetitions.

    Args:
        annotations: as read.
        tolerated: share of the boxes that may be empty or stand there twice; the official files have a few.
    """
    outside, beyond, empty, repeated, total = list[str](), 0, 0, 0, 0
    for number, image in annotations.imgs.items():
        height, width = image["height"], image["width"]
        objects = [one for one in annotations.imgToAnns[number] if not one["iscrowd"]]
        total += len(objects)
        repeated += len(objects) - len({(one["category_id"], *one["bbox"]) for one in objects})
        for one in objects:
            x, y, w, h = one["bbox"]
            if w <= 0 or h <= 0:
                empty += 1
            elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
                outside.append(f"{one['bbox']} in image {number} ('{image['file_name']}', {width}x{height})")
            elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                beyond += 1
    if outside:
        yield f"{len(outside)} 'bbox' lie outside their images, among them {outside[0]}; they are not trained on"
    if beyond > total / 2:
        yield (f"{beyond} of {total} 'bbox' reach beyond their images; expected [x, y, width, height], are they "
               "[x1, y1, x2, y2]?")  # fmt: skip
    if empty > tolerated * total:
        yield f"{empty} of {total} 'bbox' have no width or no height; they are not trained on"
    if repeated > tolerated * total:
        yield f"{repeated} of {total} objects stand there twice, with the same 'bbox', 'category_id' and image"


def _area(annotation: dict[str, Any], size: tuple[int, int]) -> float:
    """Pixels of an object's mask; of its box if it has none."""
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(segmentation, dict):
        encoded = segmentation
        if isinstance(segmentation["counts"], list):
            encoded = rle.frPyObjects(segmentation, *size)
    else:
        encoded = rle.merge(rle.frPyObjects(segmentation, *size))
    return float(rle.area(encoded))
