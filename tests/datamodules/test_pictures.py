"""One reader for all tasks: against numpy and Pillow, damaged files in a process of their own, names of all kinds."""

import contextlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.datamodules.prepare.planting import animation, bomb_jpeg, bomb_png, encoded, noise
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.pictures import (
    PICTURES,
    PredictionFolder,
    open_picture,
    open_upright,
    output_names,
    picture_size,
    read_picture,
    user_files,
)
from wsbench.datamodules.prepare.checks import broken

EXIF_ORIENTATION = 274


def png(values: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits, which Pillow writes of grey images only: (H, W) grey or (H, W, 3) colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def read(folder: Path, content: bytes, name: str = "x.png", **options: Any) -> NDArray[np.uint8]:
    """Height, width, channels."""
    (folder / name).write_bytes(content)
    picture = read_picture(folder / name, **options)
    assert picture.dtype == torch.uint8
    return picture.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("shape", [(30, 50), (30, 50, 3)])
def test_16_bits_are_scaled_to_8(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    values.flat[:4] = (0, 255, 256, 65535)
    expected = np.broadcast_to((values // 256).reshape(30, 50, -1), (30, 50, 3))
    assert np.array_equal(read(tmp_path, png(values)), expected)


def test_16_bits_of_other_formats(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (30, 50), dtype=np.uint16)
    pgm = b"P5\n50 30\n65535\n" + values.astype(">u2").tobytes()
    for content in (pgm, encoded(Image.fromarray(values), "TIFF")):
        assert np.array_equal(read(tmp_path, content)[:, :, 1], values // 256)


def test_values_that_do_not_say_what_is_white_are_refused(tmp_path: Path) -> None:
    for values in (np.ones((9, 9), np.float32), np.full((9, 9), 70_000, np.int32)):
        with pytest.raises(DatasetError, match=r"x\.png' holds values of 32 bits; save it with 8 or 16"):
            read(tmp_path, encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_a_png_is_pillows_rgb(mode: str, tmp_path: Path) -> None:
    image = noise(30, 50).convert(mode)
    assert np.array_equal(read(tmp_path, encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_colours_beneath_transparency_are_kept(tmp_path: Path) -> None:
    image = noise(30, 50)
    transparent = image.copy()
    transparent.putalpha(Image.new("L", image.size, 0))
    assert np.array_equal(read(tmp_path, encoded(transparent, "PNG")), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_are_pillows_within_rounding(mode: str, tmp_path: Path) -> None:
    smooth = noise(8, 8).resize((64, 48), Image.Resampling.BICUBIC).convert(mode)
    content = encoded(smooth, "JPEG", quality=95, subsampling=0)
    found = read(tmp_path, content, "x.jpg").astype(int)
    expected = np.asarray(Image.open(tmp_path / "x.jpg").convert("RGB")).astype(int)
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PPM"])
def test_what_a_file_is_says_its_content(kind: str, tmp_path: Path) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(read(tmp_path, encoded(noise(30, 50), kind, **options), "x.JPEG"), np.asarray(noise(30, 50)))


def test_one_frame_is_a_picture_and_three_are_an_animation(tmp_path: Path) -> None:
    assert read(tmp_path, animation(frames=1), "x.jpg").shape == (40, 40, 3)
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        with pytest.raises(DatasetError, match=r"x\.jpg' is an animation of 3 images; expected one image"):
            read(tmp_path, animation(kind), "x.jpg")


@pytest.mark.parametrize("content", [bomb_png(), bomb_jpeg()])
def test_too_many_pixels_are_refused_before_memory_is_taken(content: bytes, tmp_path: Path) -> None:
    for ask in (lambda: read(tmp_path, content), lambda: picture_size(tmp_path / "x.png")):
        with pytest.raises(DatasetError, match=r"x\.png' has more pixels than 178,956,970"):
            ask()


def test_a_header_with_everything_in_front_of_the_size(tmp_path: Path) -> None:
    """Where a JPEG says its size moves with what lies before it, padding too."""
    exif = Image.Exif()
    exif[270] = "x" * 30_000
    content = encoded(noise(), "JPEG", exif=exif, progressive=True)
    start = content.index(b"\xff\xc2")
    content = content[:start] + b"\xff\xff" + content[start:]
    assert read(tmp_path, content).shape == (40, 40, 3)
    start = content.index(b"\xff\xc2")
    with pytest.raises(DatasetError, match="has more pixels"):
        read(tmp_path, content[: start + 5] + struct.pack(">HH", 60_000, 60_000) + content[start + 9 :])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_users_picture_is_turned_as_its_camera_says(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    smooth = noise(4, 4).resize((40, 24), Image.Resampling.BICUBIC)
    content = encoded(smooth, kind, exif=exif)
    lying = read(tmp_path, content)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
    upright = read(tmp_path, content, upright=True)
    assert lying.shape == (24, 40, 3), "a dataset's image is taken as it lies"
    assert upright.shape == expected.shape == ((40, 24, 3) if orientation > 4 else (24, 40, 3))
    assert np.abs(upright.astype(int) - expected.astype(int)).max() <= 3
    assert open_upright(tmp_path / "x.png").size == expected.shape[1::-1]
    assert picture_size(tmp_path / "x.png") == (24, 40)


# -- damaged files --------------------------------------------------------------------------------------------------


class Damaged:
    """Files that are read one by one, in other processes."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        return self.paths[index]

    def check(self, index: int) -> None:
        picture = read_picture(self.paths[index], upright=index % 2 == 0)
        assert picture.dtype == torch.uint8
        assert picture.shape[0] == 3


def with_bytes_changed(content: bytes, rng: np.random.Generator, is_png: bool) -> bytes:
    """One byte changed, or eight, or an end cut off; of a PNG's stream, with its check sum mended, or anywhere."""
    if rng.random() < 0.15:
        return content[: rng.integers(1, len(content))]
    changed = bytearray(content)
    start, end = 0, len(content)
    if is_png and rng.random() < 0.8:
        start = content.index(b"IDAT") + 4
        end = start + int.from_bytes(content[start - 8 : start - 4], "big")
    for place in rng.integers(start, end, rng.choice([1, 8])):
        changed[place] ^= int(rng.integers(1, 256))
    if start:
        changed[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(changed[start - 4 : end])))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_nothing_that_a_file_holds_ends_the_process(kind: str, tmp_path: Path) -> None:
    """400 damaged files of each: some can be read yet, the others are refused by name."""
    rng = np.random.default_rng(0)
    smooth = noise(6, 6).resize((50, 40), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    whole = [encoded(image, kind, exif=exif) for image in (noise(40, 50), smooth, smooth.convert("L"))]
    paths = []
    for i in range(400):
        paths.append(tmp_path / f"{i}.jpg")
        paths[-1].write_bytes(with_bytes_changed(whole[i % 3], rng, kind == "PNG"))
    problems = dict(broken(Damaged(paths), range(400), processes=1))
    assert 20 < len(problems) <= 400
    for index, text in problems.items():
        assert f"'{paths[index]}'" in text
        assert "ends the process" not in text
        assert "Error:" not in text, "an exception that nobody foresaw"


def test_a_png_with_a_wrong_check_sum_is_refused_even_where_pillow_decodes_it(tmp_path: Path) -> None:
    """A changed bit of a mask's stream can be other labels, and nothing else that is wrong."""
    labels = np.zeros((40, 50), np.uint8)
    labels[5:30, 8:40], labels[20:, 20:] = 3, 7
    whole = encoded(Image.fromarray(labels), "PNG")
    start = whole.index(b"IDAT") + 4
    taken = 0
    for place in range(start, start + int.from_bytes(whole[start - 8 : start - 4], "big")):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "x.png").write_bytes(bytes(changed))
        with contextlib.suppress(OSError), Image.open(tmp_path / "x.png") as image:
            taken += not np.array_equal(np.asarray(image), labels)
        with pytest.raises(DatasetError, match=r"cannot read '.*x\.png': a wrong check sum in IDAT"):
            read_picture(tmp_path / "x.png")
    assert taken


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere")
    for name, reason in (("folder.png", "Is a directory"), ("link.png", "No such file"), ("none.png", "No such file")):
        for ask in (read_picture, open_picture, picture_size):
            with pytest.raises(DatasetError, match=rf"cannot read '.*{name}': {reason}"):
                ask(tmp_path / name)


# -- names ----------------------------------------------------------------------------------------------------------

LONG = "ü" * 120 + "abcde"  # 245 bytes


def test_names_of_any_bytes_and_length(tmp_path: Path) -> None:
    names = [f"{LONG}.jpg", f"{LONG}.png", "n" * 251 + ".png", os.fsdecode(b"caf\xe9.png"), "a b.png", "$(x);.png"]
    for name in names:
        (tmp_path / name).write_bytes(encoded(noise(), "PNG"))
        assert read_picture(tmp_path / name).shape == (3, 40, 40)
    paths, passed = user_files(tmp_path, PICTURES, False, "images")
    assert sorted(p.name for p in paths) == sorted(names)
    assert not passed
    called = output_names(paths, tmp_path)
    assert len(set(called)) == len(names)
    for name in called:
        file = tmp_path / "out" / f"{name}.instances.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")  # the file system takes it, with a suffix of ours
    assert output_names(paths, tmp_path) == called, "the same each time"
    data = PredictionFolder(paths, tmp_path, read_picture, "image")
    assert [data[i]["name"] for i in range(len(paths))] == called
    assert all(Path(data[i]["path"]) == path for i, path in enumerate(paths))


def test_outputs_of_files_that_differ_little_keep_apart(tmp_path: Path) -> None:
    files = ["a.jpg", "a.png", "a.jpg.png", "b.png", "deep/a.jpg", "deep/b.tar.png", "clip.1.png", "clip.2.png"]
    paths = [tmp_path / file for file in files]
    called = output_names(paths, tmp_path)
    assert len(set(called)) == len(files)
    assert called[3:] == ["b", "deep/a", "deep/b.tar", "clip.1", "clip.2"]


def test_folders_are_named_whole(tmp_path: Path) -> None:
    clips = [tmp_path / "clip.1", tmp_path / "clip.2"]
    for clip in clips:
        clip.mkdir()
    assert output_names(clips, tmp_path) == ["clip.1", "clip.2"]


def test_which_files_of_a_folder_are_looked_at(tmp_path: Path) -> None:
    wanted = ["a.JPG", "b.png", "c.jfif"]
    passed = ["notes.txt", "d.gif", "e.heic", "no_suffix"]
    hidden = [".hidden.png", "._a.JPG", ".DS_Store", "Thumbs.db", "desktop.ini"]
    deep = ["in/f.webp", "in/further/g.TIFF"]
    unseen = [".cache/h.png", "__MACOSX/i.png", "in/.ipynb_checkpoints/j.png"]
    for name in (*wanted, *passed, *hidden, *deep, *unseen, "in/readme.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def names(paths: list[Path]) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in paths]

    here, left = user_files(tmp_path, PICTURES, False, "images")
    assert names(here) == sorted(wanted)
    assert names(left) == sorted(passed)
    every, left = user_files(tmp_path, PICTURES, True, "images")
    assert names(every) == sorted([*wanted, *deep])
    assert names(left) == sorted([*passed, "in/readme.md"])


def test_a_folder_without_pictures_says_where_they_may_be(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no images in '.*' \(looked for \.jpg, .*\)$"):
        user_files(tmp_path, PICTURES, False, "images")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"or say --data\.recursive true"):
        user_files(tmp_path, PICTURES, False, "images")
