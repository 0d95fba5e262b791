"""A val made of data that has none: nothing lost, nothing twice, every class in both, the user's folder as it was."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_voc
from wsbench.datamodules import VOC, ImageNet
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.prepare import preparation
from wsbench.datamodules.prepare.split import LIST


def photos(root: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{i} ä.jpg")
    return root


def everything(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


def test_class_folders(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", {"cat": 10, "a dog": 5, "émeu": 3})
    before = everything(root)
    made = preparation("imagenet").split(root, tmp_path / "out")
    assert made is not None
    assert everything(root) == before
    data = ImageNet(root=str(made), num_workers=0, crop=16, resize=16)
    data.setup("fit")
    assert data.classes == ("a dog", "cat", "émeu")
    parts = {split: [*part.names] for split, part in data.describe().items()}
    assert {split: len(names) for split, names in parts.items()} == {"train": 14, "val": 4}
    assert sorted([*parts["train"], *parts["val"]]) == sorted(p for p in before if p.endswith(".jpg"))
    assert {name.split("/")[0] for name in parts["val"]} == {"cat", "a dog", "émeu"}
    rows = [*csv.DictReader((made / LIST).open(encoding="utf-8"))]
    assert sorted((r["split"], r["sample"]) for r in rows) == sorted((s, n) for s, ns in parts.items() for n in ns)
    assert data.train_data[0]["image"].shape == (3, 16, 16)
    # the same again; another folder for other data, and the held-out ones of the rest stay
    assert preparation("imagenet").split(root, tmp_path / "out") == made
    photos(root, {"fox": 4})
    other = preparation("imagenet").split(root, tmp_path / "out")
    assert other not in (None, made)
    assert {p.name for p in (made / "val" / "cat").iterdir()} == {p.name for p in (other / "val" / "cat").iterdir()}  # type: ignore[operator]


def test_train_alone(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos" / "train", {"cat": 5, "dog": 5}).parent
    made = preparation("imagenet").split(root, tmp_path / "out")
    assert made is not None
    ImageNet(root=str(made), num_workers=0).setup("fit")


def test_a_class_of_one(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", {"cat": 5, "dog": 1})
    with pytest.raises(DatasetError, match=r"the class 'dog' has 1 sample\(s\)"):
        preparation("imagenet").split(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_without_lists(tmp_path: Path) -> None:
    devkit = write_voc(tmp_path / "data", train=5, val=5) / "VOCdevkit" / "VOC2012"
    (devkit / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(21)))
    for path in (devkit / "ImageSets" / "Segmentation").iterdir():
        path.unlink()
    (devkit / "ImageSets" / "Segmentation").rmdir()
    made = preparation("voc").split(devkit, tmp_path / "out")
    assert made is not None
    data = VOC(root=str(made), num_workers=0, train_set="train")
    data.setup("fit")
    assert {name: len([*part.names]) for name, part in data.describe().items()} == {"train": 8, "val": 2}
    assert data.classes[3] == "class 3"
    assert data.val_data[0] is not None


def test_meshes_in_class_folders(tmp_path: Path) -> None:
    for name in ("chair", "lamp"):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "shapes" / name / f"{name}_{i}.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    made = preparation("modelnet40").split(tmp_path / "shapes", tmp_path / "out")
    assert made is not None
    assert {p.name: len([*p.iterdir()]) for p in sorted((made / "chair").iterdir())} == {"test": 1, "train": 4}


@pytest.mark.parametrize("task", ["something", "coco", "imagenet", "voc", "modelnet40"])
def test_what_cannot_be_split(task: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert preparation(task).split(tmp_path / "data", tmp_path / "out") is None
    assert preparation(task).split(tmp_path / "nothing", tmp_path / "out") is None
    (tmp_path / "data" / "val").mkdir()
    assert preparation("imagenet").split(tmp_path / "data", tmp_path / "out") is None
