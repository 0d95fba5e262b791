"""Reading pictures as uint8 tensors, the fast way: torchvision's decoders, no float until they are on the device."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image, read_file

from wsbench.datamodules.errors import DatasetError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def read_picture(path: str | Path, upright: bool = False) -> Tensor:
    """A JPEG, PNG, GIF or WebP file as RGB, uint8 (3, H, W); a DatasetError names a file that cannot be read.

    ``upright`` turns it as its camera says. Datasets' pictures are taken as they lie, as their labels were made.
    """
    try:
        picture: Tensor = decode_image(read_file(str(path)), mode=ImageReadMode.RGB, apply_exif_orientation=upright)
        return picture
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"cannot read '{path}': {reason}; replace the file") from error


def picture_paths(folder: Path) -> list[Path]:
    """The pictures in a folder, by name; DatasetError if there are none, or two would write the same files."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    if not paths:
        raise DatasetError(f"no pictures in '{folder}' (looked for {', '.join(PICTURES)})")
    return without_clashes(paths)


def without_clashes(paths: Sequence[Path]) -> list[Path]:
    """The paths as they are; DatasetError if two have the same name but for their extension."""
    by_stem = {p.stem: p for p in paths}
    clash = next((p for p in paths if by_stem[p.stem] != p), None)
    if clash is not None:
        raise DatasetError(f"'{clash}' and '{by_stem[clash.stem]}' would write the same files; rename one")
    return list(paths)


class PredictionFolder(Dataset[dict[str, Any]]):
    """The user's files, each read by a function.

    Args:
        paths: the files or folders.
        read: one of them to what the task's network takes.
        key: its name in the sample.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Tensor], key: str) -> None:
        self.paths, self.read, self.key = paths, read, key

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample and its path."""
        return {self.key: self.read(self.paths[index]), "path": str(self.paths[index])}


def collate_one(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of the one sample: tensors get a first dimension."""
    (sample,) = batch
    return {k: v[None] if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
