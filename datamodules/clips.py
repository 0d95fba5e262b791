"""Clips as folders of numbered frames: which frames, which crop."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.pictures import PICTURES, read_picture
from wsbench.datamodules.sampling import Draw


@dataclass(frozen=True)
class Naming:
    """How the frames of a clip are called: ``00001.jpg`` ... by default, ``img_000.PNG`` ... elsewhere."""

    prefix: str = ""
    digits: int = 5
    suffix: str = ".jpg"
    first: int = 1

    def name(self, number: int) -> str:
        """The file of a frame, counted from 1."""
        return f"{self.prefix}{number - 1 + self.first:0{self.digits}d}{self.suffix}"


@dataclass(frozen=True)
class Clip:
    """A folder of numbered frames, how many there are, the class, and how they are called."""

    folder: Path
    frames: int
    label: int
    naming: Naming = Naming()
    name: str = ""
    """As its list has it."""


_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>\.\w+)\Z")


def frames_of(folder: Path) -> tuple[Naming, int]:
    """How the frames in a clip's folder are called, and how many there are.

    Raises:
        DatasetError: there is no such folder, it has no frames, they are called in two ways, or numbers are left out.
    """
    try:
        with os.scandir(folder) as entries:
            frames = [e for e in entries if e.name.lower().endswith(PICTURES) and not e.name.startswith(".")]
            names, none = [e.name for e in frames], sorted(e.name for e in frames if not e.is_file())
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DatasetError(f"the clip '{folder}' {reason}; unpack it again, or take it off the list") from error
    if none:
        raise DatasetError(f"frame '{folder / none[0]}' is no file, or a link to nothing; unpack the clip again")
    numbered = [_NUMBERED.match(name) for name in names]
    matches = [m for m in numbered if m is not None]
    if not matches:
        raise DatasetError(
            f"the clip '{folder}' has no frames (00001.jpg ...); unpack it again, or take it off the list"
        )
    if len(matches) < len(names):
        other = next(name for name, m in zip(names, numbered, strict=True) if m is None)
        raise DatasetError(f"the clip '{folder}' has '{other}' among its numbered frames; remove it")
    first = min(matches, key=lambda m: int(m["number"]))
    kinds = {(m["prefix"], m["suffix"]) for m in matches}
    if len(kinds) > 1:
        examples = {(m["prefix"], m["suffix"]): m.group() for m in sorted(matches, key=re.Match.group, reverse=True)}
        two = " and ".join(sorted(examples.values())[:2])
        raise DatasetError(f"the frames in '{folder}' are called in two ways, as {two}; keep one")
    naming = Naming(first["prefix"], len(first["number"]), first["suffix"], int(first["number"]))
    present = set(names)
    gap = next((naming.name(n) for n in range(1, len(names) + 1) if naming.name(n) not in present), None)
    if gap is not None:
        raise DatasetError(f"frame '{folder / gap}' is missing among {len(names)} frames; unpack the clip again")
    return naming, len(names)


def training_frames(frames: int, segments: int, generator: torch.Generator) -> list[int]:
    """One random frame of each of ``segments`` equal parts, counted from 1; frame 1 where there are fewer frames."""
    part = frames // segments
    if part == 0:
        return [1] * segments
    offsets = torch.randint(part, (segments,), generator=generator).tolist()
    return [1 + i * part + offset for i, offset in enumerate(offsets)]


def evaluation_frames(frames: int, segments: int) -> list[int]:
    """The middle frame of each part, counted from 1; frame 1 where there are no more frames than parts."""
    if frames <= segments:
        return [1] * segments
    tick = frames / segments
    return [1 + int(tick / 2 + tick * i) for i in range(segments)]


def crop_sizes(height: int, width: int, side: int, scales: Sequence[float], distort: int = 1) -> list[tuple[int, int]]:
    """All (height, width) of the multi-scale crop: scales of the shorter side, at most ``distort`` scales apart.

    A size within 2 pixels of ``side`` is ``side``.
    """
    sizes = [int(min(height, width) * s) for s in scales]
    sizes = [side if abs(size - side) < 3 else size for size in sizes]
    return [(h, w) for i, h in enumerate(sizes) for j, w in enumerate(sizes) if abs(i - j) <= distort]


def crop_places(height: int, width: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The 13 (top, left) of a crop: corners, centre, middles of the sides, and the centres of the quarters."""
    down, right = (height - size[0]) // 4, (width - size[1]) // 4
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)]
    return [(down * y, right * x) for y, x in places]


@dataclass(frozen=True)
class MultiScaleCrop:
    """A crop of random size and place, the same for all frames, resized to a square; no mirror.

    Source: GroupMultiScaleCrop with fixed places of mit-han-lab/temporal-shift-module @ 1f6a834.

    Args:
        side: of the square.
        scales: of the crop, relative to the shorter side.
    """

    side: int
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)

    def __call__(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (T, 3, H, W) to uint8 (T, 3, side, side)."""
        height, width = frames.shape[2:]

        def one_of(choices: list[Any]) -> Any:
            return choices[int(torch.randint(len(choices), (), generator=generator))]

        size = one_of(crop_sizes(height, width, self.side, self.scales))
        place = one_of(crop_places(height, width, size))
        out: Tensor = F.resized_crop(frames, *place, *size, [self.side, self.side], antialias=True)
        return out


def centre_crop(frames: Tensor, resize: int, side: int) -> Tensor:
    """uint8 (T, 3, H, W): the shorter side to ``resize``, then the square of ``side`` in the middle."""
    out: Tensor = F.center_crop(F.resize(frames, [resize], antialias=True), [side, side])
    return out


def read_frames(folder: Path, numbers: Sequence[int], naming: Naming = Naming()) -> Tensor:  # frozen
    """uint8 (T, 3, H, W); only these frames are decoded, each once. A DatasetError names a missing one."""
    paths = [folder / naming.name(number) for number in numbers]
    missing = next((p for p in paths if not p.is_file()), None)
    if missing is not None:
        raise DatasetError(f"frame '{missing}' is missing; unpack the clip again, or correct its line in the list")
    pictures = {path: read_picture(path) for path in dict.fromkeys(paths)}
    sizes = {picture.shape for picture in pictures.values()}
    if len(sizes) > 1:
        raise DatasetError(f"the frames in '{folder}' have different sizes: {sorted(tuple(s[1:]) for s in sizes)}")
    return torch.stack([pictures[path] for path in paths])


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips and their classes.

    Args:
        clips: the clips.
        segments: frames of a sample.
        transform: of a training sample, drawn from the seed of each Draw.
        evaluate: of any other.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        segments: int,
        transform: MultiScaleCrop | None,
        evaluate: Callable[[Tensor], Tensor],
    ) -> None:
        self.clips, self.segments, self.transform, self.evaluate = clips, segments, transform, evaluate

    def __len__(self) -> int:
        return len(self.clips)

    def path(self, index: int) -> Path:
        """The folder of a sample."""
        return self.clips[index].folder

    def check(self, index: int) -> None:
        """Look at all of a clip; DatasetError if it does not hold what the list says, or a frame cannot be read."""
        clip = self.clips[index]
        _, frames = frames_of(clip.folder)
        if frames != clip.frames:
            raise DatasetError(f"the clip '{clip.folder}' has {frames} frames; it had {clip.frames} when it was listed")
        read_frames(clip.folder, range(1, clip.frames + 1), clip.naming)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """``clip`` uint8 (T, 3, H, W) and ``label``."""
        clip = self.clips[draw.index if isinstance(draw, Draw) else draw]
        if self.transform is not None and isinstance(draw, Draw):
            generator = torch.Generator().manual_seed(draw.seed)
            frames = read_frames(clip.folder, training_frames(clip.frames, self.segments, generator), clip.naming)
            return {"clip": self.transform(frames, generator), "label": clip.label}
        frames = read_frames(clip.folder, evaluation_frames(clip.frames, self.segments), clip.naming)
        return {"clip": self.evaluate(frames), "label": clip.label}
