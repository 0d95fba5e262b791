"""Thirty and more faults in a dataset of shapes, clouds or meshes: `data modelnet40` finds and names each."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.datamodules.prepare.planting import (
    CUBE,
    PLY,
    Plant,
    append,
    copy,
    each_is_found,
    fault,
    fine,
    from_one,
    replace,
    said,
)
from wsbench.datamodules.modelnet40 import HDF5, MESHES

CLOUDS = f"{HDF5}/ply_data_train1.h5"
TEST = f"{HDF5}/ply_data_test0.h5"
NAMES, LISTED = f"{HDF5}/shape_names.txt", f"{HDF5}/train_files.txt"
SIZES: dict[str, Any] = {"points": 32}

# -- clouds ---------------------------------------------------------------------------------------------------------


def stored(change: Callable[[dict[str, Any]], object], path: str = CLOUDS) -> Plant:
    """Damage the data sets of an HDF5 file; None removes one."""

    def plant(root: Path) -> None:
        with h5py.File(root / path) as file:
            content: dict[str, Any] = {name: file[name][()] for name in ("data", "label")}
        change(content)
        with h5py.File(root / path, "w") as file:
            for name, values in content.items():
                if isinstance(values, dict):
                    file.create_group(name)
                elif values is not None:
                    file[name] = values

    return plant


def point(value: float) -> Plant:
    def change(content: dict[str, Any]) -> None:
        content["data"] = content["data"].astype(np.float64)
        content["data"][3, 5, 1] = value

    return stored(change)


def label(value: float) -> Plant:
    def change(content: dict[str, Any]) -> None:
        content["label"] = content["label"].astype(np.float64 if value % 1 or value != value else np.int64)
        content["label"][4] = value

    return stored(change)


def same_cloud(content: dict[str, Any]) -> None:
    content["data"][2] = 0.5


def one_hot(content: dict[str, Any]) -> None:
    content["label"] = np.eye(10)[content["label"][:, 0]]


def text(path: str, content: str, encoding: str = "utf-8") -> Plant:
    return lambda root: (root / path).write_text(content, encoding=encoding)


def without_meshes(change: Plant) -> Plant:
    return lambda root: (shutil.rmtree(root / MESHES), change(root))


def all_of_one_class(root: Path) -> None:
    for path in (root / HDF5).glob("*.h5"):
        stored(lambda content: content.update(label=content["label"] * 0), path.relative_to(root).as_posix())(root)
    (root / NAMES).write_text("eight\n")


EXPECTED = "expected (n, points, 3) and one class number a cloud, (n, 1)"
FAULTS = {
    "a file is missing": fault(lambda root: (root / CLOUDS).unlink(), f"cannot read 'ROOT/{CLOUDS}'", "No such file"),
    "no HDF5": fault(text(CLOUDS, "x"), f"cannot read 'ROOT/{CLOUDS}' as HDF5 with data and label"),
    "an empty file": fault(text(CLOUDS, ""), f"cannot read 'ROOT/{CLOUDS}' as HDF5"),
    "a file cut off": fault(
        lambda root: (root / CLOUDS).write_bytes((root / CLOUDS).read_bytes()[:20_000]), f"cannot read 'ROOT/{CLOUDS}'"
    ),
    "a file damaged inside": fault(
        lambda root: (root / CLOUDS).write_bytes((root / CLOUDS).read_bytes()[:8_000] + bytes(range(256)) * 100
                                                 + (root / CLOUDS).read_bytes()[33_600:]),
        f"cannot read 'ROOT/{CLOUDS}'",
    ),
    "no data": fault(stored(lambda content: content.update(data=None)), f"'ROOT/{CLOUDS}'", "data"),
    "no labels": fault(stored(lambda content: content.update(label=None)), f"'ROOT/{CLOUDS}'", "label"),
    "a group for data": fault(stored(lambda content: content.update(data={})), f"cannot read 'ROOT/{CLOUDS}'"),
    "NaN": fault(point(np.nan), f"'ROOT/{CLOUDS}': 1 clouds have coordinates that are not finite, the first is 3"),
    "infinity": fault(point(np.inf), f"'ROOT/{CLOUDS}': 1 clouds have coordinates that are not finite"),
    "a coordinate beyond 32 bits": fault(point(1e300), f"'ROOT/{CLOUDS}': 1 clouds have coordinates that are"),
    "a cloud of one point": fault(stored(same_cloud), f"'ROOT/{CLOUDS}': 1 clouds are a single point, the first is 2"),
    "points as text": fault(
        stored(lambda content: content.update(data=np.full((10, 512, 3), b"x"))), f"cannot read 'ROOT/{CLOUDS}'"
    ),
    "points of two coordinates": fault(
        stored(lambda content: content.update(data=content["data"][:, :, :2])), f"'ROOT/{CLOUDS}' holds data", EXPECTED
    ),
    "points with normals": fault(
        stored(lambda content: content.update(data=np.tile(content["data"], 2))), "data (10, 512, 6)", EXPECTED
    ),
    "one cloud": fault(stored(lambda content: content.update(data=content["data"][0])), "data (512, 3)", EXPECTED),
    "fewer labels than clouds": fault(
        stored(lambda content: content.update(label=content["label"][:7])), f"'ROOT/{CLOUDS}'", "label (7, 1)", EXPECTED
    ),
    "fewer points than elsewhere": fault(
        stored(lambda content: content.update(data=content["data"][:, :100]), TEST),
        f"'ROOT/{TEST}' has clouds of 100 points, fewer than --data.points 512", "--data.points 100", unseen=True,
    ),
    "no clouds to evaluate on": fault(
        stored(lambda content: content.update(data=content["data"][:0], label=content["label"][:0]), TEST),
        f"the test set in 'ROOT/{HDF5}' has no clouds",
    ),
    "a label below 0": fault(label(-1), f"'ROOT/{CLOUDS}' has the label -1, of cloud 4; expected class numbers from 0"),
    "a label and a half": fault(label(1.5), f"'ROOT/{CLOUDS}' has the label 1.5, of cloud 4"),
    "a label that is no number": fault(label(np.nan), f"'ROOT/{CLOUDS}' has the label nan, of cloud 4"),
    "a label too high": fault(label(10), f"'ROOT/{CLOUDS}' has the label 10, but 'ROOT/{NAMES}' name 10 classes"),
    "one-hot labels": fault(stored(one_hot), f"'ROOT/{CLOUDS}'", "label (10, 10)", EXPECTED),
    "labels as text": fault(
        stored(lambda content: content.update(label=np.full((10, 1), b"one"))), f"'ROOT/{CLOUDS}' has labels of"
    ),
    "names are missing": fault(lambda root: (root / NAMES).unlink(), f"'ROOT/{NAMES}' is missing"),
    "names are too few": fault(text(NAMES, "a\nb\nc\n"), f"'ROOT/{NAMES}' name 3 classes, numbered from 0"),
    "names are none": fault(text(NAMES, "\n"), f"'ROOT/{NAMES}' is empty"),
    "a name stands there twice": fault(lambda root: append(root / NAMES, "one\n"), f"'ROOT/{NAMES}' names 'one' 2"),
    "names in UTF-16 without its mark": fault(text(NAMES, "a\nb\n", "utf-16-le"), f"'ROOT/{NAMES}' is no text file"),
    "one class": fault(all_of_one_class, "the data has one class only, eight"),
    "an empty list": fault(text(LISTED, ""), f"'ROOT/{LISTED}' is empty; expected names of .h5 files"),
    "a list names a file twice": fault(
        lambda root: append(root / LISTED, "ply_data_train1.h5\n"), f"'ROOT/{LISTED}' names 'ply_data_train1.h5' 2"
    ),
    "a list names what is no file": fault(
        lambda root: append(root / LISTED, "../x.h5\n"), f"'ROOT/{LISTED}': '../x.h5' leaves the folder 'ROOT/{HDF5}'"
    ),
    "no list to evaluate on": fault(
        lambda root: (root / HDF5 / "test_files.txt").unlink(), f"'ROOT/{HDF5}/test_files.txt' is missing"
    ),
    "no list to train on": fault(
        without_meshes(lambda root: (root / LISTED).unlink()), f"'ROOT/{LISTED}' is missing; it names the .h5 files"
    ),
    "train is test": fault(
        lambda root: append(root / HDF5 / "test_files.txt", "ply_data_train1.h5\n"),
        "1 samples are in both train and val, among them ply_data_train1.h5",
    ),
}  # fmt: skip


def test_there_are_thirty() -> None:
    assert len(FAULTS) >= 30


test_a_fault_of_clouds_is_found = each_is_found("modelnet40", FAULTS, **SIZES)


def test_what_is_no_fault(tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy(tiny_roots, "modelnet40", tmp_path)
    fine("modelnet40", root, capfd)
    stored(lambda content: content.update(label=content["label"].reshape(-1).astype(np.float32)))(root)
    stored(lambda content: content.update(data=content["data"].astype(np.float64) * 100), TEST)(root)
    (root / NAMES).write_text((root / NAMES).read_text().replace("one", "dining table"), encoding="utf-16")
    (root / LISTED).write_text("./ply_data_train0.h5\nsomewhere/ply_data_train1.h5", encoding="utf-8-sig")
    fine("modelnet40", root, capfd)


# -- meshes ---------------------------------------------------------------------------------------------------------

OFF = f"{MESHES}/one/train/one_0001.off"


def meshes(change: Plant) -> Plant:
    """Damage the dataset of meshes, of three classes: no clouds lie beside them."""

    def plant(root: Path) -> None:
        shutil.rmtree(root / HDF5)
        for folder in (root / MESHES).iterdir():
            if folder.name not in ("one", "two", "six"):
                shutil.rmtree(folder)
        change(root)

    return plant


def mesh(old: str, new: str) -> Plant:
    """Plant a cube in which something is replaced."""

    def change(root: Path) -> None:
        (root / OFF).write_text(CUBE)
        replace(root / OFF, old, new)

    return meshes(change)


def other(suffix: str, content: str | bytes) -> Plant:
    """Plant a mesh of another format."""

    def change(root: Path) -> None:
        path = (root / OFF).with_suffix(suffix)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return meshes(change)


WHERE = f"'ROOT/{OFF}'"
MESH_FAULTS = {
    "cut off": fault(mesh("4 3 0 4 7\n", ""), f"{WHERE} is cut off", "8 vertices and 6 faces, and has 13 lines"),
    "too many vertices said": fault(mesh("8 6 0", "80 6 0"), f"{WHERE} is cut off or its header is wrong"),
    "too few vertices said": fault(mesh("8 6 0", "4 6 0"), f"{WHERE} has a wrong header", "and has 14 lines"),
    "a vertex for a face": fault(mesh("8 6 0", "7 7 0"), f"{WHERE}, line 10: expected a number of vertices", "'0 1 1'"),
    "no numbers in the header": fault(mesh("8 6 0", "eight"), f"{WHERE}: expected numbers of vertices and faces"),
    "a negative number in the header": fault(mesh("8 6 0", "-8 6 0"), f"{WHERE}: expected numbers of vertices"),
    "counted from 1": fault(
        mesh(CUBE, from_one(CUBE)), f"{WHERE}, line 12: a face has the vertices [5, 7, 8], expected 0 to 7",
        "are they counted from 1?",
    ),
    "a vertex that is not there": fault(mesh("4 2 3 7 6", "4 2 3 7 8"), f"{WHERE}, line 15: a face has the"),
    "a vertex below 0": fault(mesh("4 2 3 7 6", "4 2 -3 7 6"), f"{WHERE}, line 15: a face has the vertices [2, -3, 7]"),
    "a face of no vertices": fault(mesh("4 2 3 7 6", "0"), f"{WHERE}, line 15: expected a number of vertices", "'0'"),
    "a face of two": fault(mesh("4 2 3 7 6", "2 3 7"), f"{WHERE}, line 15: expected a number of vertices"),
    "a face with too few": fault(mesh("4 2 3 7 6", "4 2 3 7"), f"{WHERE}, line 15: expected a number of vertices"),
    "half a vertex in a face": fault(mesh("4 2 3 7 6", "4 2 3 7.5 6"), f"{WHERE}, line 15", "'4 2 3 7.5 6'"),
    "NaN": fault(mesh("1 1 0", "1 nan 0"), f"{WHERE}, line 5: vertex 2 is [1.0, nan, 0.0]; coordinates must be finite"),
    "infinity": fault(mesh("1 1 0", "1 1e999 0"), f"{WHERE}, line 5: vertex 2 is [1.0, inf, 0.0]"),
    "two coordinates": fault(mesh("1 1 0", "1 1"), f"{WHERE}, line 5: expected three coordinates, got '1 1'"),
    "a coordinate that is a word": fault(mesh("1 1 0", "1 one 0"), f"{WHERE}, line 5: expected three coordinates"),
    "all in one place": fault(
        mesh(CUBE, "OFF\n3 1 0\n1 1 1\n1 1 1\n1 1 1\n3 0 1 2\n"), f"{WHERE}: its triangles have the area 0.0"
    ),
    "all in one line": fault(mesh(CUBE, "OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n"), f"{WHERE}: its triangles have"),
    "no faces": fault(mesh(CUBE, "OFF\n1 0 0\n1 1 1\n"), f"{WHERE} holds no triangle mesh: 1 vertices, 0 triangles"),
    "no header": fault(mesh("OFF\n", ""), f"{WHERE} is no OFF file"),
    "an empty file": fault(mesh(CUBE, ""), f"{WHERE} is no OFF file"),
    "a picture": fault(meshes(lambda root: (root / OFF).write_bytes(b"\x89PNG\r\n")), f"{WHERE} is no OFF file"),
    "a folder": fault(
        meshes(lambda root: ((root / OFF).unlink(), (root / OFF).mkdir())), f"{WHERE} is no file, or a link to nothing"
    ),
    "a link to nothing": fault(
        meshes(lambda root: ((root / OFF).unlink(), (root / OFF).symlink_to("x"))), f"{WHERE} is no file, or a"
    ),
    "PLY: a vertex that is not there": fault(other(".ply", PLY), "one_0001.ply': a face has the vertices [0, 1, 7]"),
    "PLY: cut off": fault(other(".ply", PLY[:-8]), "one_0001.ply' is cut off or damaged: its header says 1 faces"),
    "PLY: cut off in a line": fault(other(".ply", PLY[:-3]), "one_0001.ply' is cut off or damaged: its header says"),
    "PLY: a vertex too few": fault(other(".ply", PLY.replace("0 1 0\n", "")), "one_0001.ply' is cut off or damaged"),
    "PLY: no header": fault(other(".ply", "x" * 99), "cannot read", "one_0001.ply' as a mesh"),
    "OBJ: NaN": fault(
        other(".obj", "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"), "one_0001.obj': vertex 0 is [nan, 0.0, 0.0]"
    ),
    "OBJ: a vertex that is not there": fault(other(".obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n"), "one_0001.obj'"),
    "OBJ: nothing": fault(other(".obj", "# nothing\n"), "one_0001.obj'"),
    "STL: cut off": fault(other(".stl", bytes(80) + (5).to_bytes(4, "little") + bytes(60)), "one_0001.stl'"),
    "no test meshes in a class": fault(
        meshes(lambda root: shutil.rmtree(root / MESHES / "one" / "test")), f"no meshes in 'ROOT/{MESHES}/one/test'"
    ),
    "no training meshes in a class": fault(
        meshes(lambda root: [path.unlink() for path in (root / MESHES / "two" / "train").iterdir()]),
        f"no meshes in 'ROOT/{MESHES}/two/train'; every class needs some",
    ),
    "no test meshes at all": fault(
        meshes(lambda root: [shutil.rmtree(path) for path in (root / MESHES).glob("*/test")]),
        f"'ROOT/{MESHES}/one/train' has meshes, and no class folder in 'ROOT/{MESHES}' has 'test'",
    ),
}  # fmt: skip


test_a_fault_of_meshes_is_found = each_is_found("modelnet40", MESH_FAULTS, **SIZES)


def test_all_meshes_that_are_wrong_are_named_at_once(
    tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = copy(tiny_roots, "modelnet40", tmp_path)
    meshes(lambda root: None)(root)
    fine("modelnet40", root, capfd)
    for name in ("one", "two"):
        (root / MESHES / name / "train" / f"{name}_0001.off").write_text("x")
    status, text = said("modelnet40", root, capfd)
    assert status == 1
    assert "2 faults:" in text
    for name in ("one", "two"):
        assert f"  'ROOT/{MESHES}/{name}/train/{name}_0001.off' is no OFF file" in text
