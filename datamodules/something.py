"""Something-Something V1: folders of frames as shipped, the official CSV files, or the lists of TRN and TSM."""

import copy
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from torch import Tensor

from wsbench.datamodules.base import BenchmarkData, Split
from wsbench.datamodules.cache import keep, read_kept
from wsbench.datamodules.clips import (
    Clip,
    ClipDataset,
    MultiScaleCrop,
    Naming,
    centre_crop,
    evaluation_frames,
    frames_of,
    read_frames,
)
from wsbench.datamodules.errors import DatasetError, refuse_all
from wsbench.datamodules.lists import folders_in, inside, is_meant, names_of, refuse_repeated
from wsbench.datamodules.mini import something as mini
from wsbench.datamodules.pictures import PredictionFolder, collate_one
from wsbench.records import checksum

COUNTS = {"train": 86_017, "val": 11_522}
FRAMES = "20bn-something-something-v1"
CSV = {"labels": "labels", "train": "train", "val": "validation"}
LISTS = {"labels": "category.txt", "train": "train_videofolder.txt", "val": "val_videofolder.txt"}
FEWEST_FRAMES = 3
LAYOUT = f"""\
ROOT/{FRAMES}/ID/00001.jpg ...     a folder of numbered frames a clip (or ROOT/frames/ID/...)
ROOT/something-something-v1-labels.csv       a class a line; V1: 174   (or labels.csv)
ROOT/something-something-v1-train.csv        ID;CLASS a line; V1: 86,017   (or train.csv)
ROOT/something-something-v1-validation.csv   V1: 11,522   (or validation.csv)
or, in place of the CSV files, the lists of TRN and TSM:
    {", ".join(LISTS.values())}     a class a line; FOLDER FRAMES CLASS-NUMBER a line"""

ClassOrder = Literal["alphabetical", "csv"]


def frames_folder(root: Path) -> Path | None:
    """The folder of the clips."""
    return next((p for p in (root / FRAMES, root / "frames") if p.is_dir()), None)


def csv_file(root: Path, part: str) -> Path:
    """An official CSV file, or one of the short name."""
    full = root / f"something-something-v1-{CSV[part]}.csv"
    short = root / f"{CSV[part]}.csv"
    return short if short.is_file() and not full.is_file() else full


def has_csv(root: Path) -> bool:
    """Whether the official lists lie in ``root``."""
    return all(csv_file(root, part).is_file() for part in CSV)


def has_lists(root: Path) -> bool:
    """Whether lists in the form of TRN and TSM lie in ``root``."""
    return all((root / name).is_file() for name in LISTS.values())


def place(root: Path) -> Path | None:
    """``root``, if clips and lists lie there; DatasetError if only some of it does."""
    clips = frames_folder(root)
    forms = ([csv_file(root, part) for part in CSV], [root / name for name in LISTS.values()])
    missing = [[path for path in form if not path.is_file()] for form in forms]
    if clips is not None and not all(missing):
        return root
    if clips is None and not all(missing):
        raise DatasetError(
            f"'{root}' has lists and no folder of clips; expected '{root / FRAMES}' or '{root / 'frames'}'"
        )
    for form, absent in zip(forms, missing, strict=True):
        if clips is not None and len(absent) < len(form):
            raise DatasetError(f"'{absent[0]}' is missing; `python -m wsbench data something` shows the layout")
    return None


def read_classes(root: Path, order: ClassOrder) -> tuple[str, ...]:
    """The labels, alphabetically as TRN and TSM number them, or as the official file lists them.

    Raises:
        DatasetError: there is none, or two are equal.
    """
    labels = names_of(csv_file(root, "labels"), "labels")
    return tuple(sorted(labels) if order == "alphabetical" else labels)


def csv_rows(root: Path, split: str) -> list[tuple[str, str]]:
    """Folder and label of each clip of an official CSV file (``id;label``); DatasetError names a broken line."""
    path = csv_file(root, split)
    rows = []
    for line in names_of(path, "id;label"):
        name, separator, label = line.partition(";")
        if not separator or not name.strip() or not label.strip():
            raise DatasetError(f"'{path}': expected 'id;label', got '{line}'")
        rows.append((name.strip(), label.strip()))
    refuse_repeated([name for name, _ in rows], path)
    return rows


def list_rows(root: Path, split: str, classes: Sequence[str]) -> list[tuple[str, int, str]]:
    """Folder, frames and label of each clip of a list of TRN or TSM: ``folder frames class``."""
    path = root / LISTS[split]
    rows = []
    for line in names_of(path, "folder frames class"):
        parts = line.rsplit(maxsplit=2)
        numbers = [int(part) for part in parts[1:] if part.isdecimal()]
        if len(parts) != 3 or len(numbers) != 2 or numbers[1] >= len(classes):
            raise DatasetError(f"'{path}': expected 'folder frames class' with a class below {len(classes)}: '{line}'")
        if ".." in Path(parts[0]).parts:
            raise DatasetError(f"'{path}': '{parts[0]}' leaves the folder of the clips; name folders in it")
        rows.append((Path(parts[0]).name, numbers[0], classes[numbers[1]]))
    refuse_repeated([name for name, *_ in rows], path)
    return rows


def count_frames(clips: Path, names: Sequence[str], listed: Path) -> dict[str, tuple[Naming, int]]:
    """How the frames of each clip are called and how many there are; a folder that did not change is not read again.

    Args:
        clips: the folder of the clips.
        names: of their folders in it.
        listed: the file that names them.

    Raises:
        DatasetError: which clips are missing, or have frames that are not in order.
    """
    wrong: list[DatasetError] = []
    kept = read_kept("something", clips)
    counted: dict[str, tuple[Naming, int]] = {}
    entries = dict(kept)
    place = str(clips)
    for name in names:
        # strings, not paths: at the official size that is 2 seconds of 7
        folder = f"{place}/{name}" if name[0] != "." and "/" not in name else str(inside(clips, name, listed))
        try:
            changed = os.stat(folder).st_mtime_ns
        except (OSError, ValueError):
            changed = -1
        entry = kept.get(name)
        if entry is None or entry[0] != changed or changed < 0:
            try:
                naming, frames = frames_of(Path(folder))
            except DatasetError as error:
                wrong.append(error)
                continue
            entries[name] = [changed, frames, naming.prefix, naming.digits, naming.suffix, naming.first]
            entry = entries[name]
        counted[name] = (Naming(*entry[2:]), entry[1])
    if entries != kept:
        keep("something", clips, entries)
    refuse_all(wrong)
    return counted


class SomethingSomething(BenchmarkData):
    """Something-Something V1, or a dataset in its layout, or its miniature.

    Args:
        segments: frames that a clip is sampled to.
        crop: side of the frames.
        resize: shorter side that frames to evaluate are resized to before their centre is cut out.
        scales: of the training crop, relative to the frame's shorter side.
        lists: ``csv``, the official files, whose clips' frames are counted; ``videofolder``, the lists of TRN and TSM,
            which state them; ``auto`` is whichever is there, and where both are they must name the same clips.
        class_order: ``alphabetical`` as TRN's and TSM's checkpoints have it, ``csv`` as mmaction2's. Lists have theirs
            in ``category.txt``, which must be alphabetical or not as is said here.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds ``20bn-something-something-v1``.
            For ``predict``, ``pictures`` is a folder of clips, each a folder of frames. Clips below three frames are
            left out, as TRN and TSM do.
    """

    task = "something"
    title = "A dataset of clips (Something-Something V1, or one in its layout)"
    layout, looked_for = LAYOUT, f"{FRAMES}/ (or frames/) and the CSV files or lists beside it"
    mini: ClassVar[ModuleType] = mini
    collate_prediction = staticmethod(collate_one)
    place = staticmethod(place)

    def __init__(
        self,
        segments: int = 8,
        crop: int = 224,
        resize: int = 256,
        scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66),
        lists: Literal["auto", "csv", "videofolder"] = "auto",
        class_order: ClassOrder = "alphabetical",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.require_positive(segments=segments, crop=crop, resize=resize)
        if not scales or not all(0 < s <= 1 for s in scales):
            raise DatasetError(f"--data.scales must be in (0, 1], got {list(scales)}")
        self.require_room(resize, crop)
        self.segments, self.crop, self.resize, self.lists, self.class_order = segments, crop, resize, lists, class_order
        self.transform = MultiScaleCrop(crop, tuple(scales))
        self._dropped: dict[str, list[str]] = {}

    def read(self, train: bool) -> None:
        """Read the lists and look at the clips' folders."""
        root = self.folder()
        form = self._form(root)
        if form == "csv":
            self.take_classes(read_classes(root, self.class_order))
        else:
            classes = names_of(root / LISTS["labels"], "classes")
            if (classes == sorted(classes)) != (self.class_order == "alphabetical"):
                order = "not alphabetical" if self.class_order == "alphabetical" else "alphabetical"
                raise DatasetError(f"'{root / LISTS['labels']}' is {order}, but --data.class_order is "
                                   f"{self.class_order}; set it as the list is, or use --data.lists csv")  # fmt: skip
            self.take_classes(classes)
        if train:
            self.train_data = self._dataset(root, form, "train", self.transform)
        self.val_data = self._dataset(root, form, "val", None)
        if self.train_data is not None:
            self.doubt_shared(*([str(clip.folder) for clip in data.clips] for data in (self.train_data, self.val_data)))

    def _form(self, root: Path) -> str:
        forms = {"csv": has_csv(root), "videofolder": has_lists(root)}
        if self.lists != "auto":
            if not forms[self.lists]:
                names = LISTS.values() if self.lists == "videofolder" else [csv_file(root, p).name for p in CSV]
                raise DatasetError(f"'{root}' has no {', '.join(names)}; see `{self.command}`")
            return self.lists
        if all(forms.values()):
            self._refuse_two_truths(root)
        # either names the same clips; lists are in alphabetical order or not, the CSV files can be read in both
        return "csv" if forms["csv"] else "videofolder"

    def _refuse_two_truths(self, root: Path) -> None:
        """Lists that were made of CSV files which have changed since would train on what was there before."""
        classes = names_of(root / LISTS["labels"], "classes")
        for split in ("train", "val"):
            official = dict(csv_rows(root, split))
            listed = {name: label for name, _, label in list_rows(root, split, classes)}
            if official != listed:
                raise DatasetError(
                    f"'{csv_file(root, split)}' ({len(official)} clips) and '{root / LISTS[split]}' ({len(listed)}) do "
                    "not name the same clips and classes; say which is right by --data.lists csv or --data.lists "
                    "videofolder, or remove the other"
                )

    def _dataset(self, root: Path, form: str, split: str, transform: MultiScaleCrop | None) -> ClipDataset:
        number = {label: i for i, label in enumerate(self.classes)}
        folder = frames_folder(root)
        assert folder is not None
        if form == "csv":
            rows = csv_rows(root, split)
            unknown = next(((name, label) for name, label in rows if label not in number), None)
            if unknown is not None:
                raise DatasetError(
                    f"'{csv_file(root, split)}': clip '{unknown[0]}' has the label '{unknown[1]}', which "
                    f"'{csv_file(root, 'labels').name}' does not name"
                )
            counted = count_frames(folder, [name for name, _ in rows], csv_file(root, split))
            clips = [Clip(folder / n, counted[n][1], number[label], counted[n][0], n) for n, label in rows]
        else:
            listed = list_rows(root, split, self.classes)
            counted = count_frames(folder, [name for name, *_ in listed], root / LISTS[split])
            differ = [(name, frames) for name, frames, _ in listed if frames != counted[name][1]]
            if differ:
                name, frames = differ[0]
                raise DatasetError(
                    f"'{root / LISTS[split]}': the clip '{folder / name}' has {counted[name][1]} frames, the list says "
                    f"{frames} ({len(differ)} such lines); unpack the clips again, or correct the list"
                )
            clips = [Clip(folder / n, frames, number[label], counted[n][0], n) for n, frames, label in listed]
        short = [f"{c.name} ({c.frames} frames)" for c in clips if c.frames < FEWEST_FRAMES]
        self.check_dropped(split, short, len(clips), f"have fewer than {FEWEST_FRAMES} frames")
        self._dropped[split] = short
        clips = [c for c in clips if c.frames >= FEWEST_FRAMES]
        if not clips:
            raise DatasetError(f"the list of '{split}' under '{root}' names no clip of {FEWEST_FRAMES} frames or more")
        evaluate = partial(centre_crop, resize=self.resize, side=self.crop)
        return ClipDataset(clips, self.segments, transform, evaluate)

    @property
    def shown_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Frames have no turn of a camera: as for ``predict``."""
        return self.prediction_reader

    @property
    def prediction_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Folders of frames."""
        return "clip", self._read

    def read_predictions(self) -> PredictionFolder:
        """Clips below ``pictures``."""
        folder = self.user_folder("clips")
        if self.recursive:
            clips = sorted(p for p in folder.rglob("*") if p.is_dir() and not folders_in(p) and is_meant(p))
        else:
            clips = folders_in(folder)
        if not clips:
            raise DatasetError(f"no folders of frames in '{folder}'")
        self.passed_over = sorted(p for p in folder.iterdir() if p.is_file() and is_meant(p))
        key, read = self.prediction_reader
        return PredictionFolder(clips, folder, read, key)

    def _read(self, folder: Path) -> Tensor:
        naming, frames = frames_of(folder)
        return centre_crop(
            read_frames(folder, evaluation_frames(frames, self.segments), naming), self.resize, self.crop
        )

    def part(self, indices: Sequence[int], train: bool) -> ClipDataset:
        """Some samples of the training list."""
        chosen: ClipDataset = copy.copy(self.train_data)
        chosen.clips = [chosen.clips[i] for i in indices]
        if not train:
            chosen.transform = None
        return chosen

    def describe(self) -> dict[str, Split]:
        """Samples are clips with their frames and class numbers, so the order of classes is part of it."""
        order = "alphabetical" if list(self.classes) == sorted(self.classes) else "as listed"
        splits = {}
        for split, data in (("train", self.train_data), ("val", self.val_data)):
            if data is not None:
                names = [f"{clip.name} {clip.frames} {clip.label}" for clip in data.clips]
                labels = checksum(str(clip.label) for clip in data.clips)
                splits[split] = Split(f"{split}, classes {order}", names, labels, self._dropped[split])
        return splits

    @property
    def official(self) -> str:
        """Version 1."""
        return "something_something_v1"

    @property
    def resembles_official(self) -> bool:
        """174 classes, of V1's phrases."""
        return len(self.classes) == 174 and any("something" in name.lower() for name in self.classes)

    @property
    def official_counts(self) -> dict[str, int]:
        """86,017 and 11,522."""
        return COUNTS

    def remedy(self, split: str) -> str:
        """Its list, and the archive's parts."""
        return f"fetch the list of '{split}' again, and unpack the archive: cat {FRAMES}-?? | tar zx"
