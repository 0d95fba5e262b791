"""The paper's order of operations, on pictures whose pixels can be told apart."""

import numpy as np
import pytest
import torch
from PIL import Image

from wsbench.datamodules.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SegmentationTransform,
    mask_tensor,
    pad_to,
    to_normalized_tensor,
)


def pair(height: int = 20, width: int = 30) -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return image, Image.fromarray(rng.integers(0, 21, (height, width), dtype=np.uint8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalization() -> None:
    image, _ = pair()
    expected = (np.asarray(image) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(to_normalized_tensor(image).permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_padding_is_mean_colour_and_void_at_right_and_bottom() -> None:
    image, mask = pair()
    picture, labels = SegmentationTransform(40, (1.0, 1.0), flip=0.0)(image, mask, generator())
    torch.testing.assert_close(picture[:, :20, :30], to_normalized_tensor(image))
    assert torch.equal(labels[:20, :30], mask_tensor(mask))
    assert not picture[:, 20:].any()
    assert not picture[:, :, 30:].any()
    assert (labels[20:] == 255).all()
    assert (labels[:, 30:] == 255).all()


def test_flip_mirrors_both() -> None:
    image, mask = pair(16, 16)
    picture, labels = SegmentationTransform(16, (1.0, 1.0), flip=1.0)(image, mask, generator())
    torch.testing.assert_close(picture, to_normalized_tensor(image).flip(-1))
    assert torch.equal(labels, mask_tensor(mask).flip(-1))


def test_crop_is_the_same_place_in_both() -> None:
    image = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).convert("RGB")
    mask = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
    places = set()
    for seed in range(20):
        picture, labels = SegmentationTransform(8, (1.0, 1.0), flip=0.0)(image, mask, generator(seed))
        values = (picture[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
        assert torch.equal(values.round().to(torch.uint8), labels)
        places.add(int(labels[0, 0]))
    assert len(places) > 10


@pytest.mark.parametrize(
    ("mode", "resample"), [("lanczos", Image.Resampling.LANCZOS), ("bilinear", Image.Resampling.BILINEAR)]
)
def test_scale_is_pillows_and_the_mask_nearest(mode: str, resample: Image.Resampling) -> None:
    image, mask = pair()
    transform = SegmentationTransform(64, (2.0, 2.0), flip=0.0, interpolation=mode)  # type: ignore[arg-type]
    picture, labels = transform(image, mask, generator())
    torch.testing.assert_close(picture[:, :40, :60], to_normalized_tensor(image.resize((60, 40), resample)))
    assert torch.equal(labels[:40, :60], mask_tensor(mask.resize((60, 40), Image.Resampling.NEAREST)))


def test_scale_is_log_uniform() -> None:
    image, mask = pair(64, 64)
    transform = SegmentationTransform(140, (0.5, 2.0), flip=0.0)
    sides = [int((transform(image, mask, generator(s))[1][0] != 255).sum()) for s in range(300)]
    octaves = np.log2(np.asarray(sides) / 64)
    assert octaves.min() < -0.9
    assert octaves.max() > 0.9
    assert abs(octaves.mean()) < 0.1, "uniform in the exponent: as much below 1 as above"


def test_pure_function_of_the_seed() -> None:
    image, mask = pair()
    transform = SegmentationTransform(16)
    a, b = transform(image, mask, generator(3)), transform(image, mask, generator(3))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], transform(image, mask, generator(4))[0])


def test_pad_to_leaves_larger_ones() -> None:
    assert pad_to(torch.zeros(3, 50, 20), 40, 40, 1.0).shape == (3, 50, 40)
