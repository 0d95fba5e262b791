"""Meshes: what a native library would crash at, or make garbage of, is refused by name and line."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.datamodules.prepare.planting import CUBE, PLY, from_one
from wsbench.datamodules.clouds import sample_mesh
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.meshes import read_triangles, to_open3d

TETRAHEDRON = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
SIDES = [(0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2)]


def off(vertices: object, faces: object, header: str | None = None) -> str:
    """An OFF file; the header's counts, unless others are given."""
    vertices, faces = list(vertices), list(faces)  # type: ignore[call-overload]
    lines = ["OFF", header or f"{len(vertices)} {len(faces)} 0"]
    lines += [" ".join(map(str, vertex)) for vertex in vertices]
    lines += [" ".join(map(str, (len(face), *face))) for face in faces]
    return "\n".join(lines) + "\n"


def write(folder: Path, text: str, name: str = "mesh.off") -> Path:
    (folder / name).write_text(text)
    return folder / name


REFUSED = {
    # kinds that ended the process
    "oob.ply": (PLY, ": a face has the vertices [0, 1, 7], expected 0 to 2"),
    "oob_far.off": (off(TETRAHEDRON, [*SIDES, (0, 1, 9**9)]), ", line 11: a face has the vertices [0, 1, 387420489]"),
    "counts_v_less.off": (off(TETRAHEDRON, SIDES, "3 4 0"), " has a wrong header: it says 3 vertices and 4 faces"),
    # kinds that made clouds of garbage
    "trunc.off": (off(TETRAHEDRON, SIDES)[:-9], " is cut off or its header is wrong: it says 4 vertices and 4 faces"),
    "counts_f_more.off": (off(TETRAHEDRON, SIDES, "4 9 0"), " is cut off or its header is wrong: it says 4"),
    "one_based.off": (from_one(CUBE), ", line 12: a face has the vertices [5, 7, 8], expected 0 to 7; are they count"),
    "negative.off": (off(TETRAHEDRON, [*SIDES, (0, -1, 2)]), ", line 11: a face has the vertices [0, -1, 2]"),
    "degenerate_all.off": (off(TETRAHEDRON, [(0, 0, 1), (2, 2, 2)]), ": its triangles have the area 0.0"),
    "zero_vertex.off": (off(TETRAHEDRON, [*SIDES, ()]), ", line 11: expected a number of vertices, three"),
    "nan.off": (off([*TETRAHEDRON, ("nan", 0, 0)], SIDES), ", line 7: vertex 4 is [nan, 0.0, 0.0]; coordinates must"),
    "nan.obj": ("v 0 0 0\nv 1 nan 0\nv 0 1 0\nf 1 2 3\n", ": vertex 1 is [1.0, nan, 0.0]; coordinates must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_mesh_that_lies_is_refused_by_name_and_line(name: str, tmp_path: Path) -> None:
    text, words = REFUSED[name]
    path = write(tmp_path, text, name)
    for ask in (read_triangles, to_open3d, lambda path: sample_mesh(path, 10)):
        with pytest.raises(DatasetError, match=re.escape(f"'{path}'{words}")):
            ask(path)


def test_polygons_are_split_into_fans(tmp_path: Path) -> None:
    """A pentagon into three triangles about its first corner, whose area is the polygon's."""
    corners = [(round(np.cos(a), 6), round(np.sin(a), 6), 0) for a in np.linspace(0, 2 * np.pi, 5, endpoint=False)]
    vertices, triangles = read_triangles(write(tmp_path, off(corners, [(0, 1, 2, 3, 4)])))
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4]]
    assert area(vertices, triangles) == pytest.approx(5 / 2 * np.sin(2 * np.pi / 5), abs=1e-5)
    vertices, triangles = read_triangles(write(tmp_path, CUBE))
    assert (len(vertices), len(triangles)) == (8, 12)
    assert area(vertices, triangles) == pytest.approx(6)


def area(vertices: NDArray[np.float64], triangles: NDArray[np.int64]) -> float:
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


@pytest.mark.parametrize("seed", range(10))
def test_healthy_off_files_are_read_as_open3d_reads_them(seed: int, tmp_path: Path) -> None:
    open3d = pytest.importorskip("open3d")
    rng = np.random.default_rng(seed)
    vertices = rng.normal(0, 10.0 ** rng.integers(-3, 4), (30, 3)).round(6)
    faces = [rng.choice(30, 3, replace=False).tolist() for _ in range(50)]
    path = write(tmp_path, off(vertices.tolist(), faces))
    found, triangles = read_triangles(path)
    theirs = open3d.io.read_triangle_mesh(str(path))
    assert np.array_equal(found.astype(np.float32), np.asarray(theirs.vertices, np.float32)), "which reads 32 bits"
    assert np.array_equal(triangles, np.asarray(theirs.triangles))
    ours = to_open3d(path)
    assert np.array_equal(np.asarray(ours.vertices), found)
    assert ours.get_surface_area() == pytest.approx(theirs.get_surface_area(), rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("OFF\n", "OFF"),  # as in many of ModelNet's files
        lambda text: text.replace("OFF\n", "OFF # made by hand\n\n# counts\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("OFF", "off"),
        lambda text: text.replace("4 4 0", "4 4"),
        lambda text: text.replace("3 0 2 1", "3 0 2 1 255 0 0"),  # a face's colour
        lambda text: text.rstrip("\n"),
        lambda text: text.replace(" ", "\t"),
    ],
)
def test_off_as_programs_write_it(change: object, tmp_path: Path) -> None:
    healthy = read_triangles(write(tmp_path, off(TETRAHEDRON, SIDES)))
    text = change(off(TETRAHEDRON, SIDES))  # type: ignore[operator]
    (tmp_path / "other.OFF").write_bytes(text.encode())
    for a, b in zip(healthy, read_triangles(tmp_path / "other.OFF"), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".stl"])
def test_other_formats_hold_the_same_surface(suffix: str, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.Trimesh(TETRAHEDRON, SIDES, process=False)
    mesh.export(tmp_path / f"x{suffix}")
    vertices, triangles = read_triangles(tmp_path / f"x{suffix}")
    assert area(vertices, triangles) == pytest.approx(3 / 2 + np.sqrt(3) / 2)
    assert len(triangles) == 4


def test_a_ply_of_text_that_is_cut_off_is_no_smaller_mesh(tmp_path: Path) -> None:
    """trimesh leaves out the faces that it cannot read."""
    trimesh = pytest.importorskip("trimesh")
    text = trimesh.creation.icosphere(1).export(file_type="ply", encoding="ascii").decode()
    path = write(tmp_path, text, "x.ply")
    assert len(read_triangles(path)[1]) == 80
    lines = text.splitlines(keepends=True)
    for left in (1, 10, 70):
        write(tmp_path, "".join(lines[:-left]), "x.ply")
        with pytest.raises(DatasetError, match=rf"x\.ply' is cut off .* says 80 faces, {80 - left} can be read"):
            read_triangles(path)


@pytest.mark.parametrize("suffix", [".off", ".ply", ".obj", ".stl"])
def test_bytes_changed_anywhere_are_read_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.creation.icosphere(0)
    content = mesh.export(file_type=suffix[1:])
    content = content.encode() if isinstance(content, str) else content
    rng = np.random.default_rng(0)
    refused = []
    for i in range(200):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), rng.choice([1, 8])):
            changed[place] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{i}{suffix}"
        path.write_bytes(bytes(changed[: rng.integers(len(content))] if i % 5 == 0 else changed))
        try:
            vertices, triangles = read_triangles(path)
        except DatasetError as error:
            refused.append((path, str(error)))
            continue
        assert np.isfinite(vertices).all()
        assert triangles.min() >= 0
        assert triangles.max() < len(vertices)
    assert len(refused) > 20
    assert all(f"'{path}'" in text for path, text in refused)
