"""Class masks on disk: what is in them, looked at once and kept until a mask changes."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from wsbench.datamodules.cache import keep, read_kept, stamp
from wsbench.datamodules.errors import DatasetError, refuse_all
from wsbench.datamodules.palette import VOID
from wsbench.datamodules.pictures import content_of, decode

#: the byte of a PNG file that says how many bits a value has
_BIT_DEPTH = 24
#: masks from which on a progress bar is worth its line
_MANY = 2000


@dataclass(frozen=True)
class Mask:
    """What a mask holds."""

    sha256: str
    """Of its size and class numbers, whatever the file's compression and colours."""
    highest: int
    """The highest class number, void aside; -1 where all is void."""
    lowest: int
    """The lowest, likewise; 255 where all is void."""


def open_mask(path: Path) -> Image.Image:
    """A mask, decoded; DatasetError if it is no palette or grey image of 8 bits."""
    content = content_of(path)
    mask = decode(path, content)
    if mask.format == "JPEG":
        raise DatasetError(f"'{path}' is a JPEG image, which does not keep class numbers; a mask is a PNG")
    if mask.mode == "L" and mask.format == "PNG" and content[_BIT_DEPTH] < 8:
        raise DatasetError(
            f"'{path}' is a grey PNG of {content[_BIT_DEPTH]} bits, whose values are stretched to 255 on reading; "
            "save it with 8 bits or as a palette image"
        )
    if mask.mode not in ("P", "L"):
        raise DatasetError(
            f"'{path}' is a {mask.mode} image; a mask is a palette or 8-bit grey PNG whose values are class numbers"
        )
    return mask


def _look(path: Path) -> Mask:
    mask = open_mask(path)
    values = [value for value, number in enumerate(mask.histogram()[:VOID]) if number]
    digest = hashlib.sha256(f"{mask.size}".encode() + mask.tobytes()).hexdigest()
    return Mask(digest, max(values, default=-1), min(values, default=VOID))


def look_at_masks(paths: Sequence[Path]) -> list[Mask]:
    """What is in the masks, in order; those of a folder are kept until their size or time of change differs.

    Raises:
        DatasetError: which are no masks, some of them by name.
    """
    folders = sorted({path.parent for path in paths})
    kept = {folder: read_kept("masks", folder) for folder in folders}
    masks: dict[Path, Mask] = {}
    stamps: dict[Path, list[int]] = {}
    for path in paths:
        try:
            stamps[path] = stamp(path)
        except OSError as error:
            raise DatasetError(f"cannot read '{path}': {error.strerror}") from error
        entry = kept[path.parent].get(path.name)
        if entry is not None and len(entry) == 4 and entry[0] == stamps[path]:
            masks[path] = Mask(*entry[1:])
    new = [path for path in dict.fromkeys(paths) if path not in masks]
    wrong: list[DatasetError] = []

    def look(path: Path) -> tuple[Path, Mask | DatasetError]:
        try:
            return path, _look(path)
        except DatasetError as error:
            return path, error

    with ThreadPoolExecutor() as pool:
        looked_at = pool.map(look, new)
        console = Console(stderr=True)
        for path, mask in track(
            looked_at, "looking at masks, once", len(new), console=console, disable=len(new) < _MANY
        ):
            if isinstance(mask, DatasetError):
                wrong.append(mask)
            else:
                masks[path] = mask
    for folder in {path.parent for path in new}:
        entries = kept[folder] | {
            p.name: [stamps[p], m.sha256, m.highest, m.lowest] for p, m in masks.items() if p.parent == folder
        }
        keep("masks", folder, entries)
    refuse_all(wrong)
    return [masks[path] for path in paths]


def palette_of(path: Path) -> list[int] | None:
    """The colours of a mask's palette, 256 x RGB; None if it has none."""
    mask = open_mask(path)
    colours = mask.getpalette()
    return None if colours is None else (colours + [0] * 768)[:768]
