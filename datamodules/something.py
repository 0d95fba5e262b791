"""Something-Something V1: folders of frames as shipped, the official CSV files, or the lists of TRN and TSM."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from torch import Tensor

from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.clips import Clip, ClipDataset, MultiScaleCrop, centre_crop, evaluation_frames, read_frames
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import lines_of
from wsbench.datamodules.mini import something as mini
from wsbench.datamodules.pictures import PredictionFolder, collate_one
from wsbench.records import DataIdentity

COUNTS = {"train": 86_017, "val": 11_522}
FRAMES = "20bn-something-something-v1"
CSV = {name: f"something-something-v1-{name}.csv" for name in ("labels", "train", "validation")}
LISTS = {"labels": "category.txt", "train": "train_videofolder.txt", "val": "val_videofolder.txt"}
FEWEST_FRAMES = 3

ClassOrder = Literal["alphabetical", "csv"]


def has_csv(root: Path) -> bool:
    """Whether the official lists lie in ``root``."""
    return all((root / name).is_file() for name in CSV.values())


def has_lists(root: Path) -> bool:
    """Whether lists in the form of TRN and TSM lie in ``root``."""
    return all((root / name).is_file() for name in LISTS.values())


def is_present(root: Path) -> bool:
    """Whether Something-Something V1 lies under ``root``."""
    return (root / FRAMES).is_dir() and (has_csv(root) or has_lists(root))


def read_classes(root: Path, order: ClassOrder) -> tuple[str, ...]:
    """The labels, alphabetically as TRN and TSM number them, or as the official file lists them.

    Raises:
        DatasetError: two labels are equal.
    """
    labels = lines_of(root / CSV["labels"])
    if len(set(labels)) < len(labels):
        raise DatasetError(f"'{root / CSV['labels']}' names a label twice")
    return tuple(sorted(labels) if order == "alphabetical" else labels)


def count_frames(folder: Path) -> int:
    """Frames in a clip's folder; DatasetError if there is no such folder."""
    try:
        return sum(1 for p in folder.iterdir() if p.suffix == ".jpg")
    except FileNotFoundError as error:
        raise DatasetError(f"the clip '{folder}' is missing; unpack the archive's parts again") from error


def read_official(root: Path, split: str, classes: tuple[str, ...]) -> list[Clip]:
    """The clips of an official CSV file (``id;label``); their frames are counted."""
    path = root / CSV["validation" if split == "val" else split]
    number = {label: i for i, label in enumerate(classes)}
    clips = []
    for line in lines_of(path):
        name, separator, label = line.partition(";")
        if not separator or label.strip() not in number:
            raise DatasetError(f"'{path}': expected 'id;label' with a label of '{CSV['labels']}', got '{line}'")
        folder = root / FRAMES / name
        clips.append(Clip(folder, count_frames(folder), number[label.strip()]))
    return clips


def read_list(root: Path, split: str, classes: tuple[str, ...]) -> list[Clip]:
    """The clips of a list of TRN or TSM: ``folder frames class``."""
    path = root / LISTS[split]
    clips = []
    for line in lines_of(path):
        parts = line.rsplit(maxsplit=2)
        if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit() and int(parts[2]) < len(classes)):
            raise DatasetError(f"'{path}': expected 'folder frames class' with a class below {len(classes)}: '{line}'")
        clips.append(Clip(root / FRAMES / Path(parts[0]).name, int(parts[1]), int(parts[2])))
    return clips


class SomethingSomething(BenchmarkData):
    """Something-Something V1, or a dataset in its layout, or its miniature.

    Args:
        num_classes: classes that there must be.
        segments: frames that a clip is sampled to.
        crop: side of the frames.
        resize: shorter side that frames to evaluate are resized to before their centre is cut out.
        scales: of the training crop, relative to the frame's shorter side.
        lists: ``csv``, the official files, whose clips' frames are counted at every start; ``videofolder``, the lists
            of TRN and TSM, which state them; ``auto`` prefers the latter.
        class_order: ``alphabetical`` as TRN's and TSM's checkpoints have it, ``csv`` as mmaction2's. Lists have theirs
            in ``category.txt``, which must be alphabetical or not as is said here.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds ``20bn-something-something-v1``.
            For ``predict``, ``pictures`` is a folder of clips, each a folder of frames.
    """

    task = "something"
    title = "Something-Something V1"
    mini: ClassVar[ModuleType] = mini
    collate_prediction = staticmethod(collate_one)
    is_present = staticmethod(is_present)

    def __init__(
        self,
        num_classes: int = 174,
        segments: int = 8,
        crop: int = 224,
        resize: int = 256,
        scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66),
        lists: Literal["auto", "csv", "videofolder"] = "auto",
        class_order: ClassOrder = "alphabetical",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        self.require_positive(segments=segments, crop=crop, resize=resize)
        if not scales or not all(0 < s <= 1 for s in scales):
            raise DatasetError(f"--data.scales must be in (0, 1], got {list(scales)}")
        self.require_room(resize, crop)
        self.segments, self.crop, self.resize, self.lists, self.class_order = segments, crop, resize, lists, class_order
        self.transform = MultiScaleCrop(crop, tuple(scales))
        self.classes: tuple[str, ...] = ()

    def setup(self, stage: str) -> None:
        """Read the lists that ``stage`` needs."""
        if stage == "predict":
            folders = sorted(p for p in self.prediction_folder("clips").iterdir() if p.is_dir())
            if not folders:
                raise DatasetError(f"no folders of frames in '{self.pictures}'")
            self.predict_data = PredictionFolder(folders, self._read, "clip")
            return
        root = self.root()
        # built lists are alphabetical
        either = [has_lists, has_csv] if self.class_order == "alphabetical" else [has_csv, has_lists]
        wanted = {"csv": [has_csv], "videofolder": [has_lists], "auto": either}[self.lists]
        found = next((f for f in wanted if f(root)), None)
        if found is None:
            names = LISTS if self.lists == "videofolder" else CSV
            raise DatasetError(f"'{root}' has no {', '.join(names.values())}; see `{self.command}`")
        self.official = found is has_csv
        if self.official:
            self.classes = read_classes(root, self.class_order)
        else:
            self.classes = tuple(lines_of(root / LISTS["labels"]))
            if (list(self.classes) == sorted(self.classes)) != (self.class_order == "alphabetical"):
                order = "not alphabetical" if self.class_order == "alphabetical" else "alphabetical"
                raise DatasetError(f"'{root / LISTS['labels']}' is {order}, but --data.class_order is "
                                   f"{self.class_order}; set it as the list is, or use --data.lists csv")  # fmt: skip
        self.require_classes(self.classes)
        if stage == "fit":
            self.train_data = self._dataset(root, "train", self.transform)
        self.val_data = self._dataset(root, "val", None)

    def _dataset(self, root: Path, split: str, transform: MultiScaleCrop | None) -> ClipDataset:
        read = read_official if self.official else read_list
        clips = [c for c in read(root, split, self.classes) if c.frames >= FEWEST_FRAMES]
        if not clips:
            raise DatasetError(f"the list of '{split}' under '{root}' names no clip of {FEWEST_FRAMES} frames or more")
        evaluate = partial(centre_crop, resize=self.resize, side=self.crop)
        return ClipDataset(clips, self.segments, transform, evaluate)

    def _read(self, folder: Path) -> Tensor:
        frames = evaluation_frames(count_frames(folder), self.segments)
        return centre_crop(read_frames(folder, frames), self.resize, self.crop)

    def identity(self) -> DataIdentity:
        """Lists are clips with their frames and class numbers, so the order of classes is part of it."""
        order = "alphabetical" if list(self.classes) == sorted(self.classes) else "as listed"

        def names(data: ClipDataset) -> Iterable[str]:
            return (f"{clip.folder.name} {clip.frames} {clip.label}" for clip in data.clips)

        official = {"train": len(self.train_data), "val": len(self.val_data)} == COUNTS and self.num_classes == 174
        splits = {"train": self.train_data, "val": self.val_data}
        return self.describe(
            "something_something_v1", official, {k: (f"{k}, classes {order}", names(v)) for k, v in splits.items()}
        )
