"""Clips as folders of numbered frames: which frames, which crop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.pictures import read_picture
from wsbench.datamodules.sampling import Draw


@dataclass(frozen=True)
class Clip:
    """A folder of frames ``00001.jpg`` ..., how many there are, and the class."""

    folder: Path
    frames: int
    label: int


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


def read_frames(folder: Path, numbers: Sequence[int], name: str = "{:05d}.jpg") -> Tensor:
    """uint8 (T, 3, H, W); only these frames are decoded, each once. A DatasetError names a missing one."""
    paths = [folder / name.format(number) for number in numbers]
    missing = next((p for p in paths if not p.is_file()), None)
    if missing is not None:
        raise DatasetError(f"frame '{missing}' is missing; unpack the clip again, or build the lists anew")
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

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """``clip`` uint8 (T, 3, H, W) and ``label``."""
        clip = self.clips[draw.index if isinstance(draw, Draw) else draw]
        if self.transform is not None and isinstance(draw, Draw):
            generator = torch.Generator().manual_seed(draw.seed)
            frames = read_frames(clip.folder, training_frames(clip.frames, self.segments, generator))
            return {"clip": self.transform(frames, generator), "label": clip.label}
        frames = read_frames(clip.folder, evaluation_frames(clip.frames, self.segments))
        return {"clip": self.evaluate(frames), "label": clip.label}
