"""What all datamodules share: where the data is, the training stream, evaluation that counts every sample once."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from wsbench.datamodules.errors import DatasetError, DatasetNotFoundError
from wsbench.datamodules.mini.store import ensure
from wsbench.datamodules.sampling import BatchError, StreamSampler, UnpaddedSampler
from wsbench.records import DataIdentity, SplitIdentity, checksum


class BenchmarkData(LightningDataModule, ABC):
    """A dataset in its official layout, or its miniature in the same layout.

    Args:
        root: folder of the dataset; default: the environment variable WSBENCH_DATA.
        miniature: use the miniature made of handwritten digits; ``root`` must not be given.
        num_classes: classes that labels are checked against.
        micro_batch: samples on a device in one micro-step.
        effective_batch: samples in an optimizer step; accumulation is derived from it, micro_batch and devices.
        steps_per_epoch: optimizer steps between evaluations and checkpoints; None is one pass over the data.
        eval_batch: samples on a device in evaluation.
        num_workers: processes that load data.
        pictures: a folder of what ``predict`` is to look at.
        seed: of shuffling and augmentation; the run's seed on the command line.
    """

    #: name on the command line
    task: ClassVar[str]
    #: what messages call the dataset
    title: ClassVar[str]
    #: writes the miniature: its NAME, and ``write(folder)``
    mini: ClassVar[ModuleType]
    #: collates a training or evaluation batch
    collate: ClassVar[Any] = None
    #: collates a batch of one for prediction
    collate_prediction: ClassVar[Any] = None

    def __init__(
        self,
        root: str | None = None,
        miniature: bool = False,
        num_classes: int = 10,
        micro_batch: int = 1,
        effective_batch: int = 16,
        steps_per_epoch: int | None = None,
        eval_batch: int = 1,
        num_workers: int = 4,
        pictures: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if miniature and root is not None:
            raise DatasetError("--data.miniature and --data.root exclude each other; add --data.miniature false")
        self.require_positive(micro_batch=micro_batch, effective_batch=effective_batch, eval_batch=eval_batch,
                              num_classes=num_classes, steps_per_epoch=steps_per_epoch or 1)  # fmt: skip
        self.miniature, self.num_classes, self.pictures, self.seed = miniature, num_classes, pictures, seed
        self.micro_batch, self.effective_batch, self.eval_batch = micro_batch, effective_batch, eval_batch
        self.steps_per_epoch, self.num_workers = steps_per_epoch, num_workers
        self._root = root
        self.train_data: Any = None
        self.val_data: Any = None
        self.predict_data: Any = None

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
                raise DatasetError(f"--data.{name} is a probability, got {value}")

    @staticmethod
    def require_range(**values: tuple[float, float]) -> None:
        """Refuse what is no range of positive numbers, by the option's name."""
        for name, (low, high) in values.items():
            if not 0 < low <= high:
                raise DatasetError(f"--data.{name} must be two positive numbers, the smaller first, got {[low, high]}")

    @staticmethod
    def require_room(resize: int, crop: int) -> None:
        """Refuse pictures to evaluate that are smaller than what is cut out of them."""
        if resize < crop:
            raise DatasetError(f"--data.resize {resize} is smaller than --data.crop {crop}")

    def require_classes(self, classes: Sequence[str]) -> None:
        """Refuse data of another number of classes."""
        if len(classes) != self.num_classes:
            raise DatasetError(f"there are {len(classes)} classes, expected {self.num_classes}; set --data.num_classes")

    @staticmethod
    @abstractmethod
    def is_present(root: Path) -> bool:
        """Whether the dataset lies under ``root``."""

    @abstractmethod
    def setup(self, stage: str) -> None:
        """Set ``train_data`` (fit), ``val_data`` (fit, validate, test) and ``predict_data`` (predict)."""

    @abstractmethod
    def identity(self) -> DataIdentity:
        """What the data is, for the record; after ``setup("fit")``."""

    @property
    def command(self) -> str:
        """The command that verifies the dataset."""
        return f"python -m wsbench data {self.task}"

    def prepare_data(self) -> None:
        """Make the miniature, once for all processes of a machine."""
        if self.miniature:
            ensure(self.mini.NAME, self.mini.write)

    def root(self) -> Path:
        """The folder of the dataset; DatasetNotFoundError if there is none."""
        if self.miniature:
            return ensure(self.mini.NAME, self.mini.write)
        text = self._root or os.environ.get("WSBENCH_DATA")
        root = Path(text).expanduser() if text else None
        if root is None or not self.is_present(root):
            raise DatasetNotFoundError(self.title, root, self.command)
        return root

    def prediction_folder(self, what: str) -> Path:
        """The folder named by --data.pictures; DatasetError if none was given or there is none."""
        if self.pictures is None:
            raise DatasetError(f"predict needs --data.pictures FOLDER, a folder of {what}")
        folder = Path(self.pictures).expanduser()
        if not folder.is_dir():
            raise DatasetError(f"'{folder}' is no folder; --data.pictures names a folder of {what} to predict")
        return folder

    def describe(
        self, official: str, is_official: bool, splits: Mapping[str, tuple[str, Sequence[str] | Iterable[str]]]
    ) -> DataIdentity:
        """The identity from ``{split: (name of its list, names of its samples)}``."""
        parts = {}
        for part, (listed, names) in splits.items():
            names = list(names)
            parts[part] = SplitIdentity(list=listed, count=len(names), checksum=checksum(names))
        name = self.mini.NAME if self.miniature else official if is_official else "custom"
        return DataIdentity(name=name, splits=parts)

    def steps_in_epoch(self) -> int:
        """Optimizer steps between evaluations."""
        return self.steps_per_epoch or max(1, len(self.train_data) // self.effective_batch)

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
            data, num_workers=workers, persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(), **kwargs
        )

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
