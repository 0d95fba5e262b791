"""Verifying ImageNet, and unpacking it with torchvision where its archives lie there."""

from pathlib import Path

from torchvision.datasets.imagenet import (
    load_meta_file,
    parse_devkit_archive,
    parse_train_archive,
    parse_val_archive,
)

from wsbench.datamodules.checks import Finding, count, readable
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.imagenet import COUNTS, folder
from wsbench.datamodules.pictures import read_picture

LAYOUT = """\
ROOT/ (or ROOT/ILSVRC2012/)
    train/n01440764/n01440764_10026.JPEG ...   1,281,167 pictures in 1,000 folders
    val/n01440764/ILSVRC2012_val_00000293.JPEG ...  50,000 pictures in 1,000 folders
or, for this command to unpack and sort (torchvision checks their MD5 sums):
    ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar"""
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def build(root: Path) -> str | None:
    """Unpack archives that lie in ``root``, and sort a flat ``val`` into classes; says what was done.

    Raises:
        DatasetError: an archive is not what it should be.
    """
    done = []
    try:
        flat = folder(root) / "val"
        is_flat = flat.is_dir() and any(flat.glob("*.JPEG"))
        if (root / DEVKIT).is_file() and not (root / "meta.bin").is_file():
            parse_devkit_archive(str(root))
            done.append("read the devkit")
        if (root / "ILSVRC2012_img_train.tar").is_file() and not (folder(root) / "train").is_dir():
            parse_train_archive(str(root))
            done.append("unpacked train")
        if (root / "ILSVRC2012_img_val.tar").is_file() and not flat.is_dir():
            parse_val_archive(str(root))
            done.append("unpacked val")
        elif is_flat and (root / "meta.bin").is_file():
            _sort(flat, load_meta_file(str(root))[1])
            done.append("sorted val into classes")
    except RuntimeError as error:
        raise DatasetError(f"an archive in '{root}' cannot be unpacked: {error}") from error
    return ", ".join(done) or None


def _sort(flat: Path, wnids: list[str]) -> None:
    """Move the pictures of a flat folder into class folders; the devkit names a class for each, in order."""
    pictures = sorted(flat.glob("*.JPEG"))
    if len(pictures) != len(wnids):
        raise DatasetError(f"'{flat}' holds {len(pictures)} pictures, the devkit names {len(wnids)}; unpack it again")
    for wnid, picture in zip(wnids, pictures, strict=True):
        (flat / wnid).mkdir(exist_ok=True)
        picture.rename(flat / wnid / picture.name)


def verify(root: Path) -> list[Finding]:
    """Class folders, numbers of pictures, and whether some of them can be read."""
    findings = []
    for split, expected in COUNTS.items():
        place = folder(root) / split
        if not place.is_dir():
            hint = f"unpack ILSVRC2012_img_{split}.tar into '{place}', or lay it and {DEVKIT} into '{root}'"
            findings.append(Finding(split, "a folder", "missing", False, hint))
            continue
        classes = sorted(p for p in place.iterdir() if p.is_dir())
        if split == "val" and not classes:
            hint = f"val is flat: lay {DEVKIT} into '{root}' and run this command again, it sorts val into classes"
            findings.append(Finding("val: classes", "1,000 folders", "a flat folder", False, hint))
            continue
        again = f"unpack ILSVRC2012_img_{split}.tar again"
        findings.append(count(f"{split}: classes", 1000, len(classes), again, "folders"))
        empty = [c.name for c in classes if not any(c.iterdir())]
        if empty:
            findings.append(Finding(f"{split}: empty classes", "none", ", ".join(empty[:3]), False, again))
        pictures = [p for c in classes for p in sorted(c.iterdir())]
        findings.append(count(f"{split}: pictures", expected, len(pictures), again))
        findings.append(readable(f"{split}: readable", pictures, read_picture, again))
    return findings
