import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCSegmentation

from wsbench.datamodules.mini import voc
from wsbench.datamodules.mini.digits import digits, stamp
from wsbench.datamodules.mini.store import ensure, is_intact


def test_train_and_validation_digits_are_disjoint() -> None:
    (train, train_labels), (val, val_labels) = digits("train"), digits("val")
    assert len(train) + len(val) == 1797
    assert not {d.tobytes() for d in train} & {d.tobytes() for d in val}
    assert set(train_labels) == set(val_labels) == set(range(10))


def test_stamp_is_cropped_to_ink() -> None:
    ink = stamp(digits("train")[0][0], 40, 5.0)
    for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]):
        assert edge.max() > voc.INK


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini")
    voc.write(root)
    return root / "VOCdevkit" / "VOC2012"


def test_layout_is_vocs(devkit: Path) -> None:
    for split, count in voc.COUNTS.items():
        dataset = VOCSegmentation(str(devkit.parents[1]), "2012", split)
        assert len(dataset) == count
        image, mask = dataset[0]
        assert image.size == mask.size
        assert mask.mode == "P"
    palette = np.asarray(mask.getpalette()).reshape(-1, 3)
    assert palette[1].tolist() == [128, 0, 0], "VOC's colour of class 1"
    assert palette[20].tolist() == [0, 64, 128], "VOC's colour of class 20"
    assert palette[255].tolist() == [224, 224, 192], "VOC's colour of void"


def test_masks_have_void_borders_and_occlusion(devkit: Path) -> None:
    counts = np.zeros(256)
    touching = 0
    for path in sorted((devkit / "SegmentationClass").glob("val*.png")):
        mask = np.asarray(Image.open(path))
        instances = np.asarray(Image.open(devkit / "SegmentationObject" / path.name))
        counts += np.bincount(mask.ravel(), minlength=256)
        for a, b in ((mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:])):
            different = (a != b) & (a != 255) & (b != 255)
            assert not different.any(), f"{path.name}: two classes touch without void between them"
        touching += len(set(np.unique(instances)) - {0, 255}) > 1
        assert ((mask == 0) == (instances == 0)).all()
        assert ((mask == 255) == (instances == 255)).all()
    assert (counts[:11] > 0).all(), "every class occurs"
    assert counts[255] > 0
    assert touching > 40
    assert 0.6 < counts[0] / counts.sum() < 0.9


def test_deterministic(devkit: Path, tmp_path: Path) -> None:
    voc.write(tmp_path)
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 3 * sum(voc.COUNTS.values()) + 3
    assert all((tmp_path / f).read_bytes() == (devkit.parents[1] / f).read_bytes() for f in files)


def test_the_pinned_masks(devkit: Path) -> None:
    """The published numbers belong to these masks; if this fails, the miniature needs a new version number."""
    digest = hashlib.sha256()
    for path in sorted((devkit / "SegmentationClass").glob("*.png")):
        digest.update(np.asarray(Image.open(path)).tobytes())
    assert digest.hexdigest()[:16] == "173ed0c6be8d1aca"


def test_store_makes_once_and_repairs(tmp_path: Path) -> None:
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "a.txt").write_text("content")

    folder = ensure("thing", write, tmp_path)
    assert ensure("thing", write, tmp_path) == folder
    assert len(calls) == 1
    (folder / "a.txt").write_text("damaged")
    assert not is_intact(folder)
    ensure("thing", write, tmp_path)
    assert (len(calls), (folder / "a.txt").read_text()) == (2, "content")
    assert [p.name for p in (tmp_path / "mini").iterdir()] == ["thing"], "nothing half-written stays behind"


def test_store_leaves_nothing_behind_when_writing_fails(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ensure("thing", write, tmp_path)
    assert list((tmp_path / "mini").iterdir()) == []
