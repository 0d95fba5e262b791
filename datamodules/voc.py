"""PASCAL VOC 2012 segmentation: ``VOCdevkit/VOC2012`` as it is unpacked, or any dataset in that layout."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from wsbench.datamodules.base import BenchmarkData, Split
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import inside, is_meant, lines_of, names_of, refuse_repeated
from wsbench.datamodules.masks import Mask, look_at_masks, palette_of
from wsbench.datamodules.mini import voc as mini
from wsbench.datamodules.palette import VOID, voc_palette
from wsbench.datamodules.pictures import PICTURES, collate_one
from wsbench.datamodules.segmentation import SegmentationDataset, collate, read_padded
from wsbench.datamodules.transforms import Interpolation, Rounding, SegmentationTransform
from wsbench.records import checksum, sha256_of

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COUNTS = {"train": 1464, "val": 1449, "trainaug": 10582}
LAYOUT = """\
ROOT/VOCdevkit/VOC2012/ (or ROOT/VOC2012/, or ROOT itself)
    JPEGImages/NAME.jpg ...               images, also PNG; VOC 2012: 17,125
    SegmentationClass/NAME.png ...        masks: palette or 8-bit grey PNG of class numbers, 255 void; VOC 2012: 2,913
    ImageSets/Segmentation/train.txt      a NAME a line, or two paths: /JPEGImages/NAME.jpg /SegmentationClass/NAME.png
    ImageSets/Segmentation/val.txt
    class_names.txt                       optional, a name a line in the order of the numbers
and, for the paper's trainaug, which `python -m wsbench data voc` builds from SBD's release:
    SegmentationClassAug/, ImageSets/Segmentation/trainaug.txt"""
LISTS = Path("ImageSets") / "Segmentation"
MASK_SOURCE = "source.txt"
DATA_COMMAND = "python -m wsbench data voc"
_OFFICIAL_NAME = re.compile(r"20\d\d_\d{6}\Z")


def place(root: Path) -> Path | None:
    """The devkit below ``root``: the folder with JPEGImages and lists of segmentation."""
    places = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    return next((p for p in places if (p / LISTS).is_dir() and (p / "JPEGImages").is_dir()), None)


@dataclass(frozen=True)
class Listed:
    """A line of a list: the sample's name, and its files relative to the devkit if the line says them."""

    name: str
    image: str | None = None
    mask: str | None = None


def list_file(devkit: Path, split: str) -> Path:
    """The file of a list: ``ImageSets/Segmentation/<split>.txt``, or ``split`` itself if it is a file's path."""
    if split.endswith(".txt"):
        return Path(split).expanduser()
    return devkit / LISTS / f"{split}.txt"


def read_list(devkit: Path, split: str) -> list[Listed]:
    """The samples of a list.

    Raises:
        DatasetError: the list is missing or empty, names a sample twice, or a line is neither a name nor two paths.
    """
    path = list_file(devkit, split)
    if not path.is_file():
        available = ", ".join(sorted(p.stem for p in (devkit / LISTS).glob("*.txt") if is_meant(p))) or "none"
        how = f"`{DATA_COMMAND}` builds it where SBD lies, or choose" if split == "trainaug" else "choose"
        raise DatasetError(f"'{path}' is missing; {how} another list by --data.train_set and --data.val_set (there "
                           f"are: {available})")  # fmt: skip
    listed = []
    for line in names_of(path):
        columns = line.split()
        if len(columns) == 2 and Path(columns[0]).suffix.lower() in PICTURES:
            image, mask = (column.lstrip("/") for column in columns)
            listed.append(Listed(Path(image).stem, image, mask))
        elif (devkit / "JPEGImages" / line).suffix.lower() in PICTURES:
            listed.append(Listed(Path(line).stem, f"JPEGImages/{line.lstrip('/').removeprefix('JPEGImages/')}"))
        else:
            listed.append(Listed(line))
    refuse_repeated([one.name if one.image is None else one.image for one in listed], path)
    return listed


def source_lines(devkit: Path) -> list[str]:
    """What trainaug is built from: names and SHA-256 of VOC's lists."""
    return [f"{split}.txt {sha256_of(devkit / LISTS / f'{split}.txt')}" for split in ("train", "val")]


def mask_source(folder: Path) -> str | None:
    """Whose masks VOC's own training images have in SegmentationClassAug, ``voc`` or ``sbd``; None if nobody says.

    Raises:
        DatasetError: VOC's lists have changed since it was built, so that it could hold images to evaluate on.
    """
    source = folder / MASK_SOURCE
    if not source.is_file():
        return None
    who, *lists = lines_of(source) or [""]
    if who not in ("voc", "sbd"):
        raise DatasetError(f"'{source}' says '{who}', expected voc or sbd; build trainaug again: `{DATA_COMMAND} "
                           f"--root {folder.parents[2]} --rebuild`")  # fmt: skip
    if lists and lists != source_lines(folder.parent):
        raise DatasetError(
            f"'{folder}' was built from other train.txt and val.txt than those in '{folder.parent / LISTS}'; build it "
            f"again: `{DATA_COMMAND} --root {folder.parents[2]} --rebuild`"
        )
    return who


class VOC(BenchmarkData):
    """PASCAL VOC 2012 segmentation, or a dataset in its layout, or its miniature.

    Args:
        train_set: ``trainaug``, the 10,582 images built by `python -m wsbench data voc`, or another list in
            ``ImageSets/Segmentation``, or the path of a .txt file.
        val_set: the list to evaluate on, likewise.
        train_labels: folder of the training masks; ``auto`` is SegmentationClassAug for ``trainaug``, else
            SegmentationClass. Evaluation uses SegmentationClass. A list of two columns names its masks itself.
        class_names: names of the classes in the order of their numbers, or a file of them, a name a line; default:
            ``class_names.txt`` of the dataset, VOC's own, or the numbers.
        crop: side of the training crop in pixels, and what smaller evaluation images are padded to.
        scale: range of the random scale.
        rounding: of the scaled size in pixels; ``nearest`` is the authors', ``down`` what wsbench's first records had.
        flip: probability of the mirror.
        interpolation: for scaling images.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds ``VOCdevkit/VOC2012``, or is it.
            ``eval_batch`` above 1 pads images to the largest of their batch, and GN, LN, IN and SN see the padding: for
            images larger than ``crop`` metrics depend on it.
    """

    task = "voc"
    title = "A segmentation dataset (PASCAL VOC 2012, or one in its layout)"
    layout, looked_for = LAYOUT, "VOCdevkit/VOC2012/ with JPEGImages/ and ImageSets/Segmentation/, or these themselves"
    mini: ClassVar[ModuleType] = mini
    collate = staticmethod(collate)
    collate_prediction = staticmethod(collate_one)

    def __init__(
        self,
        train_set: str = "trainaug",
        val_set: str = "val",
        train_labels: Literal["auto", "SegmentationClass", "SegmentationClassAug"] = "auto",
        class_names: list[str] | str | None = None,
        crop: int = 513,
        scale: tuple[float, float] = (0.5, 2.0),
        rounding: Rounding = "nearest",
        flip: float = 0.5,
        interpolation: Interpolation = "lanczos",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.require_positive(crop=crop)
        self.require_range(scale=scale)
        self.require_probability(flip=flip)
        self.train_set, self.val_set, self.train_labels, self.crop = train_set, val_set, train_labels, crop
        self.class_names = class_names
        self.transform = SegmentationTransform(crop, scale, flip, interpolation, rounding)
        #: colours of the classes, 256 x RGB: of the masks' palette
        self.palette: list[int] = voc_palette()
        self._listed: dict[str, list[Listed]] = {}
        self._masks: dict[str, list[Mask]] = {}

    @staticmethod
    def place(root: Path) -> Path | None:
        """The devkit below ``root``; DatasetError if half of it is there."""
        folder = place(root)
        for devkit in () if folder else (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
            parts = (devkit / "JPEGImages", devkit / LISTS)
            missing = [part for part in parts if not part.is_dir()]
            if len(missing) == 1:
                raise DatasetError(f"'{missing[0]}' is missing, or is no folder; the layout is\n{LAYOUT}")
        return folder

    def read(self, train: bool) -> None:
        """Read the lists, find every file, look into the masks."""
        devkit = self.folder()
        parts = {"val": (self.val_set, "SegmentationClass")}
        if train:
            auto = "SegmentationClassAug" if self.train_set == "trainaug" else "SegmentationClass"
            parts["train"] = (self.train_set, auto if self.train_labels == "auto" else self.train_labels)
        files: dict[str, tuple[list[Path], list[Path]]] = {}
        for split, (name, labels) in parts.items():
            self._listed[split] = read_list(devkit, name)
            files[split] = self._files(devkit, split, labels)
            self._masks[split] = look_at_masks(files[split][1])
        self._name_classes(devkit, files)
        if train:
            self.palette = palette_of(files["train"][1][0]) or voc_palette()
            self.train_data = self._dataset(files["train"], transform=self.transform)
            self.doubt_shared(*([str(p.relative_to(devkit)) for p in files[split][0]] for split in ("train", "val")))
        self.val_data = self._dataset(files["val"], pad=self.crop)

    def _files(self, devkit: Path, split: str, labels: str) -> tuple[list[Path], list[Path]]:
        """The images and masks of a split; DatasetError names some that are missing."""
        listed = self._listed[split]
        if split == "train" and self.train_labels != "auto" and any(one.mask for one in listed):
            raise DatasetError(f"the list '{self.train_set}' names its masks itself; leave --data.train_labels out")
        source = list_file(devkit, self.train_set if split == "train" else self.val_set)
        by_stem: dict[str, list[str]] = {}
        if any(one.image is None for one in listed):
            for path in sorted((devkit / "JPEGImages").iterdir()):
                if path.suffix.lower() in PICTURES and is_meant(path):
                    by_stem.setdefault(path.stem, []).append(path.name)
        images, masks = [], []
        for one in listed:
            names = by_stem.get(one.name, [f"{one.name}.jpg"])
            if one.image is None and len(names) > 1:
                raise DatasetError(f"'{source}' names '{one.name}', which may be {' or '.join(names)} in "
                                   f"'{devkit / 'JPEGImages'}'; remove one, or list paths")  # fmt: skip
            images.append(inside(devkit, f"JPEGImages/{names[0]}" if one.image is None else one.image, source))
            masks.append(inside(devkit, one.mask or f"{labels}/{one.name}.png", source))
        missing = [p for p in (*images, *masks) if not p.is_file()]
        if missing:
            some = ", ".join(f"'{p}'" for p in missing[:3])
            raise DatasetError(f"{len(missing)} files of '{split}' are missing, among them {some}; lay them there, or "
                               f"take them off '{source}'")  # fmt: skip
        return images, masks

    def _name_classes(self, devkit: Path, files: dict[str, tuple[list[Path], list[Path]]]) -> None:
        """Take the classes' names, and refuse masks that have others."""
        for split, masks in self._masks.items():
            lowest, highest = min(mask.lowest for mask in masks), max(mask.highest for mask in masks)
            if lowest >= highest:
                only = f"class {highest} only" if highest >= 0 else f"nothing but {VOID}, void"
                raise DatasetError(f"all {len(masks)} masks of '{split}' hold {only} (the first is "
                                   f"'{files[split][1][0]}'); there is nothing to learn")  # fmt: skip
        highest = max(mask.highest for masks in self._masks.values() for mask in masks)
        names = self._given_names(devkit)
        if names is None:
            official = all(_OFFICIAL_NAME.match(one.name) for listed in self._listed.values() for one in listed)
            if self.miniature:
                names = list(mini.CLASSES)
            elif official and highest < len(CLASSES) and self.given_classes in (None, len(CLASSES)):
                names = list(CLASSES)
            else:
                names = [str(number) for number in range(self.given_classes or highest + 1)]
        for split, masks in self._masks.items():
            for mask, path in zip(masks, files[split][1], strict=True):
                if mask.highest >= len(names):
                    raise DatasetError(
                        f"'{path}' holds class number {mask.highest}, expected 0 to {len(names) - 1} and 255 for void; "
                        "set --data.num_classes or --data.class_names, or correct the mask"
                    )
        self.take_classes(names)

    def _given_names(self, devkit: Path) -> list[str] | None:
        if isinstance(self.class_names, list):
            return self.class_names
        if self.class_names is not None:
            return names_of(Path(self.class_names).expanduser(), "names of classes")
        own = devkit / "class_names.txt"
        return names_of(own, "names of classes") if own.is_file() else None

    def _dataset(self, files: tuple[Sequence[Path], Sequence[Path]], **kwargs: Any) -> SegmentationDataset:
        return SegmentationDataset(*files, len(self.classes), **kwargs)

    @property
    def shown_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Not turned as a camera says: as it is evaluated."""
        return "image", partial(read_padded, side=self.crop, upright=False)

    @property
    def prediction_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Images of any size."""
        return "image", partial(read_padded, side=self.crop)

    def part(self, indices: Sequence[int], train: bool) -> SegmentationDataset:
        """Some samples of the training list."""
        chosen: SegmentationDataset = copy.copy(self.train_data)
        chosen.images, chosen.masks = ([paths[i] for i in indices] for paths in (chosen.images, chosen.masks))
        if not train:
            chosen.transform, chosen.pad = None, self.crop
        return chosen

    def describe(self) -> dict[str, Split]:
        """Samples are the names of the lists; labels are the bytes of the masks; and whose masks trainaug has."""
        splits = {}
        for split, listed in self._listed.items():
            name = self.train_set + self._mask_source() if split == "train" else self.val_set
            labels = checksum(mask.sha256 for mask in self._masks[split])
            names = [one.name if one.image is None else f"{one.image} {one.mask or ''}".strip() for one in listed]
            splits[split] = Split(Path(name).name if "/" in name else name, names, labels)
        return {name: splits[name] for name in ("train", "val") if name in splits}

    @property
    def official(self) -> str:
        """VOC 2012."""
        return "voc2012"

    @property
    def resembles_official(self) -> bool:
        """VOC's 21 classes, and images of its names."""
        return self.classes == CLASSES and all(_OFFICIAL_NAME.match(one.name) for one in self._listed["val"])

    @property
    def official_counts(self) -> dict[str, int]:
        """1,449 to evaluate on, and of the training list as many as that has officially."""
        return {"train": COUNTS.get(self.train_set, len(self.train_data or ())), "val": COUNTS["val"]}

    def remedy(self, split: str) -> str:
        """VOC's archive."""
        return "unpack VOCtrainval_11-May-2012.tar again"

    def _mask_source(self) -> str:
        """As the builder of SegmentationClassAug left it there."""
        source = mask_source(self.train_data.masks[0].parent)
        return f", {source} masks" if source else ""
