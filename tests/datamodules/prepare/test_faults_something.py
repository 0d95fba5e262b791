"""Thirty and more faults in a dataset of clips: `data something` finds and names each."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import tiny
from tests.datamodules.prepare.planting import (
    Plant,
    animation,
    append,
    bomb_jpeg,
    copy,
    damaged_png,
    each_is_found,
    encoded,
    fault,
    fine,
    noise,
    replace,
    said,
)
from wsbench.datamodules.something import FRAMES, LISTS

LABELS, TRAIN, VAL = (f"something-something-v1-{part}.csv" for part in ("labels", "train", "validation"))
CLIP = f"{FRAMES}/3"
FIRST = "Moving a digit one place to the right"
SIZES: dict[str, Any] = {"crop": 32, "resize": 32}


def last(clip: Path) -> Path:
    """The clip's last frame."""
    return max(clip.glob("*.jpg"))


def frame(content: bytes, name: str = "00002.jpg") -> Plant:
    """Plant a frame of this content."""
    return lambda root: (root / CLIP / name).write_bytes(content)


def every_frame(suffix: str) -> Plant:
    """Let all frames but one have this suffix."""

    def plant(root: Path) -> None:
        for path in sorted((root / CLIP).glob("*.jpg"))[:-1]:
            path.rename(path.with_suffix(suffix))

    return plant


def short(root: Path) -> None:
    for clip in ("3", "5"):
        for path in sorted((root / FRAMES / clip).glob("*.jpg"))[2:]:
            path.unlink()


def a_file(root: Path) -> None:
    shutil.rmtree(root / CLIP)
    (root / CLIP).write_text("x")


def shared(root: Path) -> None:
    append(root / VAL, f"3;{FIRST}\n")


def in_utf_16(name: str) -> Plant:
    return lambda root: (root / name).write_bytes((root / name).read_text().encode("utf-16-le"))


def in_lists(change: Plant, keep_csv: bool = False) -> Plant:
    """Damage the dataset after its CSV files were replaced by the lists of TRN and TSM."""

    def plant(root: Path) -> None:
        data = tiny.data("something", root)
        data.setup("fit")
        (root / LISTS["labels"]).write_text("".join(f"{name}\n" for name in data.classes))
        for split, samples in (("train", data.train_data), ("val", data.val_data)):
            lines = [f"{clip.folder.name} {clip.frames} {clip.label}\n" for clip in samples.clips]
            (root / LISTS[split]).write_text("".join(lines))
        for name in () if keep_csv else (LABELS, TRAIN, VAL):
            (root / name).unlink()
        change(root)

    return plant


def line(text: str, split: str = "train") -> Plant:
    """Plant a line at the end of a list."""
    return in_lists(lambda root: append(root / LISTS[split], f"{text}\n"))


def frames_in_list(change: int) -> Plant:
    def plant(root: Path) -> None:
        first = (root / LISTS["train"]).read_text().splitlines()[0]
        name, frames, label = first.split()
        replace(root / LISTS["train"], first, f"{name} {int(frames) + change} {label}")

    return in_lists(plant)


EXPECTED = f"'ROOT/{LISTS['train']}': expected 'folder frames class' with a class below 6"
FAULTS = {
    "a clip is missing": fault(lambda root: shutil.rmtree(root / CLIP), f"the clip 'ROOT/{CLIP}' is missing"),
    "a clip is empty": fault(
        lambda root: [path.unlink() for path in (root / CLIP).iterdir()], f"the clip 'ROOT/{CLIP}' has no frames"
    ),
    "a clip is a file": fault(a_file, f"the clip 'ROOT/{CLIP}' cannot be read: Not a directory"),
    "a gap": fault(lambda root: (root / CLIP / "00005.jpg").unlink(), f"frame 'ROOT/{CLIP}/00005.jpg' is missing"),
    "two prefixes": fault(
        lambda root: shutil.copy(root / CLIP / "00001.jpg", root / CLIP / "img_00001.jpg"),
        f"'ROOT/{CLIP}' are called in two ways, as 00001.jpg and img_00001.jpg",
    ),
    "two suffixes": fault(every_frame(".png"), f"'ROOT/{CLIP}' are called in two ways", ".png"),
    "upper and lower case": fault(every_frame(".JPG"), f"'ROOT/{CLIP}' are called in two ways", ".JPG"),
    "other digits": fault(
        lambda root: (root / CLIP / "00002.jpg").rename(root / CLIP / "002.jpg"),
        f"frame 'ROOT/{CLIP}/00002.jpg' is missing",
    ),
    "an image among the frames": fault(
        frame(encoded(noise(), "JPEG"), "cover.jpg"), f"the clip 'ROOT/{CLIP}' has 'cover.jpg' among its numbered f"
    ),
    "a frame is a folder": fault(
        lambda root: (last(root / CLIP).unlink(), (root / CLIP / "00009.jpg").unlink(),
                      (root / CLIP / "00009.jpg").mkdir()),
        f"frame 'ROOT/{CLIP}/00009.jpg' is no file",
    ),
    "a frame is a link to nothing": fault(
        lambda root: (root / CLIP / "00000.jpg").symlink_to("nowhere"), f"frame 'ROOT/{CLIP}/00000.jpg' is no file"
    ),
    "a frame is cut off": fault(
        lambda root: (root / CLIP / "00002.jpg").write_bytes((root / CLIP / "00002.jpg").read_bytes()[:300]),
        f"cannot read 'ROOT/{CLIP}/00002.jpg'", unseen=True,
    ),
    "a frame is empty": fault(frame(b""), f"cannot read 'ROOT/{CLIP}/00002.jpg': it is no image", unseen=True),
    "a frame is damaged": fault(frame(damaged_png(noise())), f"cannot read 'ROOT/{CLIP}/00002.jpg'", unseen=True),
    "a frame is an animation": fault(
        frame(animation()), f"'ROOT/{CLIP}/00002.jpg' is an animation of 3 images", unseen=True
    ),
    "a frame has too many pixels": fault(
        frame(bomb_jpeg()), f"'ROOT/{CLIP}/00002.jpg' has more pixels than", unseen=True
    ),
    "a frame of another size": fault(
        frame(encoded(noise(), "JPEG")), f"the frames in 'ROOT/{CLIP}' have different sizes: [(40, 40), (64, 64)]",
        unseen=True,
    ),
    "all first frames are broken": fault(
        lambda root: [path.write_bytes(b"x") for path in root.glob(f"{FRAMES}/*/00001.jpg")],
        "train: read", f"cannot read 'ROOT/{CLIP}/00001.jpg'", "val: read", f"cannot read 'ROOT/{FRAMES}/15/00001.jpg'",
        unseen=True,
    ),
    "too many short clips": fault(short, "2 of 12 samples of 'train' have fewer than 3 frames", "3 (2 frames), 5 (2 "),
    "a label that is not listed": fault(
        lambda root: replace(root / TRAIN, f"1;{FIRST}", "1;Eating something"),
        f"'ROOT/{TRAIN}': clip '1' has the label 'Eating something', which '{LABELS}' does not name",
    ),
    "a clip that stands there twice": fault(
        lambda root: append(root / TRAIN, "3;Moving a digit two places to the right\n"),
        f"'ROOT/{TRAIN}' names '3' 2 times",
    ),
    "a line that stands there twice": fault(
        lambda root: append(root / TRAIN, f"1;{FIRST}\n"), f"'ROOT/{TRAIN}' names '1;{FIRST}' 2 times"
    ),
    "a line without a semicolon": fault(
        lambda root: append(root / VAL, f"99,{FIRST}\n"), f"'ROOT/{VAL}': expected 'id;label', got '99,{FIRST}'"
    ),
    "a line without a label": fault(lambda root: append(root / VAL, "99;\n"), f"'ROOT/{VAL}'", "got '99;'"),
    "a line without a clip": fault(lambda root: append(root / VAL, f";{FIRST}\n"), f"'ROOT/{VAL}'", f"got ';{FIRST}'"),
    "a clip of another folder": fault(
        lambda root: append(root / VAL, f"../3;{FIRST}\n"), f"'ROOT/{VAL}': '../3' leaves the folder 'ROOT/{FRAMES}'"
    ),
    "a clip of another disk": fault(
        lambda root: append(root / VAL, f"/data/3;{FIRST}\n"), f"'ROOT/{VAL}': '/data/3' leaves the folder"
    ),
    "a clip in train and val": fault(shared, f"1 samples are in both train and val, among them ROOT/{CLIP}"),
    "an empty list": fault(lambda root: (root / TRAIN).write_text("\n\n"), f"'ROOT/{TRAIN}' is empty; expected"),
    "an empty list to evaluate on": fault(lambda root: (root / VAL).write_text(""), f"'ROOT/{VAL}' is empty"),
    "no labels": fault(lambda root: (root / LABELS).write_text(""), f"'ROOT/{LABELS}' is empty; expected labels"),
    "one label": fault(
        lambda root: [(root / name).write_text(text) for name, text in
                      ((LABELS, "a\n"), (TRAIN, "1;a\n2;a\n"), (VAL, "13;a\n"))],
        "the data has one class only, a",
    ),
    "a repeated label": fault(lambda root: append(root / LABELS, f"{FIRST}\n"), f"'ROOT/{LABELS}' names '{FIRST}' 2"),
    "UTF-16 without its mark": fault(in_utf_16(TRAIN), f"'ROOT/{TRAIN}' is no text file: it holds zero bytes", "UTF-8"),
    "half of UTF-16": fault(
        lambda root: (root / VAL).write_bytes(b"\xff\xfe1"), f"'ROOT/{VAL}' is not text in utf-16", "save it as UTF-8"
    ),
    "no list to train on": fault(lambda root: (root / TRAIN).unlink(), f"'ROOT/{TRAIN}' is missing"),
    "no list of labels": fault(lambda root: (root / LABELS).unlink(), f"'ROOT/{LABELS}' is missing"),
    "no clips": fault(
        lambda root: shutil.rmtree(root / FRAMES), f"'ROOT' has lists and no folder of clips; expected 'ROOT/{FRAMES}'"
    ),
    "a list says more frames": fault(
        frames_in_list(+1), f"'ROOT/{LISTS['train']}': the clip 'ROOT/{FRAMES}/1' has", "the list says", "1 such lines"
    ),
    "a list says fewer frames": fault(
        frames_in_list(-1), f"'ROOT/{LISTS['train']}': the clip 'ROOT/{FRAMES}/1' has", "the list says"
    ),
    "a class number too large": fault(line("13 16 6"), EXPECTED, "'13 16 6'"),
    "a class number below 0": fault(line("13 16 -1"), EXPECTED, "'13 16 -1'"),
    "a class number that is none": fault(line("13 16 ²"), EXPECTED, "'13 16 ²'"),
    "a class's name for its number": fault(line("13 16 Moving"), EXPECTED, "'13 16 Moving'"),
    "two columns": fault(line("13 16"), EXPECTED, "'13 16'"),
    "a folder that leaves the clips'": fault(line("../13 16 0"), f"'ROOT/{LISTS['train']}': '../13' leaves the folder"),
    "a folder that is missing": fault(line("77 16 0", "val"), f"the clip 'ROOT/{FRAMES}/77' is missing"),
    "categories out of order": fault(
        in_lists(lambda root: (root / LISTS["labels"]).write_text("".join(
            reversed((root / LISTS["labels"]).read_text().splitlines(keepends=True))))),
        f"'ROOT/{LISTS['labels']}' is not alphabetical, but --data.class_order is alphabetical",
    ),
    "lists that say something else": fault(
        in_lists(lambda root: (root / TRAIN).write_text("".join(
            (root / TRAIN).read_text().splitlines(keepends=True)[:6])), keep_csv=True),
        f"'ROOT/{TRAIN}' (6 clips) and 'ROOT/{LISTS['train']}' (12) do not name the same clips and classes",
    ),
}  # fmt: skip


def test_there_are_thirty() -> None:
    assert len(FAULTS) >= 30


test_a_fault_is_found = each_is_found("something", FAULTS, **SIZES)


def test_what_is_no_fault(tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy(tiny_roots, "something", tmp_path)
    fine("something", root, capfd)
    for i, path in enumerate(sorted((root / CLIP).glob("*.jpg"))):
        Image.open(path).save(root / CLIP / f"img_{i:03d}.PNG")
        path.unlink()
    (root / CLIP / ".DS_Store").write_bytes(b"x")
    (root / CLIP / "notes.txt").write_text("x")
    for name, encoding in ((TRAIN, "utf-16"), (VAL, "utf-8-sig")):
        (root / name).write_text((root / name).read_text(), encoding=encoding)
    fine("something", root, capfd)
    in_lists(lambda root: None)(root)
    fine("something", root, capfd)


def test_all_clips_that_are_wrong_are_named_at_once(
    tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = copy(tiny_roots, "something", tmp_path)
    for clip in ("2", "4", "6"):
        (root / FRAMES / clip / "00003.jpg").unlink()
    status, text = said("something", root, capfd)
    assert status == 1
    assert "3 faults:" in text
    for clip in ("2", "4", "6"):
        assert f"  frame 'ROOT/{FRAMES}/{clip}/00003.jpg' is missing" in text
