"""Reading images as uint8 tensors: one reader for all tasks, which nothing that a file holds can crash.

JPEG is decoded by torchvision, which is fast and refuses broken files. Everything else is decoded by Pillow: the native
PNG decoder of torchvision can end the process at a damaged stream.
"""

import hashlib
import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from wsbench.datamodules.errors import DAMAGED, DatasetError
from wsbench.datamodules.lists import is_meant

#: suffixes of images, in any case
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: suffixes of what is an image to a user, and is not read
UNREAD = (".gif", ".jp2", ".heic", ".heif", ".avif", ".tga")
#: longest file name in bytes, as most file systems have it
_LONGEST_NAME = 255
#: pixels of an image from which on it is refused, as Pillow has it
_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)


def _cannot_read(path: str | Path, error: BaseException) -> DatasetError:
    reason = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif isinstance(error, UnidentifiedImageError):
        reason = "it is no image"
    return DatasetError(f"cannot read '{path}': {reason.splitlines()[0]}; replace the file")


def _too_large(path: str | Path) -> DatasetError:
    return DatasetError(
        f"'{path}' has more pixels than {_MOST_PIXELS:,}, which is more than is decoded; make it smaller"
    )


def content_of(path: str | Path) -> bytes:
    """The bytes of a file; a DatasetError names one that cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _cannot_read(path, error) from error


def _check_sums(content: bytes) -> None:
    """Refuse a PNG with a wrong check sum: Pillow looks at none of the pixels', and decodes what has become of them."""
    place = 8 if content.startswith(b"\x89PNG\r\n\x1a\n") else len(content)
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        kind, stated = content[place + 4 : place + 8], content[end : end + 4]
        if (
            kind[:1].isupper()
            and len(stated) == 4
            and zlib.crc32(content[place + 4 : end]) != int.from_bytes(stated, "big")
        ):
            raise ValueError(f"a wrong check sum in {kind.decode('ascii', 'replace')}")
        place = end + 4


def open_picture(path: str | Path) -> Image.Image:
    """Decode an image completely with Pillow; a DatasetError names a file that cannot be read, or that moves."""
    return decode(path, content_of(path))


def decode(path: str | Path, content: bytes) -> Image.Image:
    """As :func:`open_picture`, of the bytes of the file ``path``."""
    try:
        _check_sums(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large, and below the limit; odd, and readable
            with Image.open(io.BytesIO(content)) as image:
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format != "MPO":  # a phone's JPEG with a preview behind the image
                    raise DatasetError(f"'{path}' is an animation of {frames} images; expected one image")
                if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
                    raise DatasetError(f"'{path}' holds values of 32 bits; save it with 8 or 16 bits a channel")
                image.load()
                return image
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except DAMAGED as error:
        raise _cannot_read(path, error) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """As 8-bit RGB; 16-bit grey is scaled by 1/256, as Pillow reads 16-bit colour."""
    if image.mode.startswith("I;16") or image.mode == "I":  # the latter of 16 bits, too, or it was not opened
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _decode_rgb(path: str | Path, content: bytes, upright: bool) -> Image.Image:
    image = decode(path, content)
    try:
        return as_rgb(ImageOps.exif_transpose(image) if upright else image)
    except DAMAGED as error:
        raise _cannot_read(path, error) from error


def open_upright(path: str | Path) -> Image.Image:
    """Read a user's image as RGB, turned as its camera says."""
    return _decode_rgb(path, content_of(path), upright=True)


def read_picture(path: str | Path, upright: bool = False) -> Tensor:
    """An image file as RGB, uint8 (3, H, W); a DatasetError names a file that cannot be read.

    What it is says its content, not its suffix. ``upright`` turns it as its camera says; datasets' images are taken
    as they lie, as their labels were made.
    """
    content = content_of(path)
    if not content.startswith(b"\xff\xd8\xff"):
        picture = torch.from_numpy(np.array(_decode_rgb(path, content, upright))).permute(2, 0, 1).contiguous()
    else:
        if _jpeg_pixels(content) > _MOST_PIXELS:  # torchvision would allocate whatever the header says
            raise _too_large(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "not writable"; that decoders move to torchcodec
                encoded = torch.frombuffer(content, dtype=torch.uint8)
                picture = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=upright)
        except RuntimeError as error:
            raise _cannot_read(path, error) from error
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise DatasetError(f"'{path}' was decoded to {picture.dtype} {tuple(picture.shape)}, expected uint8 (3, H, W)")
    return picture


def _jpeg_pixels(content: bytes) -> int:
    """Pixels that a JPEG's header says it has; 0 if that is not found, and the decoder will refuse it."""
    place = 2
    while content[place : place + 1] == b"\xff" and place + 9 <= len(content):
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == 0xFF:  # padding
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", content[place + 5 : place + 9])
            return int(height) * int(width)
        else:
            place += 2 + length
    return 0


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image, by its header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except DAMAGED as error:
        raise _cannot_read(path, error) from error


# -- what predict looks at ------------------------------------------------------------------------------------------


def user_files(folder: Path, suffixes: Sequence[str], recursive: bool, what: str) -> tuple[list[Path], list[Path]]:
    """The files in a folder by suffix, and those that are passed over, both by name.

    Args:
        folder: the user's.
        suffixes: of the files that are meant, lower case.
        recursive: look into its folders, too.
        what: what the files are called in messages.

    Raises:
        DatasetError: there is none.
    """
    entries = folder.rglob("*") if recursive else folder.iterdir()
    files = sorted(
        p for p in entries if p.is_file() and all(is_meant(Path(part)) for part in p.relative_to(folder).parts)
    )
    chosen = [p for p in files if p.suffix.lower() in suffixes]
    if not chosen:
        deeper = "" if recursive or not any(p.is_dir() for p in folder.iterdir()) else ", or say --data.recursive true"
        raise DatasetError(f"no {what} in '{folder}' (looked for {', '.join(suffixes)}){deeper}")
    return chosen, [p for p in files if p not in set(chosen)]


def output_names(paths: Sequence[Path], folder: Path, reserve: int = 40) -> list[str]:
    """What to call the files that belong to each path: its place below ``folder`` without its suffix.

    A suffix is kept where two files differ in nothing else; folders (clips) are named whole; a name too long to be
    extended by ``reserve`` bytes is cut, and a hash of the whole makes it its own.
    """

    def name(path: Path, whole: bool) -> str:
        below = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        last = below.name if whole or path.is_dir() else below.stem
        if len(last.encode("utf-8", "surrogateescape")) + reserve > _LONGEST_NAME:
            short = hashlib.sha256(below.name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
            cut = last.encode("utf-8", "surrogateescape")[: _LONGEST_NAME - reserve - 13].decode("utf-8", "ignore")
            last = f"{cut}-{short}"
        return (below.parent / last).as_posix()

    short = [name(path, False) for path in paths]
    times = Counter(short)
    names, taken = [], set()
    for path, one in zip(paths, short, strict=True):
        chosen, number = one if times[one] == 1 else name(path, True), 1
        while chosen in taken:  # a.jpg, a.png and a.jpg.png
            number += 1
            chosen = f"{name(path, True)}-{number}"
        taken.add(chosen)
        names.append(chosen)
    return names


class PredictionFolder(Dataset[dict[str, Any]]):
    """The user's files, each read by a function.

    Args:
        paths: the files or folders.
        folder: that they lie in.
        read: one of them to what the task's network takes, or to a dictionary of it.
        key: its name in the sample.
    """

    def __init__(self, paths: Sequence[Path], folder: Path, read: Callable[[Path], Any], key: str) -> None:
        self.paths, self.names, self.read, self.key = list(paths), output_names(paths, folder), read, key

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, its path, and what its predictions are to be called."""
        read = self.read(self.paths[index])
        sample = read if isinstance(read, dict) else {self.key: read}
        return {**sample, "path": str(self.paths[index]), "name": self.names[index]}


def collate_one(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of the one sample: tensors get a first dimension."""
    (sample,) = batch
    return {k: v[None] if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
