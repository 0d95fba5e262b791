"""Thirty and more faults in a dataset of images and masks: `data voc` finds and names each."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_voc
from tests.datamodules.prepare.planting import (
    Plant,
    animation,
    append,
    bomb_png,
    check,
    copy,
    damaged_png,
    each_is_found,
    encoded,
    fault,
    fine,
    noise,
    said,
    snapshot,
)
from wsbench.__main__ import main
from wsbench.datamodules.palette import palette_image
from wsbench.datamodules.prepare.voc import build_trainaug

VOC = "VOCdevkit/VOC2012"
LISTS = f"{VOC}/ImageSets/Segmentation"
TRAIN, VAL = f"{LISTS}/train.txt", f"{LISTS}/val.txt"
IMAGE, MASK = f"{VOC}/JPEGImages/train_000001.jpg", f"{VOC}/SegmentationClass/train_000001.png"
SIZES: dict[str, Any] = {"train_set": "train", "crop": 33}


def size(root: Path) -> tuple[int, int]:
    """Height and width of the image of the mask."""
    with Image.open(root / IMAGE) as image:
        return image.height, image.width


def image(content: bytes) -> Plant:
    return lambda root: (root / IMAGE).write_bytes(content)


def mask(dtype: str, value: int, *channels: int) -> Plant:
    """Plant a mask of the right size."""

    def plant(root: Path) -> None:
        Image.fromarray(np.full((*size(root), *channels), value, dtype)).save(root / MASK)

    return plant


def as_jpeg(root: Path) -> None:
    grey = Image.open(root / MASK).convert("L")
    (root / MASK).write_bytes(encoded(grey, "JPEG"))


def one_bit(root: Path) -> None:
    Image.new("1", size(root)[::-1], 1).save(root / MASK)


def cropped(root: Path) -> None:
    found = Image.open(root / MASK)
    found.crop((0, 0, found.width - 1, found.height)).save(root / MASK)


def broken_mask(root: Path) -> None:
    (root / MASK).write_bytes(damaged_png(noise(*size(root)).convert("L")))


def all_masks(*values: int) -> Plant:
    """Let every mask hold these values only."""

    def plant(root: Path) -> None:
        for path in (root / VOC / "SegmentationClass").glob("*.png"):
            labels = np.full(Image.open(path).size[::-1], values[0], np.uint8)
            labels[0, : len(values)] = values
            palette_image(labels).save(path)

    return plant


def names(text: str, encoding: str = "utf-8") -> Plant:
    return lambda root: (root / VOC / "class_names.txt").write_text(text, encoding=encoding)


def listed(text: str, path: str = TRAIN) -> Plant:
    return lambda root: (root / path).write_text(text)


def columns(text: str) -> Plant:
    """A list of two columns, and this as its last line."""

    def plant(root: Path) -> None:
        lines = [f"/JPEGImages/{n}.jpg /SegmentationClass/{n}.png\n" for n in (root / TRAIN).read_text().split()]
        (root / TRAIN).write_text("".join([*lines, f"{text}\n"]))

    return plant


def moved(folder: str) -> Plant:
    return lambda root: shutil.rmtree(root / VOC / folder)


def unlinked(path: str) -> Plant:
    return lambda root: (root / path).unlink()


ELEVEN = "".join(f"c{i}\n" for i in range(11))
CANNOT = f"cannot read 'ROOT/{IMAGE}'"
FAULTS = {
    "an RGB mask": fault(mask("uint8", 1, 3), f"'ROOT/{MASK}' is a RGB image; a mask is a palette or 8-bit grey PNG"),
    "a mask with transparency": fault(mask("uint8", 1, 4), f"'ROOT/{MASK}' is a RGBA image"),
    "a mask of 16 bits": fault(mask("uint16", 1), f"'ROOT/{MASK}' is a I;16 image"),
    "a mask of one bit": fault(one_bit, f"'ROOT/{MASK}' is a 1 image"),
    "a mask as JPEG": fault(as_jpeg, f"'ROOT/{MASK}' is a JPEG image, which does not keep class numbers"),
    "a mask of another size": fault(cropped, f"'ROOT/{MASK}' is ", "its image", "they must agree"),
    "a mask that is damaged": fault(broken_mask, f"cannot read 'ROOT/{MASK}'"),
    "a mask that is cut off": fault(
        lambda root: (root / MASK).write_bytes((root / MASK).read_bytes()[:120]), f"cannot read 'ROOT/{MASK}'"
    ),
    "a mask that is empty": fault(lambda root: (root / MASK).write_bytes(b""), f"cannot read 'ROOT/{MASK}': it is"),
    "a mask of too many pixels": fault(
        lambda root: (root / MASK).write_bytes(bomb_png()), f"'ROOT/{MASK}' has more pixels than 178,956,970"
    ),
    "an animated mask": fault(
        lambda root: (root / MASK).write_bytes(animation()), f"'ROOT/{MASK}' is an animation of 3 images"
    ),
    "a class without a name": fault(
        lambda root: (names(ELEVEN)(root), mask("uint8", 11)(root)),
        f"'ROOT/{MASK}' holds class number 11, expected 0 to 10 and 255 for void", "--data.class_names",
    ),
    "masks of one class": fault(all_masks(1), "all 3 masks of 'val' hold class 1 only", "there is nothing to learn"),
    "masks of 0 and 255": fault(all_masks(0, 255), "all 3 masks of 'val' hold class 0 only"),
    "masks of nothing": fault(all_masks(255), "all 3 masks of 'val' hold nothing but 255, void", "val_000000.png"),
    "a mask is missing": fault(unlinked(MASK), "1 files of 'train' are missing", f"'ROOT/{MASK}'", f"'ROOT/{TRAIN}'"),
    "all masks are missing": fault(moved("SegmentationClass"), "3 files of 'val' are missing", f"'ROOT/{VOC}/Segm"),
    "an image is missing": fault(unlinked(IMAGE), "1 files of 'train' are missing", f"'ROOT/{IMAGE}'"),
    "an image is a folder": fault(
        lambda root: (unlinked(IMAGE)(root), (root / IMAGE).mkdir()), "1 files of 'train'", f"'ROOT/{IMAGE}'"
    ),
    "an image is a link to nothing": fault(
        lambda root: (unlinked(IMAGE)(root), (root / IMAGE).symlink_to("nowhere")), f"among them 'ROOT/{IMAGE}'"
    ),
    "two images of one name": fault(
        lambda root: noise().save((root / IMAGE).with_suffix(".png")),
        f"'ROOT/{TRAIN}' names 'train_000001', which may be train_000001.jpg or train_000001.png",
    ),
    "an image is cut off": fault(lambda root: (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:500]), CANNOT),
    "an image is empty": fault(image(b""), CANNOT),
    "an image is text": fault(image(b"<html>"), CANNOT, "it is no image"),
    "an image is a damaged PNG": fault(image(damaged_png(noise())), CANNOT),
    "an image is an animation": fault(image(animation()), f"'ROOT/{IMAGE}' is an animation of 3 images"),
    "an empty list": fault(listed("\n"), f"'ROOT/{TRAIN}' is empty"),
    "an empty list to evaluate on": fault(listed("", VAL), f"'ROOT/{VAL}' is empty"),
    "a list of zero bytes": fault(listed("t\0r\0"), f"'ROOT/{TRAIN}' is no text file"),
    "a repeated name": fault(
        lambda root: append(root / TRAIN, "train_000001\n"), f"'ROOT/{TRAIN}' names 'train_000001' 2 times"
    ),
    "a repeated name, by its path": fault(
        columns("/JPEGImages/train_000001.jpg /SegmentationClass/train_000002.png"),
        f"'ROOT/{TRAIN}' names 'JPEGImages/train_000001.jpg' 2 times",
    ),
    "a name that nothing has": fault(
        lambda root: append(root / VAL, "x y z\n"), "2 files of 'val' are missing", "JPEGImages/x y z.jpg"
    ),
    "a name that leaves the folder": fault(
        lambda root: append(root / VAL, "../../x\n"), f"'ROOT/{VAL}': 'JPEGImages/../../x.jpg' leaves the folder 'ROOT/"
    ),
    "a path that leaves the folder": fault(
        columns("/../x.jpg /x.png"), f"'ROOT/{TRAIN}': '../x.jpg' leaves the folder 'ROOT/{VOC}'"
    ),
    "a second column that is missing": fault(
        lambda root: (noise().save(root / VOC / "JPEGImages" / "a.png"),
                      columns("/JPEGImages/a.png /masks/a.png")(root)),
        "1 files of 'train' are missing", f"'ROOT/{VOC}/masks/a.png'",
    ),
    "no list to train on": fault(unlinked(TRAIN), f"'ROOT/{TRAIN}' is missing", "there are: "),
    "no list to evaluate on": fault(unlinked(VAL), f"'ROOT/{VAL}' is missing", "--data.val_set"),
    "no lists": fault(moved("ImageSets"), f"'ROOT/{LISTS}' is missing"),
    "no images": fault(moved("JPEGImages"), f"'ROOT/{VOC}/JPEGImages' is missing"),
    "an image in both lists": fault(
        lambda root: append(root / TRAIN, "val_000001\n"),
        "1 samples are in both train and val, among them JPEGImages/val_000001.jpg",
    ),
    "a repeated class": fault(names(ELEVEN + "c3\n"), f"'ROOT/{VOC}/class_names.txt' names 'c3' 2 times"),
    "no names of classes": fault(names(" \n"), f"'ROOT/{VOC}/class_names.txt' is empty; expected names of classes"),
    "names in UTF-16 without its mark": fault(
        names(ELEVEN, "utf-16-le"), f"'ROOT/{VOC}/class_names.txt' is no text file"
    ),
}  # fmt: skip


def test_there_are_thirty() -> None:
    assert len(FAULTS) >= 30


test_a_fault_is_found = each_is_found("voc", FAULTS, **SIZES)


def test_what_is_no_fault(tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy(tiny_roots, "voc", tmp_path)
    fine("voc", root, capfd)
    (root / MASK).write_bytes(encoded(Image.fromarray(np.full(size(root), 255, np.uint8)), "PNG"))  # one, of nothing
    deep = np.full(size(root), 40_000, np.uint16)
    (root / IMAGE).write_bytes(encoded(Image.fromarray(deep), "PNG"))
    (root / VAL).write_text((root / VAL).read_text(), encoding="utf-8-sig")
    (root / TRAIN).write_text((root / TRAIN).read_text(), encoding="utf-16")
    names(ELEVEN + "ü\n", "utf-8-sig")(root)
    fine("voc", root, capfd)
    (root / TRAIN).write_text((root / TRAIN).read_text("utf-16"))
    columns("")(root)
    fine("voc", root, capfd)


# -- SBD, of which trainaug is built --------------------------------------------------------------------------------

SBD = "benchmark_RELEASE/dataset"
MAT = f"{SBD}/cls/2010_000001.mat"
SOURCE = f"{VOC}/SegmentationClassAug/source.txt"


def without_classes(root: Path) -> None:
    (root / MAT).unlink()
    with h5py.File(root / MAT, "w") as file:
        file["other"] = 1


def built(change: Plant) -> Plant:
    def plant(root: Path) -> None:
        build_trainaug(root, quiet=True)
        change(root)

    return plant


SBD_FAULTS = {
    "no mask of MATLAB": fault(lambda root: (root / MAT).write_bytes(b"x"), f"'ROOT/{MAT}' is no class mask of SBD"),
    "a mask of MATLAB 7.3 without classes": fault(without_classes, f"'ROOT/{MAT}' is no class mask of SBD", "GTcls"),
    "a mask is missing": fault(unlinked(MAT), f"'ROOT/{MAT}' is no class mask of SBD", "No such file"),
    "an image is missing": fault(
        unlinked(f"{VOC}/JPEGImages/2010_000001.jpg"), "1 images of SBD are not in", "['2010_000001']"
    ),
    "a list is missing": fault(unlinked(f"{SBD}/train.txt"), f"cannot read 'ROOT/{SBD}/train.txt'"),
    "a list leaves the folder": fault(
        lambda root: append(root / SBD / "val.txt", "../x\n"), "'../x.jpg' leaves the folder 'ROOT/"
    ),
    "built of other lists": fault(
        built(lambda root: append(root / TRAIN, "2010_000000\n")),
        f"'ROOT/{VOC}/SegmentationClassAug' was built from other train.txt and val.txt", "--rebuild",
    ),
    "nobody's masks": fault(built(listed("", SOURCE)), f"'ROOT/{SOURCE}' says '', expected voc or sbd", "--rebuild"),
    "a built mask is missing": fault(
        built(unlinked(f"{VOC}/SegmentationClassAug/2010_000002.png")), "1 files of 'train'", "Aug/2010_000002.png'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SBD_FAULTS)
def test_a_fault_of_trainaug_is_found(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_voc(tmp_path / "data")
    check("voc", SBD_FAULTS[name], root, capfd, train_set="trainaug", crop=33)


def test_a_class_names_file_of_the_command_line(
    tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tiny_roots["voc"]
    (tmp_path / "names.txt").write_text("a\nb\na\n")
    before = snapshot(root)
    status, text = said("voc", root, capfd, "--class-names", str(tmp_path / "names.txt"))
    assert status == 1
    assert "names.txt' names 'a' 2 times" in text
    assert main(["data", "voc", "--root", str(root), "--train-set", str(tmp_path / "none.txt")]) == 1
    assert "none.txt' is missing" in capfd.readouterr().out
    assert snapshot(root) == before
