"""ModelNet40: the HDF5 release ``modelnet40_ply_hdf5_2048``, or the meshes of ``ModelNet40/<class>/{train,test}``."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.clouds import AUGMENTS, Augment, CloudDataset, read_hdf5, sample_mesh, sample_meshes
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import lines_of
from wsbench.datamodules.mini import modelnet40 as mini
from wsbench.datamodules.mini.store import cache_root
from wsbench.datamodules.pictures import PredictionFolder, collate_one, without_clashes
from wsbench.records import DataIdentity, checksum

HDF5, MESHES = "modelnet40_ply_hdf5_2048", "ModelNet40"
COUNTS = {"hdf5": {"train": 9840, "test": 2468}, "off": {"train": 9843, "test": 2468}}
SAMPLED = 2048

Source = Literal["auto", "hdf5", "off"]


def folder(root: Path, name: str) -> Path:
    """``root/name``, or ``root`` itself if it is called so."""
    return root if root.name == name and not (root / name).is_dir() else root / name


def has_hdf5(root: Path) -> bool:
    """Whether the HDF5 release lies under ``root``."""
    return (folder(root, HDF5) / "train_files.txt").is_file()


def has_meshes(root: Path) -> bool:
    """Whether the meshes lie under ``root``."""
    return folder(root, MESHES).is_dir()


def is_present(root: Path) -> bool:
    """Whether ModelNet40 lies under ``root``, in either form."""
    return has_hdf5(root) or has_meshes(root)


def hdf5_files(root: Path, split: str) -> list[Path]:
    """The files of a split in the order of its list, which is not that of a directory listing."""
    listed = folder(root, HDF5) / f"{split}_files.txt"
    if not listed.is_file():
        raise DatasetError(f"'{listed}' is missing; unpack {HDF5}.zip again")
    return [folder(root, HDF5) / Path(line).name for line in lines_of(listed)]


def mesh_classes(root: Path) -> tuple[str, ...]:
    """The class folders, alphabetically."""
    return tuple(sorted(p.name for p in folder(root, MESHES).iterdir() if p.is_dir()))


def mesh_files(root: Path, split: str) -> list[Path]:
    """The meshes of a split, class by class; DatasetError names a class without any."""
    files: list[Path] = []
    for name in mesh_classes(root):
        found = sorted((folder(root, MESHES) / name / split).glob("*.off"))
        if not found:
            raise DatasetError(f"no meshes in '{folder(root, MESHES) / name / split}'; unpack ModelNet40.zip again")
        files += found
    return files


class ModelNet40(BenchmarkData):
    """ModelNet40, or a dataset in its layout, or its miniature.

    Args:
        num_classes: classes that there must be.
        source: ``hdf5``, the release of PointNet with 2,048 points of each shape; ``off``, the meshes, sampled by
            open3d (another test set than the release's); ``auto`` prefers the former.
        points: of a cloud; the first ones of those that were sampled.
        up: the vertical axis of meshes (``off``, ``predict``), which becomes y; ModelNet40's are z up.
        augment: ``tf``, the paper's; ``torch``, of the PyTorch release; ``none``.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds either form. For ``predict``,
            ``pictures`` is a folder of meshes.
    """

    task = "modelnet40"
    title = "ModelNet40"
    mini: ClassVar[ModuleType] = mini
    collate_prediction = staticmethod(collate_one)
    is_present = staticmethod(is_present)

    def __init__(
        self,
        num_classes: int = 40,
        source: Source = "auto",
        points: int = 1024,
        augment: Literal["tf", "torch", "none"] = "tf",
        up: Literal["y", "z"] = "z",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        self.require_positive(points=points)
        self.source, self.points, self.augment, self.up = source, points, augment, up
        self.classes: tuple[str, ...] = ()

    def setup(self, stage: str) -> None:
        """Read the clouds that ``stage`` needs."""
        if stage == "predict":
            folder = self.prediction_folder("meshes")
            paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".off", ".ply", ".obj", ".stl"))
            if not paths:
                raise DatasetError(f"no meshes in '{folder}' (looked for .off, .ply, .obj, .stl)")
            self.predict_data = PredictionFolder(without_clashes(paths), self._read, "cloud")
            return
        root = self.root()
        self.form = self.source if self.source != "auto" else "hdf5" if has_hdf5(root) else "off"
        if not (has_hdf5 if self.form == "hdf5" else has_meshes)(root):
            raise DatasetError(f"'{root}' has no {HDF5 if self.form == 'hdf5' else MESHES}; see `{self.command}`")
        self.classes = self._classes(root)
        self.require_classes(self.classes)
        if stage == "fit":
            self.train_data = self._dataset(root, "train", AUGMENTS[self.augment])
        self.val_data = self._dataset(root, "test", None)

    def _classes(self, root: Path) -> tuple[str, ...]:
        if self.form == "off":
            return mesh_classes(root)
        names = folder(root, HDF5) / "shape_names.txt"
        if not names.is_file():
            raise DatasetError(f"'{names}' is missing; unpack {HDF5}.zip again")
        return tuple(names.read_text().split())

    def _dataset(self, root: Path, split: str, augment: Augment | None) -> CloudDataset:
        if self.form == "off":
            files = mesh_files(root, split)
            sizes = [f"{p.relative_to(root)} {p.stat().st_size}" for p in files]
            cache = cache_root() / "modelnet40" / f"{split}-{SAMPLED}-{self.up}-{checksum(sizes)[:16]}.npy"
            clouds = sample_meshes(files, max(SAMPLED, self.points), cache, self.up)[:, : self.points]
            labels = np.array([self.classes.index(p.parent.parent.name) for p in files])
        else:
            parts = [read_hdf5(path, self.points) for path in hdf5_files(root, split)]
            clouds, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        wrong = sorted({int(v) for v in labels if v >= self.num_classes})
        if wrong:
            raise DatasetError(f"the {split} set has labels {wrong[:5]}, but there are {self.num_classes} classes")
        return CloudDataset(torch.from_numpy(np.ascontiguousarray(clouds)), torch.from_numpy(labels), augment)

    def _read(self, path: Path) -> Tensor:
        return torch.from_numpy(sample_mesh(path, max(SAMPLED, self.points), self.up)[: self.points])

    def identity(self) -> DataIdentity:
        """The release has no names; a sample is identified by its label and first point."""

        def names(data: CloudDataset) -> Iterable[str]:
            for cloud, label in zip(data.clouds, data.labels.tolist(), strict=True):
                yield f"{label} {' '.join(f'{v:.5f}' for v in cloud[0].tolist())}"

        counts = {"train": len(self.train_data), "test": len(self.val_data)}
        official = counts == COUNTS[self.form] and self.num_classes == 40
        return self.describe(
            "modelnet40" if self.form == "hdf5" else "modelnet40_off", official,
            {"train": (f"train, {self.form}", names(self.train_data)),
             "val": (f"test, {self.form}", names(self.val_data))},
        )  # fmt: skip
