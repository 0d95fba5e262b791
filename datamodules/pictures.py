"""Reading pictures as uint8 tensors: one reader for all tasks, which nothing that a file holds can crash.

JPEG is decoded by torchvision, which is fast and refuses broken files. Everything else is decoded by Pillow: the native
PNG decoder of torchvision can end the process at a damaged stream.
"""

import hashlib
import warnings
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

from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import is_meant

#: suffixes of pictures, in any case
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: longest file name in bytes, as most file systems have it
_LONGEST_NAME = 255


def open_picture(path: str | Path) -> Image.Image:
    """Decode a picture completely with Pillow; a DatasetError names a file that cannot be read, or that moves."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, and below the limit
            with Image.open(path) as image:
                frames = getattr(image, "n_frames", 1)
                if frames > 1:
                    raise DatasetError(f"'{path}' is an animation of {frames} images; expected one image")
                image.load()
                return image
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"'{path}' has more pixels than Pillow decodes ({Image.MAX_IMAGE_PIXELS} x 2); make it smaller"
        ) from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError, OverflowError) as error:
        raise DatasetError(f"cannot read '{path}': {error}; replace the file") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """As 8-bit RGB; 16-bit grey is scaled by 1/256, as Pillow reads 16-bit colour."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image)
        image = Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def open_upright(path: str | Path) -> Image.Image:
    """Read a user's picture as RGB, turned as its camera says."""
    return as_rgb(ImageOps.exif_transpose(open_picture(path)))


def read_picture(path: str | Path, upright: bool = False) -> Tensor:
    """A picture file as RGB, uint8 (3, H, W); a DatasetError names a file that cannot be read.

    What it is says its content, not its suffix. ``upright`` turns it as its camera says; datasets' pictures are taken
    as they lie, as their labels were made.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read '{path}': {error.strerror}") from error
    if not content.startswith(b"\xff\xd8\xff"):
        image = open_upright(path) if upright else as_rgb(open_picture(path))
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "not writable"; that decoders move to torchcodec
                encoded = torch.frombuffer(content, dtype=torch.uint8)
                picture = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=upright)
        except RuntimeError as error:
            raise DatasetError(f"cannot read '{path}': {str(error).splitlines()[0]}; replace the file") from error
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise DatasetError(f"'{path}' was decoded to {picture.dtype} {tuple(picture.shape)}, expected uint8 (3, H, W)")
    return picture


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a picture, by its header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"cannot read '{path}': {error}; replace the file") from error


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
    found = folder.rglob("*") if recursive else folder.iterdir()
    files = sorted(
        p for p in found if p.is_file() and all(is_meant(Path(part)) for part in p.relative_to(folder).parts)
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
    return [n if times[n] == 1 else name(path, True) for path, n in zip(paths, short, strict=True)]


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
        found = self.read(self.paths[index])
        sample = found if isinstance(found, dict) else {self.key: found}
        return {**sample, "path": str(self.paths[index]), "name": self.names[index]}


def collate_one(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of the one sample: tensors get a first dimension."""
    (sample,) = batch
    return {k: v[None] if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
