"""ModelNet40: the HDF5 release ``modelnet40_ply_hdf5_2048``, or meshes in ``<class>/{train,test}``; or one's own."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from wsbench.datamodules.base import BenchmarkData, Split
from wsbench.datamodules.cache import stamp
from wsbench.datamodules.clouds import AUGMENTS, Augment, CloudDataset, digest_of, read_hdf5, sample_mesh, sample_meshes
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import folders_in, inside, is_meant, names_of, refuse_repeated
from wsbench.datamodules.meshes import MESHES as MESH_SUFFIXES
from wsbench.datamodules.mini import modelnet40 as mini
from wsbench.datamodules.mini.store import cache_root
from wsbench.datamodules.pictures import collate_one
from wsbench.records import checksum

HDF5, MESHES = "modelnet40_ply_hdf5_2048", "ModelNet40"
COUNTS = {"hdf5": {"train": 9840, "test": 2468}, "off": {"train": 9843, "test": 2468}}
SAMPLED = 2048
LAYOUT = f"""\
ROOT/{HDF5}/ (or ROOT itself)    the release of PointNet, or files of your own in its form
    train_files.txt, test_files.txt               names of .h5 files: data (n, points, 3), label (n, 1); ModelNet40:
    shape_names.txt                               9,840 + 2,468 clouds of 2,048 points. A class a line, in order
or ROOT/{MESHES}/ (or ROOT itself)                meshes: OFF, PLY, OBJ, STL; sampling them needs open3d
    CLASS/train/*.off, CLASS/test/*.off           ModelNet40: 9,843 + 2,468 in 40 classes"""

Source = Literal["auto", "hdf5", "off"]


def hdf5_folder(root: Path) -> Path | None:
    """The folder of the HDF5 release, or None."""
    return next((p for p in (root / HDF5, root) if (p / "train_files.txt").is_file()), None)


def mesh_folder(root: Path) -> Path | None:
    """The folder of class folders with meshes, or None."""
    for place in (root / MESHES, root):
        if any((c / "train").is_dir() and (c / "test").is_dir() for c in folders_in(place)):
            return place
    return None


def has_hdf5(root: Path) -> bool:
    """Whether the HDF5 release lies under ``root``."""
    return hdf5_folder(root) is not None


def has_meshes(root: Path) -> bool:
    """Whether meshes lie under ``root``."""
    return mesh_folder(root) is not None


def hdf5_files(folder: Path, split: str) -> list[Path]:
    """The files of a split in the order of its list, which is not that of a directory listing."""
    listed = folder / f"{split}_files.txt"
    if not listed.is_file():
        raise DatasetError(f"'{listed}' is missing; it names the .h5 files of '{split}', one a line")
    files = []
    for line in names_of(listed, "names of .h5 files"):
        named = inside(folder, line, listed)  # the release's lists have a folder in front that is not there
        files.append(named if named.is_file() else folder / Path(line).name)
    refuse_repeated([str(path.relative_to(folder)) for path in files], listed)
    return files


def mesh_classes(folder: Path) -> tuple[str, ...]:
    """The class folders, alphabetically."""
    return tuple(p.name for p in folders_in(folder))


def _meshes_in(place: Path) -> list[Path]:
    entries = place.iterdir() if place.is_dir() else ()
    return sorted(p for p in entries if p.suffix.lower() in MESH_SUFFIXES and is_meant(p))


def mesh_files(folder: Path, split: str) -> list[Path]:
    """The meshes of a split, class by class; DatasetError names a class without any."""
    files: list[Path] = []
    for name in mesh_classes(folder):
        place = folder / name / split
        meshes = _meshes_in(place)
        none = next((p for p in meshes if not p.is_file()), None)
        if none is not None:
            raise DatasetError(f"'{none}' is no file, or a link to nothing; replace it")
        if not meshes:
            raise DatasetError(
                f"no meshes in '{place}'; every class needs some (they end in {', '.join(MESH_SUFFIXES)})"
            )
        files += meshes
    return files


class ModelNet40(BenchmarkData):
    """ModelNet40, or a dataset in its layout, or its miniature.

    Args:
        source: ``hdf5``, the release of PointNet with 2,048 points of each shape; ``off``, the meshes, sampled by
            open3d (another test set than the release's); ``auto`` prefers the former.
        points: of a cloud; the first ones of those that were sampled.
        up: the vertical axis of meshes (``off``, ``predict``), which becomes y; ModelNet40's are z up.
        augment: ``tf``, the paper's; ``torch``, of the PyTorch release; ``none``.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds either form. For ``predict``,
            ``pictures`` is a folder of meshes.
    """

    task = "modelnet40"
    title = "A dataset of shapes (ModelNet40, or one in its layout)"
    layout, looked_for = (
        LAYOUT,
        f"{HDF5}/ with train_files.txt, {MESHES}/ with CLASS/train and CLASS/test, or their content",
    )
    mini: ClassVar[ModuleType] = mini
    collate_prediction = staticmethod(collate_one)
    prediction_files = ("meshes", MESH_SUFFIXES)

    def __init__(
        self,
        source: Source = "auto",
        points: int = 1024,
        augment: Literal["tf", "torch", "none"] = "tf",
        up: Literal["y", "z"] = "z",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.require_positive(points=points)
        self.source, self.points, self.augment, self.up = source, points, augment, up
        self._digests: dict[str, str] = {}

    @staticmethod
    def place(root: Path) -> Path | None:
        """``root``, if either form lies there; DatasetError if half of it does."""
        if has_hdf5(root) or has_meshes(root):
            return root
        for folder in (root / HDF5, root):
            if any(folder.glob("*.h5")):
                raise DatasetError(f"'{folder / 'train_files.txt'}' is missing; it names the .h5 files of 'train', "
                                   "one a line, as test_files.txt those of 'test'")  # fmt: skip
        for folder in (root / MESHES, root):
            for split, other in (("train", "test"), ("test", "train")):
                category = next((c for c in folders_in(folder) if _meshes_in(c / split)), None)
                if category is not None:
                    raise DatasetError(
                        f"'{category / split}' has meshes, and no class folder in '{folder}' has '{other}' beside "
                        f"'{split}'; `python -m wsbench data modelnet40` shows the layout"
                    )
        return None

    def read(self, train: bool) -> None:
        """Read the clouds, or sample them of meshes once."""
        root = self.folder()
        self.form = self.source if self.source != "auto" else "hdf5" if has_hdf5(root) else "off"
        folder = (hdf5_folder if self.form == "hdf5" else mesh_folder)(root)
        if folder is None:
            raise DatasetError(f"'{root}' has no {HDF5 if self.form == 'hdf5' else MESHES}; see `{self.command}`")
        self.take_classes(self._classes(folder))
        if train and self.train_data is None:
            self.train_data = self._dataset(folder, "train", AUGMENTS[self.augment])
        if self.val_data is None:
            self.val_data = self._dataset(folder, "test", None)
        if self.train_data is not None:
            files = ({str(p.relative_to(folder)) for p in data.files} for data in (self.train_data, self.val_data))
            self.doubt_shared(*files)

    def _classes(self, folder: Path) -> tuple[str, ...]:
        if self.form == "off":
            return mesh_classes(folder)
        names = folder / "shape_names.txt"
        if not names.is_file():
            raise DatasetError(f"'{names}' is missing; it names the classes in the order of their numbers, one a line")
        return tuple(names_of(names, "names of classes"))

    def _dataset(self, folder: Path, split: str, augment: Augment | None) -> CloudDataset:
        if self.form == "off":
            files = mesh_files(folder, split)
            # where, and times of change: a mesh that was mended may be as long as before, or as another's
            sources = [f"{p.resolve()} {' '.join(map(str, stamp(p)))}" for p in files]
            cache = cache_root() / "modelnet40" / f"{split}-{SAMPLED}-{self.up}-{checksum(sources)[:16]}.npy"
            whole = sample_meshes(files, max(SAMPLED, self.points), cache, self.up)
            clouds = whole[:, : self.points]
            labels = np.array([self.classes.index(p.parent.parent.name) for p in files])
            digests = [digest_of(whole[:, :SAMPLED], labels)]
        else:
            stored = hdf5_files(folder, split)
            parts = [read_hdf5(path, self.points) for path in stored]
            files = [path for path, part in zip(stored, parts, strict=True) for _ in part[1]]
            clouds, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
            digests = [part[2] for part in parts]
        self._digests[split] = hashlib.sha256(b"".join(digests)).hexdigest()
        wrong = np.flatnonzero(labels >= len(self.classes))
        if len(wrong):
            names = "folders" if self.form == "off" else f"'{folder / 'shape_names.txt'}'"
            raise DatasetError(f"'{files[wrong[0]]}' has the label {labels[wrong[0]]}, but {names} name "
                               f"{len(self.classes)} classes, numbered from 0")  # fmt: skip
        if not len(labels):
            raise DatasetError(f"the {split} set in '{folder}' has no clouds")
        return CloudDataset(torch.from_numpy(np.ascontiguousarray(clouds)), torch.from_numpy(labels), files, augment)

    @property
    def prediction_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Meshes."""
        return "cloud", partial(_read_cloud, points=self.points, up=self.up)

    def part(self, indices: Sequence[int], train: bool) -> CloudDataset:
        """Some samples of the training list."""
        chosen: CloudDataset = copy.copy(self.train_data)
        chosen.clouds, chosen.labels = chosen.clouds[list(indices)], chosen.labels[list(indices)]
        chosen.files = [chosen.files[i] for i in indices]
        if not train:
            chosen.augment = None
        return chosen

    def describe(self) -> dict[str, Split]:
        """The release has no names: a sample is called by label and first point. Labels are all points and labels."""
        splits = {}
        for split, data, listed in (("train", self.train_data, "train"), ("val", self.val_data, "test")):
            if data is not None:
                labels = data.labels.tolist()
                names = [f"{label} {' '.join(f'{v:.5f}' for v in cloud[0].tolist())}"
                         for cloud, label in zip(data.clouds, labels, strict=True)]  # fmt: skip
                splits[split] = Split(f"{listed}, {self.form}", names, self._digests[listed])
        return splits

    @property
    def official(self) -> str:
        """Sampled meshes are another test set than the release's clouds."""
        return "modelnet40" if self.form == "hdf5" else "modelnet40_off"

    @property
    def resembles_official(self) -> bool:
        """40 classes, airplanes and others."""
        return len(self.classes) == 40 and self.classes[0] == "airplane"

    @property
    def official_counts(self) -> dict[str, int]:
        """9,840 or, of meshes, 9,843; and 2,468."""
        counts = COUNTS[self.form]
        return {"train": counts["train"], "val": counts["test"]}

    def remedy(self, split: str) -> str:
        """Which archive to unpack again."""
        return f"unpack {HDF5 if self.form == 'hdf5' else MESHES}.zip again"


def _read_cloud(path: Path, points: int, up: str) -> Tensor:
    return torch.from_numpy(sample_mesh(path, max(SAMPLED, points), up)[:points])
