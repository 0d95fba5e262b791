"""COCO's annotation files, as anybody may have written them: checked once, completed, and numbered anew.

What is defined by the rest is filled in (``area``, ``iscrowd`` 0, an image's size); anything else that is missing or
misshapen is an error that names file, annotation and field before a step is taken. Ids of annotations are given anew
from 1, because pycocotools takes id 0 for "not matched" and mixes up annotations of one id.
"""

import contextlib
import gc
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycocotools import mask as rle
from pycocotools.coco import COCO as Annotations

from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import inside, read_text
from wsbench.datamodules.pictures import picture_size

#: problems that a message lists
_LISTED = 3


def read_annotations(path: Path, images: Path, masks: bool) -> Annotations:
    """The annotations of a split.

    Args:
        path: the JSON file.
        images: folder of its images, which says the size of one whose entry does not.
        masks: whether every object must have a mask.

    Raises:
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
    if first:
        more = sum(1 for _ in problems)
        raise DatasetError(f"'{path}': {'; '.join(first)}{f'; and {more} more problems' if more else ''}")
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
    annotations = Annotations()
    annotations.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        annotations.createIndex()
    return annotations


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are finite numbers; by their sum, since the official file has 30 million of them."""
    try:
        return math.isfinite(sum(values))
    except TypeError:
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
    for place, image in enumerate(content["images"]):
        yield from _image(place, image, images, sizes)
    for annotation in content["annotations"]:
        problem = _annotation(annotation, categories, sizes, masks)
        if problem:
            yield problem


def _image(place: int, image: dict[str, Any], folder: Path, sizes: dict[int, tuple[int, int]]) -> Iterator[str]:
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
    path = inside(folder, name)
    for field in ("height", "width"):
        if field not in image:
            image["height"], image["width"] = picture_size(path)
        elif not _is_number(image[field]) or image[field] < 1:
            yield f"image {image['id']}: '{field}' is {image[field]!r}, expected pixels"
            return
    sizes[image["id"]] = (int(image["height"]), int(image["width"]))


def _annotation(
    annotation: dict[str, Any], categories: set[int], sizes: dict[int, tuple[int, int]], masks: bool
) -> str | None:
    """The first thing that is wrong with an object, in words; its defined fields are filled in."""
    where = f"annotation {annotation.get('id', '(without id)')}"
    if annotation.get("image_id") not in sizes:
        return f"{where}: 'image_id' is {annotation.get('image_id')!r}, which no image has"
    if annotation.get("category_id") not in categories:
        return f"{where}: 'category_id' is {annotation.get('category_id')!r}, which no category has"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        return f"{where}: 'bbox' is {_short(box)}, expected [x, y, width, height]"
    if annotation.setdefault("iscrowd", 0) not in (0, 1):
        return f"{where}: 'iscrowd' is {annotation['iscrowd']!r}, expected 0 or 1"
    size = sizes[annotation["image_id"]]
    if masks or "segmentation" in annotation:
        problem = _segmentation(annotation.get("segmentation"), size)
        if problem and masks:
            return f"{where}: 'segmentation' is {problem} (only boxes? --model.network faster_rcnn_...)"
        if problem:
            annotation.pop("segmentation")
    if "area" not in annotation:
        annotation["area"] = _area(annotation, size)
    elif not _is_number(annotation["area"]) or annotation["area"] < 0:
        return f"{where}: 'area' is {annotation['area']!r}, expected square pixels"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _segmentation(value: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a segmentation, in words; None if it is polygons or run lengths."""
    if isinstance(value, dict):
        counts, stated = value.get("counts"), value.get("size")
        if not isinstance(counts, str | list) or not counts or list(stated or ()) != list(size):
            return f"run lengths {_short(value)}, expected 'counts' and 'size' {list(size)}"
        return None
    if not isinstance(value, list) or not value:
        return f"{_short(value)}, expected polygons [[x1, y1, x2, y2, x3, y3 ...] ...] or run lengths"
    for polygon in value:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _are_numbers(polygon):
            return f"{_short(value)}, expected polygons of three points or more, [[x1, y1, x2, y2, x3, y3 ...] ...]"
    return None


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
