"""Datasets as other people have them: names, suffixes, folders, lists, ids."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from wsbench.__main__ import main
from wsbench.datamodules import COCO, VOC, ImageNet, ModelNet40, SomethingSomething
from wsbench.datamodules.coco import split_place
from wsbench.datamodules.errors import DatasetError
from wsbench.tasks.coco import average_precision, detections


def copy(task: str, roots: dict[str, Path], folder: Path) -> Path:
    return Path(shutil.copytree(roots[task], folder / "data"))


def noise(seed: int, *size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


# -- images in class folders ----------------------------------------------------------------------------------------


def test_any_folder_of_class_folders(tmp_path: Path) -> None:
    names = {"cat": "a.JPG", "Great Dane": "b.png", "zebra": "c.webp", "häsa": "d.bmp"}
    for split in ("train", "val"):
        for name, file in names.items():
            (tmp_path / split / name).mkdir(parents=True)
            noise(1, 40, 40).save(tmp_path / split / name / file)
        for junk in (".ipynb_checkpoints", "__MACOSX", ".hidden"):
            (tmp_path / split / junk).mkdir()
        (tmp_path / split / ".DS_Store").write_bytes(b"x")
        (tmp_path / split / "cat" / "._a.JPG").write_bytes(b"x")
        (tmp_path / split / "cat" / "notes.txt").write_text("x")
    data = ImageNet(root=str(tmp_path), crop=32, resize=32, num_workers=0)
    data.setup("fit")
    assert data.classes == ("Great Dane", "cat", "häsa", "zebra")
    assert data.num_classes == 4
    assert [len(data.train_data), len(data.val_data)] == [4, 4]
    assert {data.train_data[i]["label"] for i in range(4)} == {0, 1, 2, 3}


def test_files_whose_names_are_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, and as long as a name may be."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            noise(1, 40, 40).save(tmp_path / "x.png")
            for target in (b"caf\xe9.png", b"n" * 251 + b".png"):
                (tmp_path / split / name / target.decode("utf-8", "surrogateescape")).write_bytes(
                    (tmp_path / "x.png").read_bytes()
                )
    data = ImageNet(root=str(tmp_path), crop=32, resize=32, num_workers=0)
    data.setup("fit")
    assert len(data.train_data) == 4
    data.train_data.check(0)
    again = ImageNet(root=str(tmp_path), crop=32, resize=32, num_workers=0)
    again.setup("fit")
    assert data.identity() == again.identity()


def test_a_class_folder_that_changed_is_read_again(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    root = copy("imagenet", tiny_roots, tmp_path)
    first = tiny.data("imagenet", root)
    first.setup("fit")
    noise(3, 40, 40).save(next((root / "train").iterdir()) / "zz_new.png")
    second = tiny.data("imagenet", root)
    second.setup("fit")
    assert len(second.train_data) == len(first.train_data) + 1
    assert second.identity() != first.identity()


# -- masks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Two-column lists, PNG images, grey masks, names of classes: as other toolboxes have them."""
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        lines = []
        for i in range(3):
            noise(i, 30, 40).save(tmp_path / "JPEGImages" / f"{split}{i}.png")
            mask = rng.integers(0, 3, (30, 40), dtype=np.uint8)
            Image.fromarray(mask).save(tmp_path / "SegmentationClassAug" / f"{split}{i}.png")
            lines.append(f"/JPEGImages/{split}{i}.png /SegmentationClassAug/{split}{i}.png")
        (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(lines))
    return tmp_path


def voc(root: Path, **options: Any) -> VOC:
    data = VOC(root=str(root), train_set="train", crop=33, num_workers=0, **options)
    data.setup("fit")
    return data


def test_evaluation_set_up_before_training(devkit: Path) -> None:
    """What was inferred from the evaluation set is not what the user gave."""
    for path in (devkit / "SegmentationClassAug").glob("val*.png"):
        Image.fromarray(np.asarray(Image.open(path)).clip(max=1)).save(path)
    data = VOC(root=str(devkit), train_set="train", crop=33, num_workers=0)
    data.setup("validate")
    assert data.num_classes == 2
    data.setup("fit")
    assert data.num_classes == 3
    assert data.val_data.num_classes == 3


def test_grey_masks_of_four_bits_are_refused(devkit: Path) -> None:
    """Pillow stretches their values to 255: class 1 would be 17."""
    path = devkit / "SegmentationClassAug" / "train0.png"
    path.write_bytes(grey_png(np.ones((30, 40), np.uint8), bits=4))
    assert np.asarray(Image.open(path)).max() == 17
    with pytest.raises(DatasetError, match=r"train0\.png' is a grey PNG of 4 bits"):
        voc(devkit)


def grey_png(values: np.ndarray[Any, Any], bits: int) -> bytes:
    """A grey PNG by hand."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    rows = b"".join(b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_lists_of_two_columns_and_images_that_are_no_jpeg(devkit: Path) -> None:
    data = voc(devkit)
    assert data.classes == ("0", "1", "2"), "as many as the masks have"
    assert data.val_data.masks[0].parent.name == "SegmentationClassAug"
    assert data.val_data[0]["image"].shape == (3, 33, 40)
    (devkit / "class_names.txt").write_text("sky\nroad\ncar\n")
    assert voc(devkit).classes == ("sky", "road", "car")
    assert voc(devkit, class_names=["a", "b", "c", "d"]).num_classes == 4, "one that no mask has"
    with pytest.raises(
        DatasetError, match=r"--data.num_classes 4 was given, the data has 3 classes \(sky, road, car\)"
    ):
        voc(devkit, num_classes=4)
    with pytest.raises(DatasetError, match="class number 2, expected 0 to 1"):
        voc(devkit, class_names=["a", "b"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_as_powershell_writes_them(devkit: Path, encoding: str) -> None:
    before = voc(devkit).identity()
    for path in (devkit / "ImageSets" / "Segmentation").glob("*.txt"):
        path.write_text(path.read_text(), encoding=encoding)
    assert voc(devkit).identity() == before


def test_predicted_masks_have_the_colours_of_the_training_masks(devkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = [250, 10, 10, 10, 250, 10, 10, 10, 250, *([7] * 759)]
    for path in (devkit / "SegmentationClassAug").glob("*.png"):
        mask = Image.open(path).copy()
        mask.putpalette(colours)
        mask.save(path)
    monkeypatch.chdir(devkit)
    monkeypatch.setattr("sys.argv", ["wsbench"])
    line = ["fit", "--task", "voc", "--recipe", "small", "--data.root", ".", "--data.crop", "33"]
    line += ["--trainer.max_epochs", "1", "--data.min_steps_per_epoch", "1", "--trainer.accelerator", "cpu"]
    line += ["--data.num_workers", "0", "--model.network", "deeplabv3_resnet_mini", "--model.aspp_width", "32"]
    assert main(line) == 0
    (run,) = Path("runs/voc").iterdir()
    assert (
        main(["predict", "--ckpt_path", str(run / "last.ckpt"), "--data.pictures", "JPEGImages", "--output", "o"]) == 0
    )
    palette = Image.open("o/val0.png").getpalette()
    assert palette is not None
    assert palette[:9] == colours[:9]


# -- boxes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["from zero", "per image", "all one"])
def test_ids_of_annotations_cost_no_ap(ids: str, tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    """Perfect detections score 100 whatever the file's ids: pycocotools takes 0 for no match, and mixes equal ones."""
    root = copy("coco", tiny_roots, tmp_path)
    place = split_place(root, "val")
    assert place is not None
    content = json.loads(place.annotations.read_text())
    seen: dict[int, int] = {}
    for i, annotation in enumerate(content["annotations"]):
        seen[annotation["image_id"]] = seen.get(annotation["image_id"], -1) + 1
        annotation["id"] = {"from zero": i, "per image": seen[annotation["image_id"]], "all one": 1}[ids]
    place.annotations.write_text(json.dumps(content))
    data = tiny.data("coco", root)
    data.setup("validate")
    assert isinstance(data, COCO)
    truth, found = data.val_annotations, []
    for annotation in truth.dataset["annotations"]:
        box = torch.tensor(annotation["bbox"], dtype=torch.float32)
        output = {"boxes": torch.cat([box[:2], box[:2] + box[2:]])[None], "scores": torch.tensor([0.9]),
                  "labels": torch.tensor([data.category_ids.index(annotation["category_id"]) + 1])}  # fmt: skip
        found += detections(output, annotation["image_id"], data.category_ids)
    assert average_precision(truth, found, sorted(truth.imgs), "box")["box_AP"] == pytest.approx(100)


def test_what_is_defined_by_the_rest_is_filled_in(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    root = copy("coco", tiny_roots, tmp_path)
    before = tiny.data("coco", root)
    before.setup("fit")
    for split in ("train", "val"):
        place = split_place(root, split)
        assert place is not None
        content = json.loads(place.annotations.read_text())
        for image in content["images"]:
            del image["height"], image["width"]
        for annotation in content["annotations"]:
            del annotation["area"], annotation["iscrowd"]
        place.annotations.write_text(json.dumps(content))
    after = tiny.data("coco", root)
    after.setup("fit")
    for a, b in zip(before.val_annotations.dataset["annotations"], after.val_annotations.dataset["annotations"],
                    strict=True):  # fmt: skip
        assert b["area"] == pytest.approx(a["area"]), "the pixels of the mask"
        assert b["iscrowd"] == 0
    assert [i["height"] for i in after.val_annotations.dataset["images"]] == [
        i["height"] for i in before.val_annotations.dataset["images"]
    ]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("annotations/instances_{}.json", "{}"), ("annotations/{}.json", "images/{}"), ("{}.json", "images"),
     ("{}/_annotations.coco.json", "{}")],
)  # fmt: skip
def test_other_names_of_cocos_folders(
    annotations: str, images: str, tiny_roots: dict[str, Path], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        place = split_place(tiny_roots["coco"], split)
        assert place is not None
        target = tmp_path / images.format(split)
        target.mkdir(parents=True, exist_ok=True)
        content = json.loads(place.annotations.read_text())
        for image in content["images"]:
            name = f"{split}_{image['file_name']}"
            shutil.copy(place.images / image["file_name"], target / name)
            image["file_name"] = name
        file = tmp_path / annotations.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    data = tiny.data("coco", tmp_path)
    data.setup("fit")
    data.train_data.check(0)
    assert len(data.val_data) == 3


# -- clips and shapes -----------------------------------------------------------------------------------------------


def write_clips(root: Path, clips: Sequence[str], frames: int, name: str) -> None:
    for clip in clips:
        (root / "frames" / clip).mkdir(parents=True)
        for i in range(frames):
            noise(i, 40, 50).save(root / "frames" / clip / name.format(i))
    (root / "labels.csv").write_text("push\npull\n")


def test_clips_with_dots_prefixes_and_frames_from_zero(tmp_path: Path) -> None:
    write_clips(tmp_path, ("clip.1", "clip.2"), 9, "img_{:03d}.PNG")
    (tmp_path / "train.csv").write_text("clip.1;push\nclip.2;pull\n")
    (tmp_path / "validation.csv").write_text("clip.2;pull\n")
    data = SomethingSomething(root=str(tmp_path), crop=32, resize=32, num_workers=0)
    data.setup("fit")
    assert data.classes == ("pull", "push")
    assert [clip.frames for clip in data.train_data.clips] == [9, 9]
    data.train_data.check(1)
    predict = SomethingSomething(pictures=str(tmp_path / "frames"), crop=32, resize=32)
    predict.setup("predict")
    assert [predict.predict_data[i]["name"] for i in range(2)] == ["clip.1", "clip.2"]


def test_clips_of_one_name_in_two_folders(tmp_path: Path) -> None:
    write_clips(tmp_path, ("a/7", "b/7"), 4, "{:03d}.jpg")
    (tmp_path / "validation.csv").write_text("b/7;pull\n")
    checksums = set()
    for clip in ("a/7", "b/7"):
        (tmp_path / "train.csv").write_text(f"{clip};push\n")
        data = SomethingSomething(root=str(tmp_path), crop=32, resize=32, num_workers=0)
        data.setup("fit")
        checksums.add(data.identity().splits["train"].checksum)
    assert len(checksums) == 2


def test_clouds_listed_with_their_folders_and_names_with_spaces(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for place in ("a", "b", "."):
        (tmp_path / place).mkdir(exist_ok=True)
        with h5py.File(tmp_path / place / "x.h5", "w") as file:
            file["data"] = rng.random((2, 32, 3), dtype=np.float32)
            file["label"] = np.array([[0], [1]], np.uint8)
    (tmp_path / "shape_names.txt").write_text("coffee table\nlamp\n")
    (tmp_path / "train_files.txt").write_text("a/x.h5\nb/x.h5\n")
    (tmp_path / "test_files.txt").write_text("gone/x.h5\n")
    data = ModelNet40(root=str(tmp_path), points=32, num_workers=0)
    data.setup("fit")
    assert data.classes == ("coffee table", "lamp")
    firsts = {tuple(cloud[0].tolist()) for cloud in (*data.train_data.clouds, *data.val_data.clouds)}
    assert len(firsts) == 6, "three files, each once"


def test_meshes_of_one_name_in_two_datasets(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    """As large and as old as each other: what was sampled of one is not taken for the other."""
    roots = [Path(shutil.copytree(tiny_roots["modelnet40"] / "ModelNet40", tmp_path / name)) for name in "ab"]
    for first, second in zip(*(sorted(root.rglob("*.off")) for root in roots), strict=True):
        text = first.read_text()
        second.write_text(text.replace("0.5", "0.4"))
        stat = first.stat()
        os.utime(second, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    clouds = []
    for root in roots:
        data = ModelNet40(root=str(root), points=32, num_workers=0)
        data.setup("fit")
        clouds.append((data.train_data.clouds, data.identity()))
    assert not torch.equal(clouds[0][0], clouds[1][0])
    assert clouds[0][1] != clouds[1][1]


def test_meshes_in_a_folder_of_ones_own(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    for source in sorted((tiny_roots["modelnet40"] / "ModelNet40").iterdir())[:2]:
        shutil.copytree(source, root / source.name)
    for path in sorted(root.rglob("*.off"))[:2]:
        path.rename(path.with_suffix(".OFF"))
    (root / ".ipynb_checkpoints").mkdir()
    data = ModelNet40(root=str(root), points=32, num_workers=0)
    data.setup("fit")
    assert len(data.classes) == 2
    assert len(data.train_data) == 4
