"""A train and a val for data that has none: a folder in the official layout whose files are links to the user's.

Which samples are held out follows from their names alone, class by class where they lie in class folders. The user's
folder is not touched.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.imagenet import list_split
from wsbench.datamodules.lists import folders_in, is_meant
from wsbench.datamodules.pictures import PICTURES
from wsbench.datamodules.voc import LISTS
from wsbench.records import checksum, write_text_atomically

#: of the samples, held out
SHARE = 0.2
#: what was drawn, in the folder that was made
LIST = "split.csv"
#: the folders that are made
SPLITS = "split-*"
_LIKE_VAL = ("validation", "valid", "test", "dev", "eval")
_OF_MESHES = (".off", ".ply", ".obj", ".stl")


def _drawn(names: Sequence[str], share: float, what: str) -> dict[str, list[str]]:
    """``{"train": names, "val": names}``; DatasetError if one would be empty."""
    count = max(1, round(share * len(names)))
    if count >= len(names):
        raise DatasetError(f"{what} has {len(names)} sample(s); a split into train and val needs at least 2")
    order = sorted(names, key=lambda name: checksum([f"split {name}"]))
    return {"val": sorted(order[:count]), "train": sorted(order[count:])}


def _classes_in(root: Path, suffixes: Sequence[str]) -> dict[str, list[str]]:
    """``{class: files}`` of class folders that hold files themselves."""
    classes = {}
    for folder in folders_in(root):
        files = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in suffixes and is_meant(p) and p.is_file())
        if files:
            classes[folder.name] = files
    return classes


def _of_classes(root: Path, share: float) -> dict[str, dict[str, list[str]]]:
    """Images in class folders: ``{split: {class: files}}``."""
    listing = list_split(root)
    if listing.unused:
        raise DatasetError(
            f"{len(listing.unused)} images in '{root}' would be left out, among them {listing.unused[0]}; convert them "
            f"to one of {', '.join(PICTURES[:5])} ..., lay them into the class folders themselves, or take them out"
        )
    drawn = {name: _drawn(files, share, f"the class '{name}'") for name, files in listing.names.items()}
    return {split: {name: parts[split] for name, parts in drawn.items()} for split in ("train", "val")}


def _folder(out: Path, chosen: Mapping[str, Sequence[str]], source: Path) -> Path:
    """A folder in ``out`` that is called by what it holds."""
    digest = checksum([str(source.resolve()), *(f"{split} {n}" for split, names in chosen.items() for n in names)])
    return out / SPLITS.replace("*", digest[:12])


def _links(links: Mapping[Path, Path]) -> None:
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not link.is_symlink():
                os.symlink(target, link)
        except OSError as error:
            raise DatasetError(
                f"cannot make the link '{link}': {error.strerror}; lay out train and val by hand (`python -m wsbench "
                "data TASK` shows the layout)"
            ) from error


def _write_list(folder: Path, chosen: Mapping[str, Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "sample"])
    writer.writerows([split, name] for split, names in chosen.items() for name in names)
    write_text_atomically(folder / LIST, text.getvalue())  # last: a folder with it is whole


def images_without_val(root: Path) -> Path | None:
    """The folder of ``CLASS/*`` in ``root`` itself or in ``root/train``, beside which there is no val."""
    if (root / "val").exists() or not root.is_dir():
        return None
    source = root / "train" if (root / "train").is_dir() else root
    return source if _classes_in(source, PICTURES) else None


def split_images(root: Path, out: Path, share: float = SHARE) -> Path | None:
    """Of ``root/CLASS/*``, or ``root/train/CLASS/*`` without a val; None if the data is neither."""
    source = images_without_val(root)
    if source is None:
        return None
    other = next((p for p in folders_in(root) if source != root and p.name.lower() in _LIKE_VAL), None)
    if other is not None:
        raise DatasetError(f"'{other}' lies beside '{source}'; if it is what to evaluate on, call it val")
    chosen = _of_classes(source, share)
    flat = {split: [f"{c}/{n}" for c, names in of.items() for n in names] for split, of in chosen.items()}
    folder = _folder(out, flat, source)
    if not (folder / LIST).is_file():
        whole = source.resolve()
        _links({folder / split / name: whole / name for split, names in flat.items() for name in names})
        _write_list(folder, flat)
    return folder


def meshes_in_classes(root: Path) -> dict[str, list[str]]:
    """``{class: files}`` of meshes that lie in class folders themselves, not in their train and test."""
    return _classes_in(root, _OF_MESHES) if root.is_dir() else {}


def split_meshes(root: Path, out: Path, share: float = SHARE) -> Path | None:
    """Of ``root/CLASS/*.off`` (or PLY, OBJ, STL) without train and test; None if the data is something else."""
    classes = meshes_in_classes(root)
    if not classes:
        return None
    drawn = {name: _drawn(files, share, f"the class '{name}'") for name, files in classes.items()}
    flat = {split: [f"{c}/{n}" for c, parts in drawn.items() for n in parts[split]] for split in ("train", "val")}
    folder = _folder(out, flat, root)
    if not (folder / LIST).is_file():
        whole, called = root.resolve(), {"train": "train", "val": "test"}
        _links({
            folder / Path(name).parent / called[split] / Path(name).name: whole / name
            for split, names in flat.items() for name in names
        })  # fmt: skip
        _write_list(folder, flat)
    return folder


def masks_without_lists(root: Path) -> Path | None:
    """The folder of JPEGImages and SegmentationClass, in ``root`` or where VOC's archives have it, without lists."""
    for place in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        whole = (place / "JPEGImages").is_dir() and (place / "SegmentationClass").is_dir()
        if whole and not (place / LISTS).exists():
            return place
    return None


def split_masks(root: Path, out: Path, share: float = SHARE) -> Path | None:
    """Of JPEGImages and SegmentationClass without lists; None if the data is something else."""
    place = masks_without_lists(root)
    if place is None:
        return None
    root, images, masks = place, place / "JPEGImages", place / "SegmentationClass"
    masked = {p.stem for p in masks.iterdir() if is_meant(p)}
    pictures = [p.stem for p in images.iterdir() if p.suffix.lower() in PICTURES and is_meant(p)]
    twice = next((name for name, count in Counter(pictures).items() if count > 1), None)
    if twice is not None:
        raise DatasetError(f"'{images}' has two files called '{twice}', which differ in their suffix only; remove one")
    names = sorted(name for name in pictures if name in masked)
    if not names:
        return None
    chosen = _drawn(names, share, f"'{root}'")
    folder = _folder(out, chosen, root)
    if not (folder / LIST).is_file():
        further = [p for p in (root / "class_names.txt",) if p.is_file()]
        _links({folder / p.name: p.resolve() for p in (images, masks, *further)})
        for split, listed in chosen.items():
            write_text_atomically(folder / LISTS / f"{split}.txt", "".join(f"{name}\n" for name in listed))
        _write_list(folder, chosen)
    return folder
