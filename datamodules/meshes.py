"""Triangle meshes from files that anybody may have written: looked at before a native library gets to see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsbench.datamodules.errors import DAMAGED, DatasetError
from wsbench.extras import open3d, trimesh

#: suffixes of meshes, in any case
MESHES = (".off", ".ply", ".obj", ".stl")
Triangles = tuple[NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True)
class _Raw:
    """What a file says, and in which of its lines, if it has any."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    vertex_lines: Sequence[int] = ()
    face_lines: Sequence[int] = ()


def read_triangles(path: Path) -> Triangles:
    """Vertices (V, 3) and triangles (T, 3) of a mesh; polygons are split into fans.

    OFF is read here: ModelNet's files often have ``OFF490 518 0`` as their first line, and a file that is cut off must
    not pass for a smaller mesh. The other formats are trimesh's.

    Raises:
        DatasetError: counts, indices or coordinates are not what they should be, or there is no surface.
        MissingPartError: trimesh is not installed.
    """
    raw = _read_off(path) if path.suffix.lower() == ".off" else _read_other(path)
    vertices, faces = raw.vertices, raw.faces
    where = f"'{path}'"
    if not len(vertices) or not len(faces):
        raise DatasetError(f"{where} holds no triangle mesh: {len(vertices)} vertices, {len(faces)} triangles")
    if not np.isfinite(vertices).all():
        row = int(np.flatnonzero(~np.isfinite(vertices).all(1))[0])
        place = _line(raw.vertex_lines, row)
        raise DatasetError(f"{where}{place}: vertex {row} is {vertices[row].tolist()}; coordinates must be finite")
    wrong = np.flatnonzero((faces < 0).any(1) | (faces >= len(vertices)).any(1))
    if len(wrong):
        triangle, place = faces[wrong[0]].tolist(), _line(raw.face_lines, int(wrong[0]))
        hint = "; are they counted from 1?" if faces.min() == 1 and faces.max() == len(vertices) else ""
        raise DatasetError(
            f"{where}{place}: a face has the vertices {triangle}, expected 0 to {len(vertices) - 1}{hint} "
            f"({len(wrong)} such triangles)"
        )
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    with np.errstate(over="ignore", invalid="ignore"):
        area = float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())
    if not 0 < area < np.inf:
        raise DatasetError(f"{where}: its triangles have the area {area}; there is no surface to sample")
    return vertices, faces


def _line(lines: Sequence[int], index: int) -> str:
    return f", line {lines[index]}" if lines else ""


def _read_off(path: Path) -> _Raw:
    try:
        text = path.read_bytes().decode("ascii", "replace")
    except OSError as error:
        raise DatasetError(f"cannot read '{path}': {error.strerror}") from error
    rows = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.split("\n"), start=1)]
    rows = [(number, row) for number, row in rows if row]
    if not rows or not rows[0][1].upper().startswith("OFF"):
        raise DatasetError(f"'{path}' is no OFF file: it does not begin with OFF")
    head, body = rows[0][1][3:].split(), rows[1:]
    if not head and body:
        head, body = body[0][1].split(), body[1:]
    try:
        count, number = int(head[0]), int(head[1])
        if count < 0 or number < 0:
            raise ValueError
    except (IndexError, ValueError) as error:
        raise DatasetError(f"'{path}': expected numbers of vertices and faces in its header, got {head}") from error
    if len(body) != count + number:
        cut = " is cut off or its header is wrong" if len(body) < count + number else " has a wrong header"
        raise DatasetError(
            f"'{path}'{cut}: it says {count} vertices and {number} faces, and has {len(body)} lines for them"
        )
    vertices: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    lines: list[int] = []
    place, row = 0, ""
    try:
        for place, row in body[:count]:  # noqa: B007  # named in the error
            x, y, z = row.split()[:3]
            vertices.append([float(x), float(y), float(z)])
        for place, row in body[count:]:
            values = row.split()
            corners = [int(v) for v in values[1 : 1 + int(values[0])]]
            if len(corners) != int(values[0]) or len(corners) < 3:
                raise ValueError(f"a face of {values[0]} vertices with {len(corners)} numbers")
            triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
            lines += [place] * (len(corners) - 2)
        return _Raw(
            np.array(vertices, dtype=np.float64).reshape(count, 3),
            np.array(triangles, dtype=np.int64).reshape(-1, 3),
            [place for place, _ in body[:count]],
            lines,
        )
    except (ValueError, IndexError, OverflowError) as error:
        expected = "three coordinates" if len(vertices) < count else "a number of vertices, three or more, and these"
        raise DatasetError(f"'{path}', line {place}: expected {expected}, got '{row[:60]}'") from error


def _faces_of_ply(path: Path) -> int:
    """How many faces a PLY file's header says it has; 0 if that is not found.

    trimesh leaves out what it cannot read of a file of text, so that one that is cut off would be a smaller mesh.
    """
    try:
        head = path.read_bytes().partition(b"end_header")[0].decode("ascii", "replace")
    except OSError as error:
        raise DatasetError(f"cannot read '{path}': {error.strerror}") from error
    rows = [line.split() for line in head.splitlines()]
    return next((int(row[2]) for row in rows if len(row) == 3 and row[1] == "face" and row[2].isdecimal()), 0)


def _read_other(path: Path) -> _Raw:
    module = trimesh()
    promised = _faces_of_ply(path) if path.suffix.lower() == ".ply" else 0
    try:
        mesh: Any = module.load(str(path), process=False, force="mesh")
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    except DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DatasetError(f"cannot read '{path}' as a mesh: {reason}") from error
    if len(faces) < promised:
        raise DatasetError(
            f"'{path}' is cut off or damaged: its header says {promised} faces, {len(faces)} can be read"
        )
    return _Raw(vertices, faces)


def to_open3d(path: Path) -> Any:
    """A triangle mesh of open3d from a file; errors as :func:`read_triangles`."""
    vertices, faces = read_triangles(path)
    o3d = open3d()
    return o3d.geometry.TriangleMesh(o3d.utility.Vector3dVector(vertices), o3d.utility.Vector3iVector(faces))
