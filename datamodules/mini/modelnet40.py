"""The miniature of ModelNet40: extruded handwritten digits, as meshes and as sampled clouds."""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsbench.datamodules.mini.digits import Split, digits

NAME = "modelnet40-mini-v1"
COUNTS: dict[Split, int] = {"train": 600, "val": 200}
CLASSES = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")
_DIGIT = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
POINTS = 512
PIXELS = 12


def extrude(mask: NDArray[np.bool_], depth: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The surface of a mask as a slab: vertices (n, 3), y up, and quadrangles (m, 4), outwards."""
    height, width = mask.shape
    inside = np.pad(mask, 1)
    faces: list[list[tuple[int, int, int]]] = []
    for row, column in zip(*np.nonzero(mask), strict=True):
        x, y = int(column), height - int(row)
        front, back = [(x, y - 1, 1), (x + 1, y - 1, 1), (x + 1, y, 1), (x, y, 1)], []
        back = [(a, b, 0) for a, b, _ in reversed(front)]
        faces += [front, back]
        for (down, right), (p, q) in {(-1, 0): (2, 3), (1, 0): (0, 1), (0, -1): (3, 0), (0, 1): (1, 2)}.items():
            if not inside[row + 1 + down, column + 1 + right]:
                (ax, ay, _), (bx, by, _) = front[p], front[q]
                faces.append([(ax, ay, 1), (ax, ay, 0), (bx, by, 0), (bx, by, 1)])
    corners = sorted({corner for face in faces for corner in face})
    number = {corner: i for i, corner in enumerate(corners)}
    vertices = np.array(corners, np.float64) * [1 / width, 1 / height, depth]
    return vertices, np.array([[number[corner] for corner in face] for face in faces])


def write_off(path: Path, vertices: NDArray[np.float64], faces: NDArray[np.int64], broken: bool) -> None:
    """Write an OFF file; ``broken``: with the counts in the first line, as in many of ModelNet's."""
    lines = [f"OFF{'' if broken else chr(10)}{len(vertices)} {len(faces)} 0"]
    lines += [" ".join(f"{v:.4f}" for v in vertex) for vertex in vertices]
    lines += [" ".join(map(str, (len(face), *face))) for face in faces]
    path.write_text("\n".join(lines) + "\n")


def surface_points(
    rng: np.random.Generator, vertices: NDArray[np.float64], faces: NDArray[np.int64], count: int
) -> NDArray[np.float32]:
    """``count`` points uniform on rectangles, with mean zero and in the unit sphere."""
    corner, right, up = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 3]]
    area = np.linalg.norm(np.cross(right - corner, up - corner), axis=1)
    which = rng.choice(len(faces), count, p=area / area.sum())
    s, t = rng.random((2, count, 1))
    points = corner[which] + s * (right - corner)[which] + t * (up - corner)[which]
    points -= points.mean(0)
    scaled: NDArray[np.float32] = (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)
    return scaled


def shape(rng: np.random.Generator, image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The mesh of a digit, of random depth and proportions."""
    ink = np.asarray(Image.fromarray(image).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC))
    vertices, faces = extrude(ink > 110, float(rng.uniform(0.1, 0.3)))
    return vertices * [rng.uniform(0.7, 1.1), 1.0, 1.0], faces


def write(folder: Path) -> None:
    """Write ``modelnet40_ply_hdf5_2048`` (two training files, one of test) and ``ModelNet40/<class>/{train,test}``."""
    release, meshes = folder / "modelnet40_ply_hdf5_2048", folder / "ModelNet40"
    release.mkdir(parents=True)
    (release / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    for seed, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(300 + seed)
        official = "train" if split == "train" else "test"
        images, labels = digits(split)
        clouds, classes = [], []
        for i in range(count):
            label = i % len(CLASSES)
            name = CLASSES[label]
            vertices, faces = shape(rng, images[rng.choice(np.flatnonzero(labels == _DIGIT[name]))])
            place = meshes / name / official
            place.mkdir(parents=True, exist_ok=True)
            number = i // len(CLASSES) + (0 if split == "train" else COUNTS["train"] // len(CLASSES)) + 1
            upright = vertices[:, [0, 2, 1]] * [1, -1, 1]  # z up, as ModelNet40's meshes are
            write_off(place / f"{name}_{number:04d}.off", upright, faces, broken=i % 3 == 0)
            clouds.append(surface_points(rng, vertices, faces, POINTS))
            classes.append(label)
        order = rng.permutation(count)
        parts = np.array_split(order, 2 if official == "train" else 1)
        for part, members in enumerate(parts):
            with h5py.File(release / f"ply_data_{official}{part}.h5", "w") as file:
                file.create_dataset("data", data=np.stack(clouds)[members], compression="gzip")
                file.create_dataset("label", data=np.array(classes, np.uint8)[members, None])
        lines = [f"data/modelnet40_ply_hdf5_2048/ply_data_{official}{part}.h5\n" for part in range(len(parts))]
        (release / f"{official}_files.txt").write_text("".join(lines))
