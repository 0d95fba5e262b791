"""Thirty and more faults in a dataset of class folders: `data imagenet` finds and names each."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.datamodules.prepare.planting import (
    Plant,
    animation,
    bomb_jpeg,
    bomb_png,
    copy,
    damaged,
    damaged_png,
    each_is_found,
    encoded,
    fault,
    fine,
    noise,
    said,
)
from wsbench.datamodules import imagenet

CLASS, OTHER = "n00000003", "n00000004"
VICTIM = f"val/{CLASS}/n00000003_3.JPEG"


def image(content: bytes, name: str = VICTIM) -> Plant:
    """Plant an image of this content."""
    return lambda root: (root / name).write_bytes(content)


def flat(split: str) -> Plant:
    def plant(root: Path) -> None:
        for path in sorted((root / split).rglob("*.JPEG")):
            path.rename(root / split / path.name)
        for folder in [p for p in (root / split).iterdir() if p.is_dir()]:
            folder.rmdir()

    return plant


def emptied(folder: str, leave: str | None = None) -> Plant:
    def plant(root: Path) -> None:
        for path in (root / folder).iterdir():
            path.unlink()
        if leave:
            (root / folder / leave).write_text("x")

    return plant


def nested(root: Path) -> None:
    (root / "train" / CLASS / "images").mkdir()
    for path in (root / "train" / CLASS).glob("*.JPEG"):
        path.rename(path.parent / "images" / path.name)


def nested_in_part(root: Path) -> None:
    (root / "train" / CLASS / "more").mkdir()
    noise().save(root / "train" / CLASS / "more" / "x.png")


def one_class(root: Path) -> None:
    for split in ("train", "val"):
        for folder in (root / split).iterdir():
            if folder.name != CLASS:
                shutil.rmtree(folder)


def flat_with(meta: object) -> Plant:
    def plant(root: Path) -> None:
        flat("val")(root)
        if isinstance(meta, bytes):
            (root / "meta.bin").write_bytes(meta)
        else:
            torch.save(({}, meta), root / "meta.bin")

    return plant


def a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("x")


def linked(target: str, name: str = f"train/{CLASS}/linked.jpg") -> Plant:
    return lambda root: (root / name).symlink_to(target)


def same_folder(root: Path) -> None:
    shutil.rmtree(root / "val")
    (root / "val").symlink_to("train")


JPEG = encoded(noise(), "JPEG")
CANNOT = f"cannot read 'ROOT/{VICTIM}'"
FAULTS = {
    "a byte of a PNG's stream": fault(image(damaged_png(noise())), CANNOT),
    "a byte of a PNG's stream, and its check sum": fault(image(damaged_png(noise(), crc=False)), CANNOT),
    "a PNG cut off": fault(image(encoded(noise(), "PNG")[:2000]), CANNOT),
    "a JPEG cut off": fault(image(JPEG[: len(JPEG) // 2]), CANNOT),
    "a JPEG's header only": fault(image(JPEG[:200]), CANNOT),
    "an empty file": fault(image(b""), CANNOT, "it is no image"),
    "text": fault(image(b"404: not found\n"), CANNOT, "it is no image"),
    "an archive": fault(image(b"PK\x03\x04" + bytes(400)), CANNOT, "it is no image"),
    "an animation": fault(image(animation()), f"'ROOT/{VICTIM}' is an animation of 3 images"),
    "an animated PNG": fault(image(animation("PNG")), f"'ROOT/{VICTIM}' is an animation of 3 images"),
    "a TIFF of two pages": fault(image(animation("TIFF", 2)), f"'ROOT/{VICTIM}' is an animation of 2 images"),
    "a WebP cut off": fault(image(encoded(noise(), "WEBP")[:500]), CANNOT),
    "a BMP cut off": fault(image(encoded(noise(), "BMP")[:500]), CANNOT),
    "a TIFF cut off": fault(image(encoded(noise(), "TIFF", compression="tiff_lzw")[:500]), CANNOT),
    "a TIFF's directory": fault(image(damaged(encoded(noise(), "TIFF"), 0.0)), CANNOT),
    "a PPM cut off": fault(image(encoded(noise(), "PPM")[:500]), CANNOT),
    "floating-point numbers": fault(
        image(encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF")), f"'ROOT/{VICTIM}' holds values of 32 bits"
    ),
    "32 bits": fault(
        image(encoded(Image.fromarray(np.full((9, 9), 70_000, np.int32)), "TIFF")), f"'ROOT/{VICTIM}' holds values of"
    ),
    "a PNG of too many pixels": fault(image(bomb_png()), f"'ROOT/{VICTIM}' has more pixels than 178,956,970"),
    "a JPEG of too many pixels": fault(image(bomb_jpeg()), f"'ROOT/{VICTIM}' has more pixels than 178,956,970"),
    "a class in train only": fault(
        lambda root: shutil.rmtree(root / "val" / CLASS), "train has 10 classes and val 9", f"'{CLASS}' in train"
    ),
    "a class in val only": fault(
        lambda root: shutil.rmtree(root / "train" / CLASS), "train has 9 classes and val 10", f"'{CLASS}' in val"
    ),
    "a class called otherwise": fault(
        lambda root: (root / "val" / CLASS).rename(root / "val" / CLASS.upper()), "2 are in one only", CLASS.upper()
    ),
    "an empty class in train": fault(emptied(f"train/{CLASS}"), "'ROOT/train'", f"have no images ({CLASS})"),
    "an empty class in val": fault(emptied(f"val/{CLASS}"), "'ROOT/val'", f"have no images ({CLASS})"),
    "a class of text files": fault(emptied(f"train/{CLASS}", "urls.txt"), "'ROOT/train'", f"have no images ({CLASS})"),
    "a class of GIFs": fault(emptied(f"val/{CLASS}", "a.gif"), "'ROOT/val'", f"{CLASS}/a.gif (such files are"),
    "images in folders of a class": fault(nested, f"have no images ({CLASS}", f"{CLASS}/images/n00000003_"),
    "some images in folders of a class": fault(nested_in_part, "1 of 21", f"train/{CLASS}/more/x.png (in a folder"),
    "images beside the class folders": fault(
        image(JPEG, "train/loose.JPG"), "1 of 21 samples of 'train' are not used", "train/loose.JPG (in no class"
    ),
    "files that are not read": fault(image(JPEG, f"train/{CLASS}/x.HEIC"), "1 of 21", f"{CLASS}/x.HEIC (such files"),
    "a flat val": fault(flat("val"), "'ROOT/val' has no class folders: it is flat", "'ROOT/val/CLASS/n00000000_0.J"),
    "a flat train": fault(flat("train"), "'ROOT/train' has no class folders: it is flat"),
    "no val": fault(lambda root: shutil.rmtree(root / "val"), "'ROOT/train' is there and 'ROOT/val' is not"),
    "no train": fault(lambda root: shutil.rmtree(root / "train"), "'ROOT/val' is there and 'ROOT/train' is not"),
    "val is a file": fault(
        lambda root: (shutil.rmtree(root / "val"), (root / "val").write_text("x")), "'ROOT/val' is not, or is no folder"
    ),
    "the dataset is a file": fault(a_file, "looked for train/ and val/", "it is a file"),
    "a link to nothing": fault(linked("nowhere.jpg"), "1 of 21", f"train/{CLASS}/linked.jpg (a link to nothing)"),
    "a link to itself": fault(linked("linked.jpg"), f"train/{CLASS}/linked.jpg (Too many levels of symbolic links)"),
    "a folder called x.jpg": fault(
        lambda root: (root / "val" / CLASS / "x.jpg").mkdir(), "1 of 11", f"val/{CLASS}/x.jpg (a folder)"
    ),
    "one class": fault(one_class, f"the data has one class only, {CLASS}"),
    "val is train": fault(same_folder, "'ROOT/train' and 'ROOT/val' are one folder"),
    "a broken archive": fault(
        image(b"x", "ILSVRC2012_devkit_t12.tar.gz"), "ILSVRC2012_devkit_t12.tar.gz is not present", "or is corrupted",
        unseen=True,
    ),
    "a broken list of classes": fault(flat_with(b"no list"), "'ROOT/meta.bin' cannot be read"),
    "a list of classes of another val": fault(flat_with(["a"]), "'ROOT/val' holds 10 images, the devkit names 1"),
    "a list of classes that leaves its folder": fault(flat_with(["../x"] * 10), "'../x' leaves the folder 'ROOT/val'"),
}  # fmt: skip


def test_there_are_thirty() -> None:
    assert len(FAULTS) >= 30


test_a_fault_is_found = each_is_found("imagenet", FAULTS)


def test_what_is_no_fault(tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy(tiny_roots, "imagenet", tmp_path)
    fine("imagenet", root, capfd)
    place = root / "train" / CLASS
    grey = np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40
    Image.fromarray(grey).save(place / "sixteen.png")
    (place / "name.PNG").write_bytes(JPEG)
    (place / "camera.jfif").write_bytes(JPEG)
    (place / "still.gif.png").write_bytes(animation(frames=1))
    noise(3, 300).convert("CMYK").save(place / "cmyk.jpg")
    (place / "notes.txt").write_text("x")
    (place / "._a.JPEG").write_bytes(b"x")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "val" / ".DS_Store").write_bytes(b"x")
    os.symlink(place / "name.PNG", place / "linked.png")
    fine("imagenet", root, capfd)


def test_all_broken_images_are_named_and_a_crash_is_one_of_them(
    tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three that cannot be read, one that ends the process, one at which a library raises what nobody foresaw."""
    root = copy(tiny_roots, "imagenet", tmp_path)
    paths = sorted((root / "train").rglob("*.JPEG"))
    for path in paths[:3]:
        path.write_bytes(b"no picture")
    real = imagenet.read_picture

    def read(path: Path) -> torch.Tensor:
        if path == paths[7]:
            os.kill(os.getpid(), signal.SIGKILL)
        if path == paths[9]:
            raise KeyError("surprise")
        return real(path)

    monkeypatch.setattr(imagenet, "read_picture", read)
    status, text = said("imagenet", root, capfd)
    assert status == 1
    places = [f"'ROOT/{path.relative_to(root)}'" for path in paths]
    for place in places[:3]:
        assert f"train: read: cannot read {place}" in text
    assert f"train: read: reading {places[7]} ends the process" in text
    assert f"train: read: cannot read {places[9]}: KeyError" in text
    assert not any(place in text for i, place in enumerate(places) if i not in (0, 1, 2, 7, 9))


def test_names_that_are_no_text(tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy(tiny_roots, "imagenet", tmp_path)
    (root / "val" / CLASS / os.fsdecode(b"caf\xe9 :cat: [b].jpg")).write_bytes(b"no picture")
    status, text = said("imagenet", root, capfd)
    assert status == 1
    assert f"cannot read 'ROOT/val/{CLASS}/caf\\udce9 :cat: [b].jpg'" in text


def test_a_few_of_many_are_left_out_and_named(
    tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = copy(tiny_roots, "imagenet", tmp_path)
    place = root / "train" / CLASS
    for i in range(90):
        os.link(place / "n00000003_3.JPEG", place / f"copy{i}.jpg")
    (place / "gone.jpg").symlink_to("nowhere")
    status, text = said("imagenet", root, capfd)
    assert status == 0
    assert f"train: left out: {CLASS}/gone.jpg (a link to nothing)" in text
