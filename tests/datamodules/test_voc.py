from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsbench.datamodules import VOC
from wsbench.datamodules.errors import DatasetError, DatasetNotFoundError
from wsbench.datamodules.palette import VOID
from wsbench.datamodules.sampling import Draw
from wsbench.datamodules.segmentation import collate
from wsbench.datamodules.voc import place


def devkit(root: Path) -> Path:
    found = place(root)
    assert found is not None
    return found


def names_of(data: VOC, split: str) -> list[str]:
    return [one.name for one in data._listed[split]]


def module(root: Path, **kwargs: object) -> VOC:
    return VOC(root=str(root), **{"train_set": "train", "crop": 33, "num_workers": 0, "effective_batch": 2} | kwargs)  # type: ignore[arg-type]


def test_training_and_evaluation_batches(voc_root: Path) -> None:
    data = module(voc_root, micro_batch=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 33, 33)
    assert batch["mask"].shape == (2, 33, 33)
    assert batch["mask"].dtype == torch.uint8
    images = list(data.val_dataloader())
    assert len(images) == 5
    name = names_of(data, "val")[0]
    mask = np.asarray(Image.open(devkit(voc_root) / "SegmentationClass" / f"{name}.png"))
    height, width = mask.shape
    got = images[0]["mask"][0]
    assert got.shape == (max(33, height), max(33, width)), "full resolution, padded to the crop"
    assert np.array_equal(got[:height, :width].numpy(), mask), "palette masks read as class numbers"
    assert (got[height:] == 255).all()


def test_identity(voc_root: Path) -> None:
    data = module(voc_root)
    data.setup("fit")
    identity = data.identity()
    assert identity.name == "custom", "five validation images are not VOC 2012"
    assert (identity.splits["train"].count, identity.splits["val"].count) == (6, 5)
    names = devkit(voc_root) / "ImageSets" / "Segmentation" / "val.txt"
    names.write_text("\n".join(reversed(names_of(data, "val"))) + "\n")
    again = module(voc_root)
    again.setup("fit")
    assert again.identity().splits["val"].checksum != identity.splits["val"].checksum


def test_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DatasetNotFoundError,
        match=r"(?s)under '.*': looked for VOCdevkit.*; it is empty.*wsbench data voc.*--recipe mini",
    ):
        module(tmp_path).setup("fit")
    monkeypatch.delenv("WSBENCH_DATA", raising=False)
    with pytest.raises(DatasetNotFoundError, match=r"\$WSBENCH_DATA"):
        VOC().setup("fit")


def test_environment_variable(voc_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSBENCH_DATA", str(voc_root))
    data = VOC(train_set="train", num_workers=0)
    data.setup("fit")
    assert len(data.train_data) == 6


def test_missing_list_says_how_to_build_it(voc_root: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"trainaug.txt' is missing; `python -m wsbench data voc` builds it.*there are: train, val"
    ):
        module(voc_root, train_set="trainaug").setup("fit")


def test_missing_files_are_counted_and_named(voc_root: Path) -> None:
    (devkit(voc_root) / "JPEGImages" / "2007_000002.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 files of 'train' are missing, among them '.*2007_000002\.jpg'"):
        module(voc_root).setup("fit")


def test_a_broken_picture_is_named(voc_root: Path) -> None:
    path = devkit(voc_root) / "JPEGImages" / "2007_000000.jpg"
    path.write_bytes(path.read_bytes()[:100])
    data = module(voc_root)
    data.setup("fit")
    with pytest.raises(DatasetError, match=r"2007_000000\.jpg"):
        data.train_data[Draw(0, 0)]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (9, 9)), "is 9x9, its image"),
        (None, r"holds class number 77, expected 0 to 20 and 255"),
        (Image.new("RGB", (9, 9)), "is a RGB image"),
    ],
)
def test_a_wrong_mask_is_named(voc_root: Path, mask: Image.Image | None, message: str) -> None:
    path = devkit(voc_root) / "SegmentationClass" / "2007_000001.png"
    if mask is None:
        mask = Image.new("L", Image.open(path).size, 77)
    mask.save(path)

    def read() -> None:
        data = module(voc_root, num_classes=21)
        data.setup("fit")
        data.train_data[Draw(1, 0)]

    with pytest.raises(DatasetError, match=message) as error:
        read()
    assert "2007_000001.png" in str(error.value)


def test_trainaug_uses_its_own_masks(voc_root: Path) -> None:
    from wsbench.datamodules.prepare.voc import build_trainaug

    names = build_trainaug(voc_root, quiet=True)
    data = module(voc_root, train_set="trainaug")
    data.setup("fit")
    assert names_of(data, "train") == names
    assert data.train_data.masks[0].parent.name == "SegmentationClassAug"
    assert data.val_data.masks[0].parent.name == "SegmentationClass"


def test_miniature_and_root_exclude_each_other(voc_root: Path) -> None:
    with pytest.raises(DatasetError, match="exclude each other"):
        VOC(root=str(voc_root), miniature=True)


def test_pictures_for_prediction(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder"):
        VOC(pictures=str(tmp_path / "none")).setup("predict")
    with pytest.raises(DatasetError, match="no images in"):
        VOC(pictures=str(tmp_path)).setup("predict")
    with pytest.raises(DatasetError, match=r"--data\.pictures"):
        VOC().setup("predict")
    Image.new("L", (50, 20)).save(tmp_path / "grey.PNG")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.jpg")
    data = VOC(pictures=str(tmp_path), crop=33, num_workers=0)
    data.setup("predict")
    grey, small = list(data.predict_dataloader())
    assert grey["image"].shape == (1, 3, 33, 50)
    assert grey["size"].tolist() == [[20, 50]]
    assert small["image"].shape == (1, 3, 33, 33)


def test_predictions_of_images_with_one_name_keep_apart(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    data = VOC(pictures=str(tmp_path))
    data.setup("predict")
    assert [data.predict_data[i]["name"] for i in range(3)] == ["a.jpg", "a.png", "b"]


def test_images_of_different_sizes_are_padded_to_the_largest() -> None:
    shapes = ((30, 20), (25, 40))
    batch: Any = collate(
        [
            {"image": torch.full((3, *shape), 7, dtype=torch.uint8), "mask": torch.ones(shape, dtype=torch.uint8),
             "size": torch.tensor(shape)}
            for shape in shapes
        ]
    )  # fmt: skip
    assert batch["image"].shape == (2, 3, 30, 40)
    for i, (height, width) in enumerate(shapes):
        assert bool((batch["image"][i, :, :height, :width] == 7).all())
        assert int((batch["mask"][i] == 1).sum()) == height * width
        assert int((batch["mask"][i] == VOID).sum()) == 30 * 40 - height * width
        assert batch["size"][i].tolist() == [height, width]
