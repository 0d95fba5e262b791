"""ModelNet40's two forms, repaired headers, augmentations."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests import tiny
from wsbench.datamodules import ModelNet40, clouds
from wsbench.datamodules.clouds import (
    augment_tf,
    augment_torch,
    rotation_about_y,
    sample_mesh,
    unit_sphere,
)
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.meshes import read_triangles, to_open3d
from wsbench.datamodules.modelnet40 import HDF5, MESHES, hdf5_files, mesh_files
from wsbench.extras import MissingPartError


@pytest.fixture
def root(tiny_roots: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(tiny_roots["modelnet40"], tmp_path / "data"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSBENCH_CACHE", str(tmp_path / "cache"))


def set_up(root: Path, **changes: object) -> ModelNet40:
    data = tiny.data("modelnet40", root, **changes)
    data.setup("fit")
    assert isinstance(data, ModelNet40)
    return data


def test_hdf5_in_the_order_of_its_list(root: Path) -> None:
    files = hdf5_files(root / HDF5, "train")
    assert [p.name for p in files] == ["ply_data_train0.h5", "ply_data_train1.h5"]
    with h5py.File(files[0]) as a, h5py.File(files[1]) as b:
        expected = np.concatenate([a["data"][:, :32], b["data"][:, :32]])
    assert np.array_equal(set_up(root).train_data.clouds.numpy(), expected), "and the first points of each cloud"
    listed = root / HDF5 / "train_files.txt"
    listed.write_text("\n".join(reversed(listed.read_text().split())) + "\n")
    assert np.array_equal(set_up(root).train_data.clouds.numpy(), np.roll(expected, 10, axis=0))


def test_the_root_may_be_the_release_itself(root: Path) -> None:
    direct = set_up(root / HDF5)
    assert torch.equal(direct.train_data.clouds, set_up(root).train_data.clouds)
    assert len(set_up(root / MESHES).train_data) == 20


def test_broken_hdf5_is_named(root: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"ply_data_train0\.h5' has clouds of 512 points, fewer.*set --data.points 512"
    ):
        set_up(root, points=1024)
    with pytest.raises(DatasetError, match=r"--data\.num_classes 40 was given, the data has 10 classes"):
        set_up(root, num_classes=40)
    (root / HDF5 / "ply_data_test0.h5").write_bytes(b"no")
    with pytest.raises(DatasetError, match=r"cannot read '.*ply_data_test0\.h5' as HDF5"):
        set_up(root)
    (root / HDF5 / "train_files.txt").unlink()
    with pytest.raises(DatasetError, match=f"has no {HDF5}"):
        set_up(root, source="hdf5")


def test_broken_headers_are_repaired(root: Path, tmp_path: Path) -> None:
    """``OFF490 518 0`` in the first line, of which open3d makes an empty mesh; quadrangles become two triangles."""
    files = mesh_files(root / MESHES, "train")
    broken = next(p for p in files if p.read_text().split("\n")[0] != "OFF")
    vertices, triangles = read_triangles(broken)
    first = broken.read_text().split("\n")[0].removeprefix("OFF").split()
    assert (len(vertices), len(triangles)) == (int(first[0]), 2 * int(first[1]))
    healthy = tmp_path / broken.name
    healthy.write_text(broken.read_text().replace("OFF", "OFF\n", 1))
    assert np.array_equal(sample_mesh(broken, 50), sample_mesh(healthy, 50)), "sampling is seeded by the name"


def test_an_empty_mesh_is_an_error_naming_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chair_0007.off"
    path.write_text("OFF\n0 0 0\n")
    with pytest.raises(DatasetError, match=r"chair_0007\.off' holds no triangle mesh"):
        read_triangles(path)
    path.write_text("nonsense")
    with pytest.raises(DatasetError, match=r"chair_0007\.off' is no OFF file"):
        read_triangles(path)


def test_meshes_are_sampled_once_and_lie_on_the_surface(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = set_up(root, source="off", points=64)
    assert len(data.train_data) == 20
    assert data.identity().splits["train"].list == "train, off"
    radii = data.train_data.clouds.norm(dim=2)
    assert float(radii.max()) <= 1 + 1e-6
    monkeypatch.setattr(clouds, "sample_mesh", lambda *a: pytest.fail("sampled again"))
    assert torch.equal(set_up(root, source="off", points=64).train_data.clouds, data.train_data.clouds)
    path = mesh_files(root / MESHES, "train")[0]
    vertices, _ = read_triangles(path)
    low, high = vertices.min(0), vertices.max(0)
    points = np.asarray(to_open3d(path).sample_points_uniformly(200).points)
    on_a_side = np.isclose(points, low, atol=1e-6) | np.isclose(points, high, atol=1e-6)
    assert (points >= low - 1e-6).all()
    assert on_a_side[:, 1].mean() > 0.3, "front and back of the slab, of which z is up"


def test_missing_meshes_and_parts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / MESHES / "one" / "test")
    with pytest.raises(DatasetError, match=r"no meshes in '.*one/test'"):
        set_up(root, source="off")
    monkeypatch.setitem(__import__("sys").modules, "open3d", None)
    with pytest.raises(MissingPartError, match=r"pip install 'wsbench\[modelnet40\]'"):
        to_open3d(mesh_files(root / MESHES, "train")[0])


def test_the_release_and_the_meshes_show_the_same_shapes(root: Path) -> None:
    """The miniature's clouds are samples of its meshes: the extents agree."""
    data, meshes = set_up(root, points=512), set_up(root, source="off", points=512)
    for label in range(10):
        a = data.train_data.clouds[data.train_data.labels == label]
        b = meshes.train_data.clouds[meshes.train_data.labels == label]
        spread = [c.std(dim=1).mean(0) for c in (a, b)]
        torch.testing.assert_close(*spread, atol=0.05, rtol=0)


def test_unit_sphere() -> None:
    points = unit_sphere(np.random.default_rng(0).normal(3, 5, (100, 3)))
    assert points.mean(0) == pytest.approx([0, 0, 0], abs=1e-6)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)


def test_rotation_is_about_the_vertical_axis() -> None:
    points = torch.randn(10, 3)
    turned = points @ rotation_about_y(0.7)
    torch.testing.assert_close(turned[:, 1], points[:, 1])
    torch.testing.assert_close(turned.norm(dim=1), points.norm(dim=1))
    torch.testing.assert_close(
        torch.tensor([[1.0, 0, 0]]) @ rotation_about_y(torch.pi / 2), torch.tensor([[0, 0, 1.0]])
    )


def test_the_papers_augmentation_stays_within_its_bounds() -> None:
    """Up to jitter it is a similarity: one scale in [0.8, 1.25], y stays nearly up, shifts of at most 0.1."""
    torch.manual_seed(0)
    cloud = torch.randn(200, 3)
    factors, tilts, shifts = [], [], []
    for seed in range(200):
        out = augment_tf(cloud, torch.Generator().manual_seed(seed))
        u, s, vt = torch.linalg.svd(torch.linalg.lstsq(cloud - cloud.mean(0), out - out.mean(0)).solution)
        factors.append(float(s.mean()))
        rotation = u @ vt
        tilts.append(float(rotation[1, 1]))
        shifts.append((out.mean(0) - (cloud.mean(0) @ (rotation * s.mean()))).abs().max())
    assert 0.79 < min(factors) < 0.85
    assert 1.2 < max(factors) < 1.26
    assert min(tilts) > 0.95
    assert 0.08 < float(max(shifts)) < 0.105


def test_the_pytorch_releases_augmentation() -> None:
    """Each axis scaled by 2/3 to 3/2 and shifted by at most 0.2, points in another order."""
    cloud = torch.rand(50, 3) - 0.5
    for seed in range(50):
        out = augment_torch(cloud, torch.Generator().manual_seed(seed))
        order = torch.argsort(cloud[:, 0])
        found = torch.argsort(out[:, 0])
        slope = (out[found][-1] - out[found][0]) / (cloud[order][-1] - cloud[order][0])
        assert bool(((slope > 2 / 3 - 1e-4) & (slope < 1.5 + 1e-4)).all())
        shift = out[found][0] - cloud[order][0] * slope
        assert float(shift.abs().max()) <= 0.2 + 1e-4
        assert not torch.equal(order, found)
