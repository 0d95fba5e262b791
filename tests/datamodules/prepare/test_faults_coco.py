"""Thirty and more faults in a detection dataset: `data coco` finds and names each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from tests.datamodules.prepare.planting import (
    Plant,
    animation,
    bomb_jpeg,
    copy,
    damaged_png,
    each_is_found,
    encoded,
    fault,
    fine,
    noise,
    said,
)
from wsbench.datamodules.annotations import pixels_of

TRAIN, VAL = (f"annotations/instances_{split}2017.json" for split in ("train", "val"))
IMAGE = "train2017/000000000002.jpg"
Content = dict[str, Any]
Change = Callable[[Content], object]


def edit(change: Change, *files: str) -> Plant:
    """Damage the content of annotation files; those of training, if none is named."""

    def plant(root: Path) -> None:
        for file in files or (TRAIN,):
            content = json.loads((root / file).read_text())
            change(content)
            (root / file).write_text(json.dumps(content))

    return plant


def field(name: str, value: Any, place: int = 3) -> Change:
    """Set a field of an object; ``...`` removes it."""

    def change(content: Content) -> None:
        annotation = content["annotations"][place]
        if value is ...:
            del annotation[name]
        else:
            annotation[name] = value

    return change


def part(name: str, key: str, value: Any, place: int = 1) -> Change:
    """Set a field of an image or a category; ``...`` removes it."""

    def change(content: Content) -> None:
        if value is ...:
            del content[name][place][key]
        else:
            content[name][place][key] = value

    return change


def every(name: str, value: Any) -> Change:
    """Set a field of every object; ``...`` removes it."""

    def change(content: Content) -> None:
        for place in range(len(content["annotations"])):
            field(name, value, place)(content)

    return change


def counts(value: Any, **size: Any) -> Change:
    """Set an object's run lengths."""

    def change(content: Content) -> None:
        segmentation = content["annotations"][3]["segmentation"]
        content["annotations"][3]["segmentation"] = {**segmentation, "counts": value, **size}

    return change


def as_corners(content: Content) -> None:
    sizes = {image["id"]: image for image in content["images"]}
    for one in content["annotations"]:
        x, y, w, h = one["bbox"]
        image = sizes[one["image_id"]]
        one["bbox"] = [x, y, min(image["width"], x + w) + image["width"] // 2, min(image["height"], y + h)]


def twice(content: Content) -> None:
    content["annotations"] += [{**one, "id": one["id"] + 1000} for one in content["annotations"]]


def rotated(content: Content) -> None:
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], names[1:] + names[:1], strict=True):
        category["name"] = name


def raw(text: str | bytes, file: str = TRAIN) -> Plant:
    return lambda root: (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())


def image(content: bytes) -> Plant:
    return lambda root: (root / IMAGE).write_bytes(content)


def one_folder(root: Path) -> None:
    """Train and val are of the same images."""
    shutil.copy(root / TRAIN, root / VAL)
    shutil.rmtree(root / "val2017")
    (root / "train2017").rename(root / "images")


AT = f"'ROOT/{TRAIN}'"
FOUR = f"{AT}: annotation 4: "
BOX = f"{FOUR}'bbox' is "
SEGMENTATION = f"{FOUR}'segmentation' is "
FAULTS = {
    "no boxes": fault(edit(field("bbox", ...)), f"{BOX}None, expected [x, y, width, height]"),
    "a box of null": fault(edit(field("bbox", None)), f"{BOX}None"),
    "an empty box": fault(edit(field("bbox", [])), f"{BOX}[]"),
    "a box of three numbers": fault(edit(field("bbox", [1, 2, 3])), f"{BOX}[1, 2, 3]"),
    "a box of text": fault(edit(field("bbox", ["1", 2, 3, 4])), f"{BOX}['1', 2, 3, 4]"),
    "a box of NaN": fault(edit(field("bbox", [1, float("nan"), 3, 4])), f"{BOX}[1, nan, 3, 4]"),
    "a box of infinity": fault(edit(field("bbox", [1, 2, float("inf"), 4])), f"{BOX}[1, 2, inf, 4]"),
    "a box of hundreds of digits": fault(edit(field("bbox", [1, 2, 10**400, 4])), f"{BOX}[1, 2, 1000"),
    "a negative width": fault(edit(field("bbox", [5, 5, -3, 4])), f"{BOX}[5, 5, -3, 4]"),
    "a box outside its image": fault(
        edit(field("bbox", [4000, 2, 9, 9])),
        f"{AT}: 1 'bbox' lie outside their images, among them [4000, 2, 9, 9] in image",
    ),
    "boxes of corners": fault(edit(as_corners), AT, "'bbox' reach beyond their images", "are they [x1, y1, x2, y2]?"),
    "boxes without a size": fault(
        edit(lambda content: [field("bbox", [5, 5, 0, 9], i)(content) for i in range(3)]),
        f"{AT}: 3 of", "have no width or no height",
    ),
    "no valid box": fault(edit(every("bbox", [0, 0, 1, 1])), f"{AT} has no image with a valid box"),
    "objects that stand there twice": fault(edit(twice), AT, "objects stand there twice, with the same 'bbox'"),
    "an unknown image": fault(edit(field("image_id", 99)), f"{FOUR}'image_id' is 99, which no image has"),
    "an image's id as text": fault(edit(field("image_id", "2")), f"{FOUR}'image_id' is '2', which no image has"),
    "an image's id as a list": fault(edit(field("image_id", [2])), f"{FOUR}'image_id' is [2]"),
    "an unknown category": fault(edit(field("category_id", 77)), f"{FOUR}'category_id' is 77, which no category has"),
    "a category's id as text": fault(edit(field("category_id", "3")), f"{FOUR}'category_id' is '3'"),
    "a category's id as an object": fault(edit(field("category_id", {})), f"{FOUR}'category_id' is {{}}"),
    "no category": fault(edit(field("category_id", ...)), f"{FOUR}'category_id' is None"),
    "iscrowd 2": fault(edit(field("iscrowd", 2)), f"{FOUR}'iscrowd' is 2, expected 0 or 1"),
    "iscrowd as text": fault(edit(field("iscrowd", "0")), f"{FOUR}'iscrowd' is '0', expected 0 or 1"),
    "a negative area": fault(edit(field("area", -5)), f"{FOUR}'area' is -5, expected square pixels"),
    "an area of NaN": fault(edit(field("area", float("nan"))), f"{FOUR}'area' is nan"),
    "no segmentation": fault(edit(field("segmentation", ...)), f"{SEGMENTATION}None, expected polygons"),
    "an empty segmentation": fault(edit(field("segmentation", [])), f"{SEGMENTATION}[], expected polygons"),
    "a flat segmentation": fault(edit(field("segmentation", [1, 1, 5, 1, 5, 5])), f"{SEGMENTATION}[1, 1, 5, 1, 5, 5]"),
    "a polygon of two points": fault(edit(field("segmentation", [[1, 1, 5, 5]])), f"{SEGMENTATION}[[1, 1, 5, 5]]"),
    "a polygon of odd length": fault(edit(field("segmentation", [[1, 1, 5, 5, 9, 9, 3]])), f"{SEGMENTATION}[[1, 1,"),
    "a polygon of text": fault(edit(field("segmentation", [["1", 1, 5, 5, 9, 9]])), f"{SEGMENTATION}[['1', 1,"),
    "a polygon of NaN": fault(edit(field("segmentation", [[float("nan"), 1, 5, 5, 9, 9]])), f"{SEGMENTATION}[[nan, 1,"),
    "a polygon far away": fault(
        edit(field("segmentation", [[1, 1, 5, 1e9, 5, 5]])), f"{SEGMENTATION}[1, 1, 5, 1000000000.0,", "far outside"
    ),
    "run lengths of another size": fault(
        edit(counts("0", size=[3, 4])), f"{SEGMENTATION}run lengths of the 'size' [3, 4], expected the image's"
    ),
    "run lengths without a size": fault(edit(counts("0", size=None)), f"{SEGMENTATION}run lengths of the 'size' None"),
    "run lengths of too few pixels": fault(
        edit(counts("04")), f"{SEGMENTATION}run lengths whose 'counts' '04' are of 4 pixels, expected "
    ),
    "run lengths as a list of too few": fault(edit(counts([3, 5])), f"{SEGMENTATION}run lengths", "are of 8 pixels"),
    "negative run lengths": fault(edit(counts([9000, -5])), f"{SEGMENTATION}run lengths", "[9000, -5] cannot be read"),
    "run lengths cut off": fault(edit(counts("R4458o")), f"{SEGMENTATION}run lengths", "'R4458o' cannot be read"),
    "run lengths of nothing": fault(edit(counts("")), f"{SEGMENTATION}run lengths", "'' cannot be read"),
    "an image's id twice": fault(edit(part("images", "id", 1)), f"{AT}", "images: the id 1 occurs twice"),
    "an image's file twice": fault(
        edit(part("images", "file_name", "000000000001.jpg")), AT, "images 1 and 2: both have the 'file_name' '00000000"
    ),
    "an image without an id": fault(edit(part("images", "id", ...)), AT, "images[1].id is None, expected a whole"),
    "images' ids as text": fault(edit(part("images", "id", "2")), AT, "images[1].id is '2', expected a whole number"),
    "an image without a file": fault(edit(part("images", "file_name", ...)), AT, "image 2: 'file_name' is None"),
    "a file elsewhere": fault(
        edit(part("images", "file_name", "../../x.jpg")), AT, "image 2: 'file_name' is '../../x.jpg'", "leaves the fol"
    ),
    "a file on another disk": fault(
        edit(part("images", "file_name", "/x.jpg")), AT, "image 2: 'file_name' is '/x.jpg'", "leaves the folder"
    ),
    "a height of 0": fault(edit(part("images", "height", 0)), AT, "image 2: 'height' is 0, expected pixels"),
    "a width as text": fault(edit(part("images", "width", "84")), AT, "image 2: 'width' is '84', expected pixels"),
    "a category's id twice": fault(edit(part("categories", "id", 1)), AT, "categories: the id 1 occurs twice"),
    "categories' ids as text": fault(edit(part("categories", "id", "2")), AT, "categories[1].id is '2', expected"),
    "a category without a name": fault(edit(part("categories", "name", ...)), AT, "category 2: 'name' is None"),
    "two categories of one name": fault(
        edit(part("categories", "name", "0"), TRAIN, VAL), "two classes are called '0'"
    ),
    "other names in val": fault(edit(rotated), f"{AT} and 'ROOT/{VAL}' give category 1 other names: '1' and '0'"),
    "a category in train only": fault(
        edit(lambda content: content["categories"].append({"id": 11, "name": "ten"})),
        f"{AT} and 'ROOT/{VAL}' give category 11 other names: 'ten' and 'none'",
    ),
    "no images": fault(edit(lambda content: content.update(images=[])), f"{AT}: 'images' is empty"),
    "no annotations": fault(edit(lambda content: content.update(annotations=[])), f"{AT}: 'annotations' is empty"),
    "no categories": fault(edit(lambda content: content.update(categories=[])), f"{AT}: 'categories' is empty"),
    "no annotations in val": fault(
        edit(lambda content: content.pop("annotations"), VAL), f"'ROOT/{VAL}': 'annotations' is missing or is no list"
    ),
    "only crowds in val": fault(edit(every("iscrowd", 1), VAL), f"'ROOT/{VAL}': all objects are crowds ('iscrowd' 1)"),
    "a list": fault(raw("[]"), f"{AT}: expected an object with images, annotations and categories, got a list"),
    "objects that are lists": fault(raw('{"images": [[]]}'), f"{AT}: 'images' is missing or is no list of objects"),
    "no JSON": fault(raw("images:\n"), f"{AT} is not JSON: Expecting value: line 1 column 1"),
    "JSON cut off": fault(
        lambda root: (root / TRAIN).write_bytes((root / TRAIN).read_bytes()[:999]), f"{AT} is not JSON", "line 1 column"
    ),
    "an empty file": fault(raw(""), f"{AT} is not JSON"),
    "JSON a hundred thousand deep": fault(raw("[" * 100_000), f"{AT} is not JSON: maximum recursion depth"),
    "UTF-16 without its mark": fault(raw("{}".encode("utf-16-le")), f"{AT} is no text file: it holds zero bytes"),
    "no annotations of val": fault(
        lambda root: (root / VAL).unlink(), f"{AT} is there, and no annotations of 'val' are", f"'ROOT/{VAL}'"
    ),
    "an image is missing": fault(
        lambda root: (root / IMAGE).unlink(), f"1 images of {AT} are missing in 'ROOT/train2017'", "000000000002.jpg"
    ),
    "all images are missing": fault(lambda root: shutil.rmtree(root / "train2017"), f"5 images of {AT} are missing in"),
    "an image of another size": fault(
        image(encoded(noise(40, 50), "JPEG")), f"'ROOT/{IMAGE}' is 50x40, its annotation says 84x72"
    ),
    "an image turned": fault(
        lambda root: Image.open(root / IMAGE).transpose(Image.Transpose.ROTATE_90).save(root / IMAGE),
        f"'ROOT/{IMAGE}' is 72x84, its annotation says 84x72",
    ),
    "an image cut off": fault(
        lambda root: (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:900]), f"cannot read 'ROOT/{IMAGE}'"
    ),
    "an image that is empty": fault(image(b""), f"cannot read 'ROOT/{IMAGE}': it is no image"),
    "an image that is damaged": fault(image(damaged_png(noise(72, 84))), f"cannot read 'ROOT/{IMAGE}'"),
    "an image that is an animation": fault(image(animation()), f"'ROOT/{IMAGE}' is an animation of 3 images"),
    "an image of too many pixels": fault(image(bomb_jpeg()), f"'ROOT/{IMAGE}' has more pixels than"),
    "an image of no size and no content": fault(
        lambda root: (edit(part("images", "width", ...))(root), image(b"x")(root)),
        AT, f"image 2: 'file_name' is '000000000002.jpg': cannot read 'ROOT/{IMAGE}'",
    ),
    "train is val": fault(one_folder, "5 samples are in both train and val, among them ROOT/images/000000000001.jpg"),
}  # fmt: skip


def test_there_are_thirty() -> None:
    assert len(FAULTS) >= 30


test_a_fault_is_found = each_is_found("coco", FAULTS)


def test_what_is_no_fault(tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is defined by the rest is filled in; ids may be any numbers."""
    root = copy(tiny_roots, "coco", tmp_path)
    fine("coco", root, capfd)
    for name in ("area", "iscrowd"):
        edit(field(name, ..., 1), TRAIN, VAL)(root)
        edit(field(name, None, 2), TRAIN, VAL)(root)
    edit(every("id", 0))(root)
    edit(part("images", "width", ...), VAL)(root)
    edit(part("images", "height", None))(root)
    edit(field("bbox", [-0.5, 3, 30, 40.25]))(root)
    edit(field("segmentation", [[1, 1, 5.5, 1, 5, 5]]))(root)
    edit(field("iscrowd", 1, 5))(root)
    (root / TRAIN).write_text((root / TRAIN).read_text(), encoding="utf-16")
    fine("coco", root, capfd)


def test_a_dataset_of_boxes_is_for_a_network_of_boxes(
    tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = copy(tiny_roots, "coco", tmp_path)
    edit(every("segmentation", ...), TRAIN, VAL)(root)
    status, text = said("coco", root, capfd)
    assert status == 0, text
    assert "--recipe small --data.root ROOT --model.network faster_rcnn_resnet_small" in text
    edit(field("bbox", None))(root)
    status, text = said("coco", root, capfd)
    assert status == 1
    assert BOX in text


def test_all_faults_of_a_file_are_named_at_once(
    tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = copy(tiny_roots, "coco", tmp_path)
    edit(field("bbox", None, 1))(root)
    edit(field("area", -1, 2))(root)
    edit(part("images", "height", 0, 4))(root)
    status, text = said("coco", root, capfd)
    assert status == 1
    for words in ("annotation 2: 'bbox' is None", "annotation 3: 'area' is -1", "image 5: 'height' is 0"):
        assert f"\n  {words}" in text


@pytest.mark.parametrize("seed", range(20))
def test_pixels_of_run_lengths_are_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 400, 2))
    mask = np.asfortranarray(rng.random((height, width)) < rng.choice([0, 0.01, 0.5, 1]), np.uint8)
    text = rle.encode(mask)["counts"].decode()
    assert pixels_of(text) == height * width
    if len(text) > 2:
        assert pixels_of(text[:-1]) != height * width
