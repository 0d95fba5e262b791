"""Faults planted in a copy of a tiny dataset, and what `data` must say of each."""

import io
import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from wsbench.__main__ import main
from wsbench.datamodules import data_class
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.sampling import Draw

#: how the lines of a table begin, which break words
_TABLE = ("│", "┃", "┏", "┡", "└", "├", "+", "|")


Plant = Callable[[Path], object]


@dataclass(frozen=True)
class Fault:
    """What damages a dataset, and the words that must be said then, `ROOT` for its folder.

    ``unseen`` by training: what lies where only some seeds look (a frame among many).
    """

    plant: Plant
    words: tuple[str, ...]
    unseen: bool = False


def fault(plant: Plant, *words: str, unseen: bool = False) -> Fault:
    return Fault(plant, words, unseen)


def said(task: str, root: Path, capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """The command's exit status, and what it said below the layout and beside the table."""
    capfd.readouterr()
    status = main(["data", task, "--root", str(root), *options])
    out, err = capfd.readouterr()
    told = out.partition(data_class(task).layout)[2]
    lines = [line for line in told.splitlines() if not line.strip().startswith(_TABLE)]
    return status, "\n".join([*lines, err]).replace(str(root), "ROOT")


def snapshot(root: Path) -> dict[bytes, Any]:
    """All that is in a folder, with the files' times of change."""

    def entries() -> Iterator[tuple[bytes, Any]]:
        for folder, folders, files in os.walk(os.fsencode(root)):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                facts = os.lstat(path)
                content = Path(os.fsdecode(path)).read_bytes() if os.path.isfile(path) else b""
                yield path, (facts.st_mode, content, 0 if os.path.isdir(path) else facts.st_mtime_ns)

    return dict(entries())


def copy(roots: dict[str, Path], task: str, folder: Path) -> Path:
    return Path(shutil.copytree(roots[task], folder / "data"))


def check(task: str, planted: Fault, root: Path, capfd: pytest.CaptureFixture[str], **options: Any) -> None:
    """The fault is found and named, nothing is changed, and training does not take it either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training's warnings are read from `doubts`
        planted.plant(root)
        before = snapshot(root)
        status, text = said(task, root, capfd)
        taken = not planted.unseen and not refused(task, root, **options)
    assert status in (1, 2), text
    for word in planted.words:
        assert word in text, f"{word!r} is not said:\n{text}"
    assert "Traceback" not in text
    assert "ready:" not in text
    assert snapshot(root) == before, "the dataset's folder was changed"
    assert not taken, "training takes it silently"


def each_is_found(task: str, faults: dict[str, Fault], **options: Any) -> Callable[..., None]:
    """A test for each of the faults; ``options`` of the data, with which training is tried."""

    @pytest.mark.parametrize("name", faults)
    def test(name: str, tiny_roots: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        check(task, faults[name], copy(tiny_roots, task, tmp_path), capfd, **options)

    return test


def refused(task: str, root: Path, **options: Any) -> bool:
    """Whether training on it is refused or doubted."""
    try:
        data = tiny.data(task, root, **options)
        data.setup("fit")
        data.identity()
        for samples in (data.train_data, data.val_data):
            for index in range(len(samples)):
                samples[Draw(index, 1) if samples is data.train_data else index]
    except DatasetError:
        return True
    return bool(data.doubts)


def fine(task: str, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is found, and nothing changed."""
    before = snapshot(root)
    status, text = said(task, root, capfd)
    assert status == 0, text
    assert "next: ready: python -m wsbench fit" in text
    assert snapshot(root) == before


# -- what is planted ------------------------------------------------------------------------------------------------


def noise(height: int = 40, width: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def damaged(content: bytes, place: float = 0.5) -> bytes:
    """With a byte changed."""
    at = int(len(content) * place)
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def damaged_png(image: Image.Image, crc: bool = True) -> bytes:
    """With a byte of the compressed stream changed; ``crc``: and its check sum, so that only decoding finds it."""
    content = encoded(image, "PNG")
    start = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[start - 4 : start])
    stream = bytearray(content[start + 4 : start + 4 + length])
    stream[length // 2] ^= 0xFF
    total = struct.pack(">I", zlib.crc32(b"IDAT" + stream))
    end = start + 8 + length
    return content[: start + 4] + bytes(stream) + (total if crc else content[end - 4 : end]) + content[end:]


def animation(kind: str = "GIF", frames: int = 3) -> bytes:
    first, *others = (noise(seed=seed) for seed in range(frames))
    return encoded(first, kind, save_all=True, append_images=others)


def bomb_png(side: int = 20_000) -> bytes:
    """A header that promises more pixels than anybody decodes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def bomb_jpeg(side: int = 60_000) -> bytes:
    """A JPEG whose header says another size."""
    content = bytearray(encoded(noise(), "JPEG"))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", side, side)
    return bytes(content)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new, 1))


#: meshes
CUBE = """OFF
8 6 0
0 0 0
1 0 0
1 1 0
0 1 0
0 0 1
1 0 1
1 1 1
0 1 1
4 0 3 2 1
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""
PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 1
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
0 1 0
3 0 1 7
"""


def from_one(text: str) -> str:
    """All faces' vertices counted from 1."""
    lines = text.splitlines()
    faces = [" ".join(["4", *(str(int(v) + 1) for v in line.split()[1:])]) for line in lines[10:]]
    return "\n".join([*lines[:10], *faces, ""])
