"""Point clouds: augmentations of both DGCNN codes, HDF5 files, meshes sampled with open3d."""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from wsbench.datamodules.errors import DatasetError, refuse_all
from wsbench.datamodules.meshes import to_open3d
from wsbench.datamodules.sampling import Draw
from wsbench.extras import open3d
from wsbench.records import write_atomically
from wsbench.seeds import derived_seed

Augment = Callable[[Tensor, torch.Generator], Tensor]


def rotation_about_y(angle: float | Tensor) -> Tensor:
    """3x3 for points as rows; y is up."""
    a = torch.as_tensor(angle)
    cos, sin, zero, one = a.cos(), a.sin(), torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos]).view(3, 3)


def _about_axes(angles: Tensor) -> Tensor:
    """Rz Ry Rx for points as rows."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().tolist(), angles.sin().tolist()
    x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return z @ y @ x


def augment_tf(cloud: Tensor, generator: torch.Generator) -> Tensor:
    """The paper's: any turn about y, jitter, scale, a small turn about each axis, shift; in this order.

    Source: train.py and provider.py of csrhddlam/dgcnn @ 16dbe64. ``cloud`` is (P, 3).
    """

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return torch.rand(size, generator=generator) * (high - low) + low

    cloud = cloud @ rotation_about_y(uniform(0, 2 * math.pi).squeeze())
    cloud = cloud + (0.01 * torch.randn(cloud.shape, generator=generator)).clamp(-0.05, 0.05)
    cloud = cloud * uniform(0.8, 1.25)
    cloud = cloud @ _about_axes((0.06 * torch.randn(3, generator=generator)).clamp(-0.18, 0.18))
    return cloud + uniform(-0.1, 0.1, 3)


def augment_torch(cloud: Tensor, generator: torch.Generator) -> Tensor:
    """The PyTorch release's: a scale and a shift of each axis, and the points in another order. ``cloud`` is (P, 3).

    Source: data.py of WangYueFt/dgcnn @ f765b46.
    """
    scale = torch.rand(3, generator=generator) * (3 / 2 - 2 / 3) + 2 / 3
    shift = torch.rand(3, generator=generator) * 0.4 - 0.2
    return (cloud * scale + shift)[torch.randperm(len(cloud), generator=generator)]


AUGMENTS: dict[str, Augment | None] = {"tf": augment_tf, "torch": augment_torch, "none": None}


class CloudDataset(Dataset[dict[str, Any]]):
    """Point clouds and their classes, in memory.

    Args:
        clouds: (n, P, 3) float32.
        labels: (n,) int64.
        files: the file that each lies in.
        augment: of training samples, drawn from the seed of each Draw.
    """

    def __init__(self, clouds: Tensor, labels: Tensor, files: Sequence[Path], augment: Augment | None = None) -> None:
        self.clouds, self.labels, self.files, self.augment = clouds, labels, files, augment

    def __len__(self) -> int:
        return len(self.clouds)

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.files[index]

    def check(self, index: int) -> None:
        """Nothing more: all clouds were read and looked at already."""

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """``cloud`` (P, 3) and ``label``."""
        index = draw.index if isinstance(draw, Draw) else draw
        cloud = self.clouds[index]
        if self.augment is not None and isinstance(draw, Draw):
            cloud = self.augment(cloud, torch.Generator().manual_seed(draw.seed))
        return {"cloud": cloud, "label": int(self.labels[index])}


def read_hdf5(path: Path, points: int) -> tuple[NDArray[np.float32], NDArray[np.int64], bytes]:
    """The first ``points`` points of every cloud of a file of the HDF5 release.

    Returns:
        Clouds (n, points, 3), labels (n,), and a digest of both, of all points.

    Raises:
        DatasetError: it is missing, no such file, has fewer points, or points or labels that are none.
    """
    try:
        with h5py.File(path, "r") as file:
            data, label = file["data"], file["label"]
            single = label.ndim == 1 or (label.ndim == 2 and label.shape[1] == 1)
            if data.ndim != 3 or data.shape[2] != 3 or len(label) != len(data) or not single:
                raise DatasetError(
                    f"'{path}' holds data {data.shape} and label {label.shape}, expected (n, points, 3) and one class "
                    "number a cloud, (n, 1)"
                )
            if data.shape[1] < points:
                raise DatasetError(
                    f"'{path}' has clouds of {data.shape[1]} points, fewer than --data.points {points}; set "
                    f"--data.points {data.shape[1]}"
                )
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
                clouds, labels = data[:].astype("<f4"), label[:].reshape(-1)
            if labels.dtype.kind not in "biuf":
                raise DatasetError(f"'{path}' has labels of the type {labels.dtype}, expected class numbers from 0")
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"cannot read '{path}' as HDF5 with data and label: {error}; unpack it again") from error
    if not np.isfinite(clouds).all():
        which = np.flatnonzero(~np.isfinite(clouds).all((1, 2)))
        raise DatasetError(
            f"'{path}': {len(which)} clouds have coordinates that are not finite, the first is {which[0]}"
        )
    flat = np.flatnonzero((clouds == clouds[:, :1]).all((1, 2)))
    if len(flat):
        raise DatasetError(
            f"'{path}': {len(flat)} clouds are a single point, the first is {flat[0]}; there is no shape in them"
        )
    if not np.equal(np.mod(labels, 1), 0).all() or (labels < 0).any():
        bad = next(i for i, v in enumerate(labels.tolist()) if not v >= 0 or v % 1)
        raise DatasetError(f"'{path}' has the label {labels[bad]}, of cloud {bad}; expected class numbers from 0")
    labels = labels.astype("<i8")
    return clouds[:, :points].astype(np.float32), labels.astype(np.int64), digest_of(clouds, labels)


def stored_points(path: Path) -> int | None:
    """Points of a cloud in a file of the HDF5 release; None if it cannot be read, which :func:`read_hdf5` explains."""
    try:
        with h5py.File(path, "r") as file:
            return int(file["data"].shape[1])
    except (OSError, KeyError, IndexError, AttributeError):
        return None


def digest_of(clouds: NDArray[Any], labels: NDArray[Any]) -> bytes:
    """SHA-256 of clouds and labels."""
    digest = hashlib.sha256(np.ascontiguousarray(clouds, "<f4").tobytes())
    digest.update(np.ascontiguousarray(labels, "<i8").tobytes())
    return digest.digest()


def unit_sphere(points: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Points (P, 3) with mean zero and largest radius one."""
    centred = points - points.mean(0)
    radius = np.linalg.norm(centred, axis=1).max()
    scaled: NDArray[np.float32] = (centred / max(radius, np.finfo(np.float32).tiny)).astype(np.float32)
    return scaled


def sample_mesh(path: Path, points: int, up: str = "y") -> NDArray[np.float32]:
    """``points`` points, uniform on a mesh's surface, in the unit sphere, y up; the seed is a hash of the file's name.

    ``up`` is the vertical axis in the file, ``y`` or ``z``.
    """
    mesh = to_open3d(path)
    open3d().utility.random.seed(derived_seed(f"surface {path.name}") & 0x7FFFFFFF)
    cloud = unit_sphere(np.asarray(mesh.sample_points_uniformly(points).points))
    return cloud if up == "y" else np.ascontiguousarray(np.stack([cloud[:, 0], cloud[:, 2], -cloud[:, 1]], 1))


def sample_meshes(paths: Sequence[Path], points: int, cache: Path, up: str = "y") -> NDArray[np.float32]:
    """The clouds of many meshes, (n, points, 3); sampled once and kept in ``cache`` (.npy)."""
    if cache.is_file():
        try:
            clouds: NDArray[np.float32] = np.load(cache, allow_pickle=False)
        except (OSError, ValueError):  # cut off by a full disk, say: it is derived again
            clouds = np.zeros(0, np.float32)
        if clouds.shape == (len(paths), points, 3):
            return clouds
    console = Console(stderr=True)
    sampled: list[NDArray[np.float32]] = []
    wrong: list[DatasetError] = []
    for path in track(paths, "sampling meshes, once", console=console, disable=len(paths) < 500):
        try:
            sampled.append(sample_mesh(path, points, up))
        except DatasetError as error:
            wrong.append(error)
    refuse_all(wrong)
    clouds = np.stack(sampled)
    cache.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    np.save(out, clouds)
    write_atomically(cache, out.getvalue())
    return clouds
