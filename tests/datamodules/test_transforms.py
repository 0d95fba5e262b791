"""The paper's order of operations on Pillow images, against the same pixels computed only where they are kept."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from wsbench.datamodules import transforms
from wsbench.datamodules.transforms import SegmentationTransform, nearest, pad_to, read_mask, resize, resized_crop


def pair(height: int = 20, width: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return picture, torch.randint(0, 21, (height, width), dtype=torch.uint8, generator=generator)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def papers_order(transform: SegmentationTransform, picture: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mirror, resize all of it by Pillow, pad, crop; the image before normalization, with -1 where padded."""
    draw = generator(seed)

    def uniform() -> float:
        return float(torch.rand((), generator=draw, dtype=torch.float64))

    image, labels = F.to_pil_image(picture), Image.fromarray(mask.numpy())
    if uniform() < transform.flip:
        image, labels = F.horizontal_flip(image), F.horizontal_flip(labels)
    low, high = np.log2(transform.scale)
    factor = 2 ** (low + (high - low) * uniform())
    size = [int(round(side * factor)) for side in (image.width, image.height)]  # noqa: RUF046  # as they write it
    image = image.resize(size, Image.Resampling[transform.interpolation.upper()])
    labels = labels.resize(size, Image.Resampling.NEAREST)
    x, y = pad_to(F.pil_to_tensor(image).int(), 1, 1, 0), read_mask(labels)
    x, y = pad_to(x, transform.crop, transform.crop, -1), pad_to(y, transform.crop, transform.crop, 255)
    top = int(uniform() * (x.shape[1] - transform.crop + 1))
    left = int(uniform() * (x.shape[2] - transform.crop + 1))
    place = (..., slice(top, top + transform.crop), slice(left, left + transform.crop))
    return x[place], y[place]


@pytest.mark.parametrize("mode", ["lanczos", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(20, 30), (37, 23), (64, 64)])
@pytest.mark.parametrize("crop", [16, 33, 90])
def test_pixels_are_those_of_the_papers_order(shape: tuple[int, int], crop: int, mode: Any) -> None:
    """On noise, whose overshoots are the worst case; masks and padding are equal, pixels within 2 of 255."""
    transform = SegmentationTransform(crop, (0.5, 2.0), interpolation=mode)
    worst = 0
    for seed in range(15):
        picture, mask = pair(*shape, seed=seed)
        ours, labels, (height, width) = transform(picture, mask, generator(seed))
        expected, expected_labels = papers_order(transform, picture, mask, seed)
        assert ours.shape == (3, crop, crop)
        assert ours.dtype == torch.uint8
        assert torch.equal(labels, expected_labels)
        inside = expected[0] >= 0
        assert inside[:height, :width].all()
        assert int(inside.sum()) == height * width
        worst = max(worst, int((ours.int() - expected)[:, inside].abs().max()))
    assert worst <= 2


def test_the_scaled_size_is_the_authors() -> None:
    """``(int(round(w * random_scale)), int(round(h * random_scale)))`` in DeepLabv3.pytorch @ 046818d, utils.py."""
    transform = SegmentationTransform(513)
    for height, width, factor, expected in (
        (375, 500, 0.5, (188, 250)),  # 187.5: to the even neighbour, as Python rounds
        (333, 500, 0.5, (166, 250)),  # 166.5
        (281, 500, 1.2345, (347, 617)),  # 346.9, 617.25
        (500, 334, 1.9999, (1000, 668)),  # 999.95, 667.97
        (1, 1, 0.3, (1, 1)),  # never nothing
    ):
        assert transform.scaled(height, width, factor) == expected
    assert SegmentationTransform(513, rounding="down").scaled(500, 334, 1.9999) == (999, 667)


@pytest.mark.parametrize("mode", ["lanczos", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(15, 20), (31, 47), (75, 100), (20, 61)])
def test_resized_crop_is_the_crop_of_the_resized(size: tuple[int, int], mode: Any) -> None:
    picture, _ = pair(30, 40)
    whole = resize(picture, *size, mode)
    for top, left, bottom, right in [(0, 0, *size), (3, 5, size[0] - 4, size[1]), (size[0] - 6, 0, size[0], 9)]:
        place = (slice(top, bottom), slice(left, right))
        assert torch.equal(resized_crop(picture, size, place, mode), whole[:, top:bottom, left:right])


def test_without_torchs_lanczos_it_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch 2.8; the largest difference between the two is 2 of 255."""
    picture, _ = pair(60, 80)
    ours = resize(picture, 90, 120, "lanczos")
    monkeypatch.setattr(transforms, "_torch_has_lanczos", lambda: False)
    theirs = resize(picture, 90, 120, "lanczos")
    expected = F.to_pil_image(picture).resize((120, 90), Image.Resampling.LANCZOS)
    assert torch.equal(theirs, F.pil_to_tensor(expected))
    assert int((ours.int() - theirs.int()).abs().max()) <= 2
    place = (slice(7, 40), slice(20, 70))
    assert torch.equal(resized_crop(picture, (90, 120), place, "lanczos"), theirs[:, 7:40, 20:70])


def test_nearest_is_pillows_for_every_size() -> None:
    """Also where a source lies exactly between two pixels."""
    for before in (*range(1, 40), 255):
        mask = torch.arange(before, dtype=torch.uint8).expand(3, -1).contiguous()
        for after in (*range(1, 90), 510, 513):
            expected = read_mask(Image.fromarray(mask.numpy()).resize((after, 3), Image.Resampling.NEAREST))
            assert torch.equal(nearest(mask, (3, after), (slice(0, 3), slice(0, after))), expected), (before, after)
            expected = read_mask(Image.fromarray(mask.T.numpy()).resize((3, after), Image.Resampling.NEAREST))
            assert torch.equal(nearest(mask.T, (after, 3), (slice(0, after), slice(0, 3))), expected)


def test_flip_mirrors_both() -> None:
    picture, mask = pair(16, 16)
    flipped, labels, _ = SegmentationTransform(16, (1.0, 1.0), flip=1.0)(picture, mask, generator())
    assert torch.equal(flipped, picture.flip(-1))
    assert torch.equal(labels, mask.flip(-1))


def test_crop_is_the_same_place_in_both() -> None:
    mask = torch.arange(400).view(20, 20).to(torch.uint8)
    places = set()
    for seed in range(20):
        picture, labels, _ = SegmentationTransform(8, (1.0, 1.0), flip=0.0)(
            mask.expand(3, 20, 20), mask, generator(seed)
        )
        assert torch.equal(picture[0], labels)
        places.add(int(labels[0, 0]))
    assert len(places) > 10


def test_scale_is_log_uniform() -> None:
    picture, mask = pair(64, 64)
    transform = SegmentationTransform(140, (0.5, 2.0), flip=0.0)
    sides = [int((transform(picture, mask, generator(s))[1][0] != 255).sum()) for s in range(300)]
    octaves = np.log2(np.asarray(sides) / 64)
    assert octaves.min() < -0.9
    assert octaves.max() > 0.9
    assert abs(octaves.mean()) < 0.1, "uniform in the exponent: as much below 1 as above"


def test_pure_function_of_the_seed() -> None:
    picture, mask = pair()
    transform = SegmentationTransform(16)
    a, b = transform(picture, mask, generator(3)), transform(picture, mask, generator(3))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], transform(picture, mask, generator(4))[0])


def test_pad_to_leaves_larger_ones() -> None:
    assert pad_to(torch.zeros(3, 50, 20), 40, 40, 1).shape == (3, 50, 40)
