"""ImageNet's folders, and its images against Pillow's."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests import tiny
from wsbench.datamodules import ImageNet
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.pictures import read_picture
from wsbench.datamodules.prepare import imagenet as imagenet_prepare
from wsbench.datamodules.sampling import Draw, seeded


@pytest.fixture
def root(tiny_roots: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(tiny_roots["imagenet"], tmp_path / "data"))


def set_up(root: Path, **changes: object) -> ImageNet:
    data = tiny.data("imagenet", root, **changes)
    data.setup("fit")
    assert isinstance(data, ImageNet)
    return data


def test_layout(root: Path, tmp_path: Path) -> None:
    assert ImageNet.is_present(root)
    data = set_up(root)
    assert (len(data.train_data), len(data.val_data)) == (20, 10)
    assert data.classes == tuple(sorted(p.name for p in (root / "val").iterdir()))
    (tmp_path / "other").mkdir()
    shutil.move(str(root), str(tmp_path / "other" / "ILSVRC2012"))
    assert ImageNet.is_present(tmp_path / "other")
    assert set_up(tmp_path / "other").identity() == data.identity()


def test_a_draw_is_a_pure_function_of_its_seed(root: Path) -> None:
    data = set_up(root)
    state = torch.get_rng_state()
    first, again, other = (data.train_data[Draw(3, s)]["image"] for s in (11, 11, 12))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state()), "the process's own random numbers go on undisturbed"
    assert first.dtype == torch.uint8
    assert first.shape == (3, 32, 32)


def test_pixels_are_close_to_the_usual_order_with_pillow(root: Path) -> None:
    """Decode, crop and antialiased resize on uint8 tensors against Pillow: at most a few grey levels apart."""
    data = set_up(root)
    path = data.train_data.path(0)
    picture = Image.open(path).convert("RGB")
    assert float((read_picture(path).float() - v2.functional.pil_to_tensor(picture).float()).abs().max()) <= 3
    with seeded(5):
        ours = data.train_transform(read_picture(path))
    with seeded(5):
        theirs = v2.functional.pil_to_tensor(data.train_transform(picture))
    assert float((ours.float() - theirs.float()).abs().max()) <= 4


def test_grey_cmyk_and_png_pictures(tmp_path: Path) -> None:
    """ImageNet has all three under the name .JPEG."""
    grey = Image.fromarray(np.full((8, 8), 100, np.uint8))
    for mode, kind in (("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("RGBA", "PNG")):
        buffer = io.BytesIO()
        grey.convert(mode).save(buffer, kind)
        path = tmp_path / f"{mode}.JPEG"
        path.write_bytes(buffer.getvalue())
        out = read_picture(path)
        assert out.shape == (3, 8, 8)
        assert out.float().mean() == pytest.approx(100, abs=4), mode


def test_broken_datasets_are_named(root: Path) -> None:
    victim = next((root / "val").rglob("*.JPEG"))
    with pytest.raises(DatasetError, match=r"--data.num_classes 1000 was given, the data has 10 classes \(n0"):
        set_up(root, num_classes=1000)
    victim.write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(DatasetError, match=rf"cannot read '.*{victim.name}'"):
        [set_up(root).val_data[i] for i in range(10)]
    shutil.rmtree(victim.parent)
    with pytest.raises(
        DatasetError, match=r"train has 10 classes and val 9: 1 are in one only, among them 'n\d+' in train"
    ):
        set_up(root)
    victim.parent.mkdir()
    with pytest.raises(DatasetError, match=victim.parent.name):
        set_up(root)
    shutil.move(str(victim.parent), str(root / "val" / "n99999999"))
    Image.new("RGB", (40, 40)).save(root / "val" / "n99999999" / "x.JPEG")
    with pytest.raises(DatasetError, match=r"2 are in one only, among them 'n0"):
        set_up(root)


def test_options_are_checked(root: Path) -> None:
    for changes, message in (
        ({"scale": (0.0, 1.0)}, "--data.scale"),
        ({"flip": 1.5}, "--data.flip"),
        ({"resize": 16}, "--data.resize 16 is smaller"),
        ({"crop": 0}, "--data.crop must be at least 1"),
    ):
        with pytest.raises(ValueError if "crop" in changes else DatasetError, match=message):
            tiny.data("imagenet", root, **changes)


def test_flat_validation_pictures_are_recognized(root: Path) -> None:
    flat = root / "val"
    for path in list(flat.rglob("*.JPEG")):
        path.rename(flat / path.name)
    for folder in [p for p in flat.iterdir() if p.is_dir()]:
        folder.rmdir()
    with pytest.raises(DatasetError, match=r"val' has no class folders: it is flat.*devkit"):
        set_up(root)
    names = [p.name.split("_")[0] for p in sorted(flat.glob("*.JPEG"))]
    torch.save(({}, names), root / "meta.bin")  # as torchvision writes it from the devkit
    assert imagenet_prepare.build(root) == "sorted val into classes"
    assert len(set_up(root).val_data) == 10
