"""COCO's annotations: crowds, empty images, the mirror, groups of one shape."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from wsbench.datamodules import COCO
from wsbench.datamodules.coco import is_valid, split_place
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.sampling import Draw, StreamSampler


@pytest.fixture
def root(tiny_roots: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_roots["coco"], tmp_path / "data"))


def set_up(root: Path, **changes: object) -> COCO:
    data = tiny.data("coco", root, **changes)
    data.setup("fit")
    assert isinstance(data, COCO)
    return data


def annotations_of(root: Path, split: str) -> Path:
    place = split_place(root, split)
    assert place is not None
    return place.annotations


def edit(root: Path, split: str, change: Any) -> None:
    path = annotations_of(root, split)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_samples(root: Path) -> None:
    assert COCO.is_present(root)
    data = set_up(root, flip=0.0)
    picture, target = data.train_data[Draw(0, 0)]
    height, width = picture.shape[1:]
    assert picture.dtype == torch.uint8
    assert target["masks"].shape == (len(target["labels"]), height, width)
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        rows, columns = np.nonzero(mask.numpy())
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert set(target["labels"].tolist()) <= set(range(1, 11))
    picture, target = data.val_data[0]
    assert target == {"image_id": 1}


def test_the_mirror(root: Path) -> None:
    plain, mirrored = set_up(root, flip=0.0), set_up(root, flip=1.0)
    (a, s), (b, t) = plain.train_data[Draw(1, 5)], mirrored.train_data[Draw(1, 5)]
    assert torch.equal(a.flip(2), b)
    assert torch.equal(s["masks"].flip(2), t["masks"])
    width = a.shape[2]
    torch.testing.assert_close(t["boxes"][:, 0], width - s["boxes"][:, 2])
    torch.testing.assert_close(t["boxes"][:, 1::2], s["boxes"][:, 1::2])
    assert sum(torch.equal(set_up(root, flip=0.5).train_data[Draw(1, i)][0], a) for i in range(40)) in range(8, 33)


def test_crowds_and_empty_pictures(root: Path) -> None:
    """An image without a box, or with boxes of a pixel only, is not trained on; crowds are left out of a target."""

    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            if annotation["image_id"] == 1:
                annotation["iscrowd"] = 1
            if annotation["image_id"] == 3:
                annotation["bbox"][2] = 1
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]

    edit(root, "train", change)
    data = set_up(root)
    assert data.train_data.ids == [1, 4, 5]
    _, target = data.train_data[Draw(0, 0)]
    assert target["boxes"].shape == (0, 4), "only crowds: kept, without objects, as the reference does"
    assert target["masks"].shape[0] == 0
    model: Any = tiny.model("coco", "gn")
    total, _ = model.loss(data.collate([data.train_data[Draw(0, 0)]]))
    total.backward()
    assert bool(total.isfinite())
    edit(root, "val", lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 2]))
    assert set_up(root).val_data.ids == [1, 2, 3], "evaluation looks at every picture"


def test_is_valid_is_maskrcnn_benchmarks() -> None:
    assert not is_valid([])
    assert not is_valid([{"bbox": [0, 0, 1, 9]}, {"bbox": [0, 0, 9, 0.5]}])
    assert is_valid([{"bbox": [0, 0, 1, 9]}, {"bbox": [0, 0, 2, 2]}])


def test_boxes_are_cut_to_the_picture(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        mine = [a for a in content["annotations"] if a["image_id"] == 1]
        mine[0]["bbox"] = [-5, -5, 4000, 4000]
        for other in mine[1:]:
            other["bbox"] = [4000, 0, 5, 5]

    edit(root, "train", change)
    picture, target = set_up(root, flip=0.0).train_data[Draw(0, 0)]
    assert target["boxes"].tolist() == [[0, 0, picture.shape[2], picture.shape[1]]]


def test_categories_are_numbered_in_the_order_of_their_ids(root: Path) -> None:
    """COCO's 80 ids run to 90."""

    def change(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["id"] = category["id"] * 9 % 100
        for annotation in content["annotations"]:
            annotation["category_id"] = annotation["category_id"] * 9 % 100
        content["categories"].reverse()

    before = set_up(root, flip=0.0).train_data[Draw(0, 0)][1]["labels"]
    for split in ("train", "val"):
        edit(root, split, change)
    data = set_up(root, flip=0.0)
    assert data.category_ids == [9 * i for i in range(1, 11)]
    assert data.classes == tuple("0123456789")
    assert torch.equal(data.train_data[Draw(0, 0)][1]["labels"], before)


def test_broken_annotations_are_named(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"--data.num_classes 11 was given, the data has 10 classes"):
        set_up(root, num_classes=11)
    Image.new("RGB", (5, 5)).save(root / "train2017" / "000000000001.jpg")
    with pytest.raises(DatasetError, match=r"000000000001\.jpg' is 5x5, its annotation says"):
        set_up(root).train_data[Draw(0, 0)]
    edit(root, "train", lambda c: c["categories"][9].update(name="none"))
    with pytest.raises(DatasetError, match="category 10 other names: 'none' and '9'"):
        set_up(root)
    annotations_of(root, "val").write_text("{}")
    with pytest.raises(DatasetError, match=r"instances_val2017\.json': 'images' is missing"):
        set_up(root)


def test_micro_batches_of_one_shape() -> None:
    """Every micro-batch is of one kind; a pass leaves out what does not fill one, other items each time."""
    kinds = [0] * 7 + [1] * 12
    sampler = StreamSampler(19, 30, 4, 2, seed=1)
    sampler.group_by(kinds)
    items = [draw.index for draw in sampler]
    assert all(kinds[a] == kinds[b] for a, b in zip(items[::2], items[1::2], strict=True))
    assert sampler.length == 18
    passes = [items[i : i + 18] for i in range(0, len(items) - 17, 18)]
    assert all(len(set(p)) == 18 for p in passes)
    assert len({next(i for i in range(19) if i not in p) for p in passes}) > 1
    halves = [StreamSampler(19, 30, 4, 2, 1, rank, 2) for rank in (0, 1)]
    for half in halves:
        half.group_by(kinds)
    dealt = [[d.index for d in half] for half in halves]
    steps = [a[i : i + 2] + b[i : i + 2] for a, b in [dealt] for i in range(0, len(a), 2)]
    assert [i for step in steps for i in step] == items, "two devices see what one sees"
    with pytest.raises(ValueError, match="no kind has 20 items"):
        StreamSampler(19, 1, 20, 20).group_by(kinds)
