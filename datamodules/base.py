"""What all datamodules share: where the data is, the training stream, evaluation that counts every sample once."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from wsbench.datamodules.errors import DatasetError, DatasetNotFoundError
from wsbench.datamodules.mini.store import ensure
from wsbench.datamodules.pictures import PICTURES, PredictionFolder, user_files
from wsbench.datamodules.sampling import BatchError, StreamSampler, UnpaddedSampler
from wsbench.datamodules.workers import leave_signals
from wsbench.records import DataIdentity, SplitIdentity, checksum

#: samples of an optimizer step; a step of more would end in years, and is a typing mistake
MOST_IN_A_STEP = 1 << 20
#: processes that load data
MOST_WORKERS = 1024


@dataclass(frozen=True)
class Split:
    """What one split is, for the record.

    Args:
        listed: name of its list.
        names: of its samples, in order.
        labels: SHA-256 of what is learned from; the class names are added to it.
        dropped: names of the samples that the list has and the split has not.
    """

    listed: str
    names: Iterable[str]
    labels: str
    dropped: Sequence[str] = field(default=())


def _files_of(data: Any) -> dict[tuple[int, int], Path]:
    """Of a dataset with ``path(index)``, the files or folders of its samples, by device and inode: links are one."""
    paths = {Path(data.path(i)) for i in range(len(data))}
    return {(status.st_dev, status.st_ino): path for path, status in ((path, path.stat()) for path in paths)}


class BenchmarkData(LightningDataModule, ABC):
    """A dataset in its official layout, a user's own in that layout, or the miniature.

    A subclass says where the dataset lies (:meth:`place`), reads its splits (:meth:`read`, once whatever stages there
    are) and says what they are (:meth:`describe`).

    Args:
        root: folder of the dataset; default: the environment variable WSBENCH_DATA.
        miniature: use the miniature made of handwritten digits; ``root`` must not be given.
        num_classes: classes that there must be; None: as many as the data has.
        micro_batch: samples on a device in one micro-step.
        effective_batch: samples in an optimizer step; accumulation is derived from it, micro_batch and devices.
        steps_per_epoch: optimizer steps between evaluations and checkpoints; None is one pass over the data.
        min_steps_per_epoch: where an epoch is a pass over the data, it has at least so many optimizer steps.
        eval_batch: samples on a device in evaluation.
        num_workers: processes that load data.
        images: a folder of what ``predict`` is to look at.
        recursive: whether ``predict`` looks into the folders in it.
        max_dropped: share of a split's samples that may be left out (clips without frames); more is an error.
        tuning: share of the training samples that are held out and evaluated on in place of val, which then stays
            unseen: for choosing learning rates. None: train on all, evaluate on val.
        seed: of shuffling and augmentation; the run's seed on the command line.
    """

    #: name on the command line
    task: ClassVar[str]
    #: what messages call the dataset
    title: ClassVar[str]
    #: how the dataset lies on disk, and what is looked for there
    layout: ClassVar[str]
    looked_for: ClassVar[str]
    #: writes the miniature: its NAME, and ``write(folder)``
    mini: ClassVar[ModuleType]
    #: collates a training or evaluation batch
    collate: ClassVar[Any] = None
    #: classes below which there is nothing to learn
    fewest_classes: ClassVar[int] = 2
    #: collates a batch of one for prediction
    collate_prediction: ClassVar[Any] = None
    #: what ``predict`` looks at: what messages call it, and its suffixes in lower case
    prediction_files: ClassVar[tuple[str, Sequence[str]]] = ("images", PICTURES)

    def __init__(
        self,
        root: str | None = None,
        miniature: bool = False,
        num_classes: int | None = None,
        micro_batch: int = 1,
        effective_batch: int = 16,
        steps_per_epoch: int | None = None,
        min_steps_per_epoch: int = 1,
        eval_batch: int = 1,
        num_workers: int = 4,
        pictures: str | None = None,
        recursive: bool = False,
        max_dropped: float = 0.01,
        tuning: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if miniature and root is not None:
            raise DatasetError("--data.miniature and --data.root exclude each other; add --data.miniature false")
        self.require_positive(micro_batch=micro_batch, effective_batch=effective_batch, eval_batch=eval_batch,
                              num_classes=num_classes or 1, steps_per_epoch=1 if steps_per_epoch is None else
                              steps_per_epoch, min_steps_per_epoch=min_steps_per_epoch)  # fmt: skip
        for name, value in {"effective_batch": effective_batch, "eval_batch": eval_batch}.items():
            if value > MOST_IN_A_STEP:
                raise BatchError(f"--data.{name} {value}: at most {MOST_IN_A_STEP:,}")
        if num_workers > MOST_WORKERS:
            raise BatchError(f"--data.num_workers {num_workers}: at most {MOST_WORKERS}, each is a process")
        if num_classes == 0:
            raise BatchError("--data.num_classes must be at least 1, got 0")
        self.require_probability(max_dropped=max_dropped)
        if tuning is not None and not 0 < tuning < 1:
            raise DatasetError(
                f"--data.tuning is the share of training samples to hold out, between 0 and 1; got {tuning}"
            )
        if num_workers < 0:
            raise BatchError(f"--data.num_workers must be 0 or more, got {num_workers}")
        self.miniature, self.num_classes, self.pictures, self.seed = miniature, num_classes, pictures, seed
        self.given_classes = num_classes
        self.micro_batch, self.effective_batch, self.eval_batch = micro_batch, effective_batch, eval_batch
        self.steps_per_epoch, self.min_steps_per_epoch = steps_per_epoch, min_steps_per_epoch
        self.num_workers, self.recursive, self.max_dropped = num_workers, recursive, max_dropped
        self.tuning = tuning
        self._root = root
        #: names of the classes, in the order of their numbers; empty before the data is read
        self.classes: tuple[str, ...] = ()
        self.train_data: Any = None
        self.val_data: Any = None
        self.predict_data: Any = None
        #: what ``predict`` passed over in its folder
        self.passed_over: list[Path] = []
        #: what can be trained on and makes numbers that are hardly meant; `data` counts it among the faults
        self.doubts: list[str] = []
        self._identity: DataIdentity | None = None

    @staticmethod
    def require_positive(**values: int) -> None:
        """Refuse numbers below 1, by the option's name."""
        for name, value in values.items():
            if value < 1:
                raise BatchError(f"--data.{name} must be at least 1, got {value}")

    @staticmethod
    def require_probability(**values: float) -> None:
        """Refuse what is no probability, by the option's name."""
        for name, value in values.items():
            if not 0 <= value <= 1:
                raise DatasetError(f"--data.{name} must be between 0 and 1, got {value}")

    @staticmethod
    def require_range(**values: tuple[float, float]) -> None:
        """Refuse what is no range of positive numbers, by the option's name."""
        for name, (low, high) in values.items():
            if not 0 < low <= high < float("inf"):
                raise DatasetError(f"--data.{name} must be two positive numbers, the smaller first, got {[low, high]}")

    @staticmethod
    def require_room(resize: int, crop: int) -> None:
        """Refuse images to evaluate that are smaller than what is cut out of them."""
        if resize < crop:
            raise DatasetError(f"--data.resize {resize} is smaller than --data.crop {crop}")

    # -- where ------------------------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def place(root: Path) -> Path | None:
        """The folder that is the dataset: ``root`` itself or one below it; None if there is none.

        Raises:
            DatasetError: it is almost there, and what is missing is known.
        """

    @classmethod
    def is_present(cls, root: Path) -> bool:
        """Whether a dataset lies under ``root``."""
        return cls.place(root) is not None

    @classmethod
    def find(cls, root: Path | None) -> Path:
        """The folder that is the dataset.

        Raises:
            DatasetNotFoundError: there is none; what was looked for, and what is there.
        """
        place = None if root is None or not root.is_dir() else cls.place(root)
        if place is None:
            raise DatasetNotFoundError.under(cls.title, root, cls.looked_for, cls.task)
        return place

    @property
    @abstractmethod
    def official(self) -> str:
        """What the identity of the official dataset is called."""

    @property
    def command(self) -> str:
        """The command that verifies the dataset."""
        return f"python -m wsbench data {self.task}" + ("" if self._root is None else f" --root {self._root}")

    def prepare_data(self) -> None:
        """Make the miniature, once for all processes of a machine."""
        if self.miniature:
            ensure(self.mini.NAME, self.mini.write)

    def folder(self) -> Path:
        """The folder that is the dataset; DatasetNotFoundError if there is none."""
        if self.miniature:
            return self.find(ensure(self.mini.NAME, self.mini.write))
        text = self._root or os.environ.get("WSBENCH_DATA")
        return self.find(Path(text).expanduser() if text else None)

    # -- what -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read what ``stage`` needs and is not read yet."""
        if stage == "predict":
            if self.predict_data is None:
                self.predict_data = self.read_predictions()
        elif self.val_data is None or (stage == "fit" and self.train_data is None):
            self.read(stage == "fit" or self.tuning is not None)
            if self.tuning is not None:
                self._hold_out(self.tuning)

    def _hold_out(self, share: float) -> None:
        """Take samples out of the training list and evaluate on them; val is not evaluated on.

        Which ones follows from their names alone: all norms, rates and seeds are scored on the same samples.

        Raises:
            DatasetError: a file, under whatever name or link, is in both train and val, or a part would be empty.
        """
        ours, theirs = _files_of(self.train_data), _files_of(self.val_data)
        in_both = [str(ours[file]) for file in ours.keys() & theirs.keys()]
        self.doubt_shared(in_both, in_both)
        whole = self.describe()["train"]
        names, official = list(whole.names), self.is_official
        count = round(share * len(names))
        if not 0 < count < len(names):
            raise DatasetError(
                f"--data.tuning {share} of {len(names)} training samples is {count}; both parts need some"
            )
        drawn = sorted(range(len(names)), key=lambda i: checksum([f"tuning {names[i]}"]))
        held, kept = sorted(drawn[:count]), sorted(drawn[count:])
        self.train_data, self.val_data = self.part(kept, train=True), self.part(held, train=False)
        listed = f"{whole.listed}, held out {share:g}"
        parts = {"train": (f"{listed}: the rest", kept, whole.dropped), "val": (f"{listed}: tuning", held, ())}
        splits = {split: Split(listed, [names[i] for i in chosen], whole.labels, dropped)
                  for split, (listed, chosen, dropped) in parts.items()}  # fmt: skip
        self._take_identity(splits, official)

    @abstractmethod
    def part(self, indices: Sequence[int], train: bool) -> Dataset[Any]:
        """Some samples of the training list, as training or as evaluation sees them."""

    @abstractmethod
    def read(self, train: bool) -> None:
        """Set ``classes`` and ``val_data``, and ``train_data`` if ``train``.

        Raises:
            DatasetError: something is missing or broken.
        """

    def read_predictions(self) -> Dataset[dict[str, Any]]:
        """The files below ``pictures`` that ``predict`` can look at; the others are passed over.

        Raises:
            DatasetError: there is no such folder, or no such file in it.
        """
        what, suffixes = self.prediction_files
        folder = self.user_folder(what)
        paths, self.passed_over = user_files(folder, suffixes, self.recursive, what)
        key, read = self.prediction_reader
        return PredictionFolder(paths, folder, read, key)

    @property
    def prediction_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """The key of a sample in a batch of ``predict``, and what reads a file (of a clip: a folder) to it.

        Raises:
            DatasetError: ``predict`` cannot read this data.
        """
        raise DatasetError(f"predict has no reader for files of {self.title}")

    @property
    def shown_reader(self) -> tuple[str, Callable[[Path], Any]] | None:
        """The same for samples of val that loggers show, read as they are evaluated; None: they are not shown."""
        return None

    def shown_samples(self, count: int) -> Dataset[dict[str, Any]] | None:
        """Some of val, evenly spread, as samples of ``predict``; None where there are no images."""
        path, whole, reader = getattr(self.val_data, "path", None), len(self.val_data), self.shown_reader
        if path is None or not whole or reader is None:
            return None
        count = min(count, whole)
        paths = [path(i * whole // count) for i in range(count)]
        key, read = reader
        return PredictionFolder(paths, paths[0].parent, read, key)

    @abstractmethod
    def describe(self) -> dict[str, Split]:
        """``train`` and ``val``, for the identity."""

    @property
    @abstractmethod
    def resembles_official(self) -> bool:
        """Whether what was read has the classes of the official dataset, complete or not."""

    @property
    @abstractmethod
    def official_counts(self) -> dict[str, int]:
        """Samples of the official dataset: ``{"train": ..., "val": ...}``."""

    @property
    def is_official(self) -> bool:
        """Whether what was read has the classes and counts of the official dataset."""
        counts = {"train": len(self.train_data or ()), "val": len(self.val_data)}
        return self.resembles_official and counts == self.official_counts

    def remedy(self, split: str) -> str:
        """How to complete a split of the official dataset."""
        return f"unpack the archive of '{split}' again"

    def take_classes(self, classes: Sequence[str]) -> None:
        """The data has these classes; their number, if it was given, must be this.

        Raises:
            DatasetError: it is not, or a name occurs twice.
        """
        if self.given_classes is not None and len(classes) != self.given_classes:
            raise DatasetError(
                f"--data.num_classes {self.given_classes} was given, the data has {len(classes)} classes "
                f"({', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}); leave the option out, it follows "
                "from the data"
            )
        if len(set(classes)) < len(classes):
            twice = next(name for name in classes if list(classes).count(name) > 1)
            raise DatasetError(f"two classes are called '{twice}'; they could not be told apart in results")
        if len(classes) < self.fewest_classes:
            raise DatasetError(
                f"the data has one class only, {', '.join(classes) or 'without a name'}; there is nothing to learn"
            )
        self.classes, self.num_classes = tuple(classes), len(classes)

    def doubt(self, text: str) -> None:
        """Say, once, what makes the results worth little though nothing stops."""
        if text not in self.doubts:
            self.doubts.append(text)
            rank_zero_warn(text)

    def doubt_shared(self, train: Iterable[str], val: Iterable[str]) -> None:
        """:meth:`doubt_leak` of data whose training and evaluation have samples in common."""
        shared = sorted(set(train) & set(val))
        if shared:
            self.doubt_leak(f"{len(shared)} samples are in both train and val, among them {', '.join(shared[:3])}")

    def doubt_leak(self, what: str) -> None:
        """Doubt results that look at what was trained on.

        Raises:
            DatasetError: with ``tuning``: what would be held out to choose on would be what results are scored on.
        """
        if self.tuning is not None:
            raise DatasetError(f"{what}: what --data.tuning holds out would be what results are scored on; take them "
                               "out of one")  # fmt: skip
        self.doubt(f"{what}: evaluation would look at what was trained on; take them out of one")

    def check_dropped(self, split: str, dropped: Sequence[str], whole: int, why: str) -> None:
        """Refuse a split of which too much is left out, naming some of it."""
        if len(dropped) > self.max_dropped * whole:
            raise DatasetError(
                f"{len(dropped)} of {whole} samples of '{split}' {why}, among them {', '.join(dropped[:3])}; repair "
                f"them (`{self.command}`), take them out, or raise --data.max_dropped {self.max_dropped}"
            )

    def identity(self) -> DataIdentity:
        """What the data is, with its labels; after ``setup("fit")``."""
        if self._identity is None:
            self._take_identity(self.describe(), self.is_official)
            assert self._identity is not None
        return self._identity

    def _take_identity(self, splits: Mapping[str, Split], official: bool) -> None:
        classes = checksum(self.classes)
        parts = {}
        for name, split in splits.items():
            names = list(split.names)
            labels = checksum([classes, split.labels])
            parts[name] = SplitIdentity(list=split.listed, count=len(names), checksum=checksum(names),
                                        labels=labels, dropped=len(split.dropped))  # fmt: skip
        title = self.mini.NAME if self.miniature else self.official if official else "custom"
        self._identity = DataIdentity(name=title, splits=parts)

    def user_folder(self, what: str) -> Path:
        """The folder named by --data.pictures; DatasetError if none was given or there is none."""
        if self.pictures is None:
            raise DatasetError(f"predict needs --data.pictures FOLDER, a folder of {what}")
        folder = Path(self.pictures).expanduser()
        if not folder.is_dir():
            raise DatasetError(f"'{folder}' is no folder; --data.pictures names a folder of {what} to predict")
        return folder

    def steps_in_epoch(self) -> int:
        """Optimizer steps between evaluations."""
        return self.steps_per_epoch or max(self.min_steps_per_epoch, len(self.train_data) // self.effective_batch)

    def sampler(self) -> StreamSampler:
        """The training stream of this device."""
        batches = (self.effective_batch, self.micro_batch)
        return StreamSampler(
            len(self.train_data), self.steps_in_epoch(), *batches, self.seed, *self._rank(), self._steps_taken
        )

    def _steps_taken(self) -> int:
        return self.trainer.global_step if self.trainer is not None else 0

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, data: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        workers = self.num_workers
        return DataLoader(
            data, num_workers=workers, persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals(), **kwargs,
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of ``micro_batch``."""
        collate = type(self).collate
        return self._loader(self.train_data, batch_size=self.micro_batch, sampler=self.sampler(), collate_fn=collate)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every sample to evaluate once, over all devices."""
        sampler = UnpaddedSampler(len(self.val_data), *self._rank())
        collate = type(self).collate
        return self._loader(self.val_data, batch_size=self.eval_batch, sampler=sampler, collate_fn=collate)

    def test_dataloader(self) -> DataLoader[Any]:
        """The same as validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The user's samples, one at a time."""
        sampler = UnpaddedSampler(len(self.predict_data), *self._rank())
        return self._loader(self.predict_data, batch_size=1, sampler=sampler, collate_fn=type(self).collate_prediction)
