"""Which frames and which crops, against the rules of the reference spelt out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from wsbench.datamodules import clips
from wsbench.datamodules.clips import (
    MultiScaleCrop,
    crop_places,
    crop_sizes,
    evaluation_frames,
    read_frames,
    training_frames,
)
from wsbench.datamodules.errors import DatasetError


@pytest.mark.parametrize("segments", [8, 3])
def test_evaluation_frames_for_every_length(segments: int) -> None:
    for frames in range(1, 201):
        expected = np.zeros(segments)
        if frames > segments:
            tick = frames / float(segments)
            expected = np.array([int(tick / 2.0 + tick * x) for x in range(segments)])
        assert evaluation_frames(frames, segments) == (expected + 1).astype(int).tolist()


def test_training_frames_for_every_length() -> None:
    """One frame of each segment of F // 8 frames; all of them are drawn, and none beyond the clip."""
    for frames in range(1, 201):
        part = frames // 8
        seen: list[set[int]] = [set() for _ in range(8)]
        for seed in range(60):
            drawn = training_frames(frames, 8, torch.Generator().manual_seed(seed))
            for i, number in enumerate(drawn):
                assert number == 1 if part == 0 else 1 + i * part <= number < 1 + (i + 1) * part
                seen[i].add(number)
        if 0 < part <= 4:
            assert all(len(s) == part for s in seen)


def published_sizes(image_w: int, image_h: int, side: int, scales: list[float], distort: int) -> list[tuple[int, int]]:
    base = min(image_w, image_h)
    sizes = [int(base * x) for x in scales]
    crop_h = [side if abs(x - side) < 3 else x for x in sizes]
    crop_w = [side if abs(x - side) < 3 else x for x in sizes]
    return [(w, h) for i, h in enumerate(crop_h) for j, w in enumerate(crop_w) if abs(i - j) <= distort]


@pytest.mark.parametrize(("width", "height"), [(176, 100), (100, 100), (132, 240), (300, 226)])
def test_crop_sizes_are_the_published_ones(width: int, height: int) -> None:
    scales = [1, 0.875, 0.75, 0.66]
    expected = [(h, w) for w, h in published_sizes(width, height, 224, scales, 1)]
    assert crop_sizes(height, width, 224, scales) == expected
    assert len(expected) == 10


def test_crop_places_are_the_thirteen() -> None:
    places = crop_places(100, 180, (75, 100))
    down, right = (100 - 75) // 4, (180 - 100) // 4
    assert len(set(places)) == 13
    corners = {(0, 0), (0, 4 * right), (4 * down, 0), (4 * down, 4 * right)}
    assert corners <= set(places)
    assert {(2 * down, 2 * right), (2 * down, 0), (0, 2 * right), (3 * down, right)} <= set(places)


def test_all_frames_get_one_crop_resized_as_torchvision_does() -> None:
    frames = torch.randint(0, 256, (1, 3, 100, 176), dtype=torch.uint8).expand(4, -1, -1, -1)
    transform = MultiScaleCrop(64)
    out = transform(frames, torch.Generator().manual_seed(3))
    assert out.shape == (4, 3, 64, 64)
    assert out.dtype == torch.uint8
    assert all(torch.equal(out[0], frame) for frame in out)
    possible = [
        F.resized_crop(frames[0], *place, *size, [64, 64], antialias=True)
        for size in crop_sizes(100, 176, 64, transform.scales)
        for place in crop_places(100, 176, size)
    ]
    assert any(torch.equal(out[0], p) for p in possible)
    assert len({transform(frames, torch.Generator().manual_seed(s)).sum().item() for s in range(30)}) > 15


def write_clip(folder: Path, frames: int) -> Path:
    folder.mkdir()
    for i in range(1, frames + 1):
        Image.new("RGB", (12, 10), (i * 20, 0, 0)).save(folder / f"{i:05d}.jpg", quality=100)
    return folder


def test_only_the_sampled_frames_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_clip(tmp_path / "7", 10)
    decoded: list[str] = []
    real = clips.read_picture
    monkeypatch.setattr(clips, "read_picture", lambda path: (decoded.append(path.name), real(path))[1])
    out = read_frames(folder, [1, 1, 5, 9])
    assert decoded == ["00001.jpg", "00005.jpg", "00009.jpg"]
    assert out[:, 0, 5, 5].float().tolist() == pytest.approx([20, 20, 100, 180], abs=3)


def test_a_missing_or_broken_frame_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "7", 4)
    with pytest.raises(DatasetError, match=r"7/00005\.jpg' is missing"):
        read_frames(folder, [1, 5])
    (folder / "00002.jpg").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"cannot read '.*7/00002\.jpg'"):
        read_frames(folder, [1, 2])
    Image.new("RGB", (11, 10)).save(folder / "00003.jpg")
    with pytest.raises(DatasetError, match=r"frames in '.*7' have different sizes"):
        read_frames(folder, [1, 3])
