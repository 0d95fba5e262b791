"""ImageNet classification: ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG``, or any dataset in class folders."""

import copy
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from wsbench.datamodules.base import BenchmarkData, Split
from wsbench.datamodules.cache import keep, read_kept
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import folders_in, is_meant
from wsbench.datamodules.mini import imagenet as mini
from wsbench.datamodules.pictures import PICTURES, UNREAD, collate_one, read_picture
from wsbench.datamodules.sampling import Draw, seeded

COUNTS = {"train": 1_281_167, "val": 50_000}
_SYNSET = re.compile(r"n\d{8}\Z")
LAYOUT = """\
ROOT/ (or ROOT/ILSVRC2012/)
    train/CLASS/*.JPEG ...       a folder for each class, whatever it is called; ImageNet: 1,281,167 in 1,000 folders
    val/CLASS/*.JPEG ...         the same classes; ImageNet: 50,000 in 1,000 folders
(JPEG, PNG, BMP, WebP, TIFF and PPM, in upper or lower case; hidden files and folders are passed over)
or, for ImageNet's own archives, which `python -m wsbench data imagenet` unpacks and sorts:
    ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar"""


def splits_in(root: Path) -> Path | None:
    """``root`` or ``root/ILSVRC2012``, whichever holds train and val; DatasetError if it holds one of them."""
    places = (root, root / "ILSVRC2012")
    splits = {p: [split for split in ("train", "val") if (p / split).is_dir()] for p in places}
    complete = next((p for p in places if len(splits[p]) == 2), None)
    half = next((p for p in places if splits[p]), None)
    if complete is None and half is not None:
        other = "val" if splits[half] == ["train"] else "train"
        raise DatasetError(f"'{half / splits[half][0]}' is there and '{half / other}' is not, or is no folder; lay the "
                           f"images of '{other}' there, in a folder for each class")  # fmt: skip
    return complete


@dataclass(frozen=True)
class Listing:
    """The images of a split, class by class: of each class folder the file names, sorted, and their sizes in bytes.

    ``unused`` names what looks like an image and is none, or lies where no image is looked for.
    """

    folder: Path
    names: dict[str, list[str]]
    sizes: dict[str, list[int]]
    unused: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names of the class folders, alphabetically."""
        return list(self.names)


def _below(folder: Path) -> list[Path]:
    """The images in a class folder's own folders, where none is looked for."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and is_meant(p))


def _list_class(place: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Names and sizes of a class folder's images, sorted, and what is not used there, with the reason."""
    images, unused = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.lower().endswith(PICTURES) and not entry.name.startswith("."):
                try:
                    if entry.is_file():
                        images.append((entry.name, entry.stat().st_size))
                        continue
                    kind = "a folder" if entry.is_dir() else "a link to nothing"
                except OSError as error:
                    kind = str(error.strerror)
                unused.append(f"{place.name}/{entry.name} ({kind})")
            elif is_meant(Path(entry.name)) and entry.name.lower().endswith(UNREAD):
                unused.append(f"{place.name}/{entry.name} (such files are not read)")
            elif is_meant(Path(entry.name)) and entry.is_dir():
                below = _below(place / entry.name)
                unused += [f"{p.relative_to(place.parent)} (in a folder of its own)" for p in below]
    return sorted(images), sorted(unused)


def list_split(folder: Path) -> Listing:
    """List a split; class folders that did not change since the last time are not read again.

    Raises:
        DatasetError: there is no class folder, or one has no images.
    """
    kept = read_kept("imagenet", folder)
    names: dict[str, list[str]] = {}
    sizes: dict[str, list[int]] = {}
    unused = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES and is_meant(p) and p.is_file())
    unused = [f"{name} (in no class folder)" for name in unused]
    changed = False
    stamps = {}
    for place in folders_in(folder):
        stamps[place.name] = place.stat().st_mtime_ns
        entry = kept.get(place.name)
        if entry is None or entry["changed"] != stamps[place.name]:
            changed = True
            images, left = _list_class(place)
            unused += left
            if left:  # a link may be mended without a change of this folder
                stamps[place.name] = -1
            entry = {"names": [n for n, _ in images], "sizes": [s for _, s in images]}
        names[place.name], sizes[place.name] = entry["names"], entry["sizes"]
    if not names:
        raise _flat(folder)
    empty = [name for name, images in names.items() if not images]
    if empty:
        unlisted = next((one for one in unused if one.partition("/")[0] in empty), None)
        raise DatasetError(
            f"{len(empty)} class folders in '{folder}' have no images ({', '.join(empty[:3])}"
            f"{f'; there is {unlisted}' if unlisted else ''}); fill or remove them (images "
            f"end in {', '.join(PICTURES)})"
        )
    if changed or set(kept) != set(names):
        entries = {n: {"changed": stamps[n], "names": names[n], "sizes": sizes[n]} for n in names}
        keep("imagenet", folder, entries)
    return Listing(folder, names, sizes, unused)


def _flat(folder: Path) -> DatasetError:
    """The error of a split without class folders."""
    flat = next((p for p in sorted(folder.iterdir()) if p.suffix.lower() in PICTURES), None)
    hint = ": it is flat" if flat is not None else ""
    text = (
        f"'{folder}' has no class folders{hint}. Sort its images into a folder for each class, as "
        f"'{folder}/CLASS/{flat.name if flat else 'IMAGE.jpg'}'"
    )
    if folder.name == "val":
        text += (
            f"; for ImageNet lay ILSVRC2012_devkit_t12.tar.gz into '{folder.parent}' and run `python -m wsbench data "
            f"imagenet --root {folder.parent}`, which does it"
        )
    return DatasetError(text)


class FolderDataset(Dataset[dict[str, Any]]):
    """Images of a split with the number of their class.

    Args:
        listing: of the split.
        transform: of an image uint8 (3, H, W); a Draw seeds it.
    """

    def __init__(self, listing: Listing, transform: Callable[[Tensor], Tensor]) -> None:
        self.folder, self.classes, self.transform = listing.folder, listing.classes, transform
        self._names = np.array([name.encode("utf-8", "surrogateescape") for c in listing.classes
                                for name in listing.names[c]], dtype=object)  # fmt: skip
        counts = [len(listing.names[c]) for c in listing.classes]
        self._labels = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return len(self._names)

    def take(self, indices: Sequence[int]) -> None:
        """Keep these samples only."""
        self._names, self._labels = self._names[list(indices)], self._labels[list(indices)]

    def path(self, index: int) -> Path:
        """The file of a sample."""
        name: str = self._names[index].decode("utf-8", "surrogateescape")
        return self.folder / self.classes[int(self._labels[index])] / name

    def check(self, index: int) -> None:
        """Read an image; DatasetError if it cannot be."""
        read_picture(self.path(index))

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """``image`` uint8 (3, H, W) and ``label``."""
        index = draw.index if isinstance(draw, Draw) else draw
        with seeded(draw.seed) if isinstance(draw, Draw) else nullcontext():
            return {"image": self.transform(read_picture(self.path(index))), "label": int(self._labels[index])}


class ImageNet(BenchmarkData):
    """ImageNet (ILSVRC 2012), or a dataset in class folders, or its miniature.

    Images stay uint8; the task normalizes them on the device. Classes are the folders' names in alphabetical order,
    which is the order of the published checkpoints.

    Args:
        crop: side of the images.
        resize: shorter side that an image to evaluate is resized to before its centre is cut out.
        scale: range of the area of the random crop, relative to the image.
        flip: probability of the mirror.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds train and val, or ILSVRC2012.
    """

    task = "imagenet"
    title = "An image classification dataset (ImageNet, ILSVRC 2012, or class folders)"
    layout, looked_for = LAYOUT, "train/ and val/ with a folder for each class, or ILSVRC2012/ with them"
    mini: ClassVar[ModuleType] = mini
    collate_prediction = staticmethod(collate_one)

    def __init__(
        self,
        crop: int = 224,
        resize: int = 256,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.require_positive(crop=crop, resize=resize)
        self.require_range(scale=scale)
        self.require_probability(flip=flip)
        self.require_room(resize, crop)
        self.crop = crop
        self.train_transform = v2.Compose(
            [v2.RandomResizedCrop(crop, scale, antialias=True), v2.RandomHorizontalFlip(flip)]
        )
        self.val_transform = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(crop)])
        self._listings: dict[str, Listing] = {}

    @staticmethod
    def place(root: Path) -> Path | None:
        """``root`` or ``root/ILSVRC2012``, with class folders in both train and val."""
        folder = splits_in(root)
        if folder is None:
            return None
        without = [split for split in ("train", "val") if not folders_in(folder / split)]
        if without and len(without) == 2 and not any((folder / split).iterdir() for split in without):
            return None
        if without:
            raise _flat(folder / without[0])
        return folder

    def read(self, train: bool) -> None:
        """List the images of the splits that are needed, once."""
        folder = self.folder()
        for split in ("train", "val") if train else ("val",):
            if split not in self._listings:
                listing = self._listings[split] = list_split(folder / split)
                whole = sum(map(len, listing.names.values())) + len(listing.unused)
                self.check_dropped(split, [f"{split}/{name}" for name in listing.unused], whole, "are not used")
        self.take_classes(self._listings["val"].classes)
        if train:
            ours = self._listings["train"].classes
            differ = sorted(set(ours) ^ set(self.classes))
            if differ:
                one = "train" if differ[0] in ours else "val"
                raise DatasetError(
                    f"train has {len(ours)} classes and val {len(self.classes)}: "
                    f"{len(differ)} are in one only, among them '{differ[0]}' in {one}"
                )
            if (folder / "train").samefile(folder / "val"):
                self.doubt_leak(f"'{folder / 'train'}' and '{folder / 'val'}' are one folder")
            self.train_data = FolderDataset(self._listings["train"], self.train_transform)
        self.val_data = FolderDataset(self._listings["val"], self.val_transform)

    @property
    def shown_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Not turned as a camera says: as it is evaluated."""
        return "image", partial(self._read, upright=False)

    @property
    def prediction_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Images of any size."""
        return "image", self._read

    def _read(self, path: Path, upright: bool = True) -> Tensor:
        image: Tensor = self.val_transform(read_picture(path, upright))
        return image

    def part(self, indices: Sequence[int], train: bool) -> FolderDataset:
        """Some samples of the training list."""
        chosen: FolderDataset = copy.copy(self.train_data)
        chosen.take(indices)
        if not train:
            chosen.transform = self.val_transform
        return chosen

    def describe(self) -> dict[str, Split]:
        """Samples are relative paths; labels are the classes, which the paths hold, and the files' sizes."""
        splits = {}
        for split, listing in self._listings.items():
            names = [f"{c}/{name}" for c in listing.classes for name in listing.names[c]]
            sizes = hashlib.sha256()
            for c in () if self.miniature else listing.classes:  # its files are as long as the encoder makes them
                sizes.update(np.array(listing.sizes[c], dtype="<i8").tobytes())
            splits[split] = Split(split, names, sizes.hexdigest(), listing.unused)
        return splits

    @property
    def official(self) -> str:
        """ImageNet's 1,000 classes."""
        return "imagenet1k"

    @property
    def resembles_official(self) -> bool:
        """1,000 folders that are called as WordNet's synsets."""
        return len(self.classes) == 1000 and all(map(_SYNSET.match, self.classes))

    @property
    def official_counts(self) -> dict[str, int]:
        """1,281,167 and 50,000."""
        return COUNTS

    def remedy(self, split: str) -> str:
        """Which archive to unpack again."""
        return f"unpack ILSVRC2012_img_{split}.tar again"
