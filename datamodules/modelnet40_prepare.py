"""Verifying ModelNet40, in either form."""

from functools import partial
from pathlib import Path

import h5py

from wsbench.datamodules.checks import Finding, count, readable
from wsbench.datamodules.clouds import read_hdf5, read_mesh
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.modelnet40 import (
    COUNTS,
    HDF5,
    MESHES,
    SAMPLED,
    folder,
    has_hdf5,
    has_meshes,
    hdf5_files,
    mesh_classes,
    mesh_files,
)
from wsbench.parts import MissingPartError

LAYOUT = f"""\
ROOT/{HDF5}/                     the release of PointNet (shapenet.cs.stanford.edu/media/{HDF5}.zip)
    ply_data_train0.h5 ... 4, ply_data_test0.h5, 1    9,840 + 2,468 clouds of 2,048 points
    train_files.txt, test_files.txt, shape_names.txt
or ROOT/{MESHES}/                the meshes (modelnet.cs.princeton.edu), which need open3d
    airplane/train/airplane_0001.off ...              9,843 + 2,468 meshes in 40 classes"""


def build(root: Path) -> str | None:
    """Nothing: meshes are sampled and kept at the first start."""
    return None


def verify(root: Path) -> list[Finding]:
    """Numbers of clouds and meshes, and whether some can be read."""
    if not (has_hdf5(root) or has_meshes(root)):
        return [Finding(HDF5, "a folder", "missing", False, f"unpack {HDF5}.zip, or ModelNet40.zip, in '{root}'")]
    findings = []
    if has_hdf5(root):
        findings += _hdf5(root)
    if has_meshes(root):
        findings += _meshes(root)
    return findings


def _hdf5(root: Path) -> list[Finding]:
    again = f"unpack {HDF5}.zip again"
    names = folder(root, HDF5) / "shape_names.txt"
    labels = len(names.read_text().split()) if names.is_file() else 0
    findings = [count("shape_names.txt", 40, labels, again, "names")]
    for split, expected in COUNTS["hdf5"].items():
        try:
            files = hdf5_files(root, split)
            clouds = sum(_clouds(path) for path in files)
        except DatasetError as error:
            findings.append(Finding(f"{split}: files", "readable", str(error), False, again))
            continue
        findings.append(count(f"{split}: clouds", expected, clouds, again, "clouds"))
        findings.append(readable(f"{split}: points", files, partial(read_hdf5, points=SAMPLED), again))
    return findings


def _clouds(path: Path) -> int:
    try:
        with h5py.File(path, "r") as file:
            return len(file["data"])
    except (OSError, KeyError) as error:
        raise DatasetError(f"'{path.name}': {error}") from error


def _meshes(root: Path) -> list[Finding]:
    again = f"unpack {MESHES}.zip again"
    findings = [count(f"{MESHES}: classes", 40, len(mesh_classes(root)), again, "folders")]
    for split, expected in COUNTS["off"].items():
        try:
            files = mesh_files(root, split)
        except DatasetError as error:
            findings.append(Finding(f"{split}: meshes", f"{expected:,} files", str(error), False, again))
            continue
        findings.append(count(f"{split}: meshes", expected, len(files), again))
        broken = sum(1 for p in files if _first_line(p) != b"OFF")
        findings.append(Finding(f"{split}: broken headers", "repaired while reading", f"{broken:,} files", True))
        try:
            findings.append(readable(f"{split}: readable", files, read_mesh, again))
        except MissingPartError as error:
            findings.append(Finding(f"{split}: readable", "read with open3d", "open3d is missing", False, str(error)))
    return findings


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(64).strip()
