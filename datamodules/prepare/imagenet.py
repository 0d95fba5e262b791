"""Unpacking ImageNet with torchvision where its archives lie there, and sorting a flat ``val``."""

import pickle
from pathlib import Path

from torchvision.datasets.imagenet import (
    load_meta_file,
    parse_devkit_archive,
    parse_train_archive,
    parse_val_archive,
)

from wsbench.datamodules.errors import DAMAGED, DatasetError
from wsbench.datamodules.lists import inside
from wsbench.datamodules.prepare.base import Asked, Preparation
from wsbench.datamodules.prepare.split import images_without_val, split_images

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def _folder(root: Path) -> Path:
    """``root`` or ``root/ILSVRC2012``, whichever holds train or val."""
    places = (root, root / "ILSVRC2012")
    return next((p for p in places if (p / "train").is_dir() or (p / "val").is_dir()), root)


class ImageNetPreparation(Preparation):
    """Unpacks the official archives."""

    def lacks_val(self, root: Path) -> bool:
        """Whether there are class folders, and no val beside them."""
        return images_without_val(root) is not None

    def split(self, root: Path, out: Path) -> Path | None:
        """Class by class, by the samples' names."""
        return split_images(root, out)

    def build(self, root: Path, asked: Asked) -> str | None:
        """Unpack archives that lie in ``root``, and sort a flat ``val`` into classes."""
        return build(root)


def build(root: Path) -> str | None:
    """Unpack archives that lie in ``root``, and sort a flat ``val`` into classes; says what was done.

    Raises:
        DatasetError: an archive is not what it should be.
    """
    done = []
    try:
        flat = _folder(root) / "val"
        is_flat = flat.is_dir() and any(flat.glob("*.JPEG"))
        if (root / DEVKIT).is_file() and not (root / "meta.bin").is_file():
            parse_devkit_archive(str(root))
            done.append("read the devkit")
        if (root / "ILSVRC2012_img_train.tar").is_file() and not (_folder(root) / "train").is_dir():
            parse_train_archive(str(root))
            done.append("unpacked train")
        if (root / "ILSVRC2012_img_val.tar").is_file() and not flat.is_dir():
            parse_val_archive(str(root), wnids=_wnids(root))
            done.append("unpacked val")
        elif is_flat and (root / "meta.bin").is_file():
            _sort(flat, _wnids(root))
            done.append("sorted val into classes")
    except DatasetError:
        raise
    except RuntimeError as error:
        raise DatasetError(f"an archive in '{root}' cannot be unpacked: {error}") from error
    return ", ".join(done) or None


def _wnids(root: Path) -> list[str]:
    """The class of each image of ``val``, as torchvision wrote them from the devkit."""
    try:
        wnids: list[str] = list(load_meta_file(str(root))[1])
    except (RuntimeError, pickle.UnpicklingError, *DAMAGED) as error:
        raise DatasetError(
            f"'{root / 'meta.bin'}' cannot be read; remove it, and it is made of the devkit again"
        ) from error
    return wnids


def _sort(flat: Path, wnids: list[str]) -> None:
    """Move the images of a flat folder into class folders; the devkit names a class for each, in order."""
    pictures = sorted(flat.glob("*.JPEG"))
    if len(pictures) != len(wnids):
        raise DatasetError(f"'{flat}' holds {len(pictures)} images, the devkit names {len(wnids)}; unpack it again")
    for wnid, picture in zip(wnids, pictures, strict=True):
        place = inside(flat, wnid)
        place.mkdir(exist_ok=True)
        picture.rename(place / picture.name)
