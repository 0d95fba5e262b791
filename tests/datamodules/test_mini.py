import hashlib
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from torchvision.datasets import VOCSegmentation

from wsbench.datamodules.mini import coco, modelnet40, voc
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


def pinned(task: str, root: Path) -> str:
    """A checksum of what the labels of a miniature are; pixels go through a JPEG encoder and are left out."""
    digest = hashlib.sha256()
    if task == "imagenet":
        for path in sorted(root.rglob("*.JPEG")):
            with Image.open(path) as picture:
                digest.update(f"{path.relative_to(root).as_posix()} {picture.size}\n".encode())
    elif task == "something":
        for path in sorted(root.glob("*.csv")):
            digest.update(path.read_bytes())
        for path in sorted((root / "20bn-something-something-v1").iterdir(), key=lambda p: int(p.name)):
            digest.update(f"{path.name} {sum(1 for _ in path.iterdir())}\n".encode())
    elif task == "modelnet40":
        for path in sorted(root.rglob("*.off")):
            digest.update(path.read_bytes())
        for path in sorted(root.rglob("*.h5")):
            with h5py.File(path) as file:
                digest.update(np.round(file["data"][:, :8], 3).tobytes() + file["label"][:].tobytes())
    else:
        for path in sorted((root / "annotations").iterdir()):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(
    ("task", "checksum"),
    [
        ("imagenet", "20817f1f88364c1d"),
        ("something", "df626b37d80d0c64"),
        ("modelnet40", "4708de005fbdc191"),
        ("coco", "4b75b683f5add962"),
    ],
)
def test_labels_are_those_of_the_published_numbers(task: str, checksum: str) -> None:
    """A change to a miniature needs a new name: the records belong to this one."""
    module = import_module(f"wsbench.datamodules.mini.{task}")
    assert f"{task}-mini-v1" == module.NAME
    assert pinned(task, ensure(module.NAME, module.write)) == checksum


def test_coco_and_voc_show_the_same_kind_of_scene() -> None:
    """Boxes enclose what is visible; categories are digit + 1; the areas are those of the masks."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        _, classes, numbers = voc.scene(rng, "val")
        for found in coco.instances(classes, numbers):
            mask = rle.decode(found["segmentation"])
            rows, columns = np.nonzero(mask)
            assert found["area"] == mask.sum()
            x, y, width, height = found["bbox"]
            assert (columns.min(), rows.min()) == (x, y)
            assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (width, height)
            assert set(classes[mask == 1]) == {found["category_id"]}


def test_extruded_digits_are_closed_surfaces() -> None:
    """Every edge of a slab belongs to faces on both sides; its area is that of a sum of squares."""
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1] = True
    vertices, faces = modelnet40.extrude(mask, 0.5)
    edges: dict[tuple[int, int], int] = {}
    for face in faces.tolist():
        for a, b in zip(face, face[1:] + face[:1], strict=True):
            edges[a, b] = edges.get((a, b), 0) + 1
    assert all(edges.get((b, a)) == count for (a, b), count in edges.items()), "orientable and closed"
    corner, right, up = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 3]]
    area = np.linalg.norm(np.cross(right - corner, up - corner), axis=1).sum()
    assert area == pytest.approx(2 * 2 / 16 + 6 * 0.25 * 0.5)
    points = modelnet40.surface_points(np.random.default_rng(0), vertices, faces, 4000)
    assert points.mean(0) == pytest.approx([0, 0, 0], abs=1e-5)
