"""PASCAL VOC 2012 segmentation: ``VOCdevkit/VOC2012`` as it is unpacked, with the trainaug list where it was built."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from wsbench.datamodules.errors import DatasetError, DatasetNotFoundError
from wsbench.datamodules.mini import voc as mini
from wsbench.datamodules.mini.store import ensure
from wsbench.datamodules.sampling import BatchError, StreamSampler, UnpaddedSampler
from wsbench.datamodules.segmentation import PictureFolder, SegmentationDataset, single
from wsbench.datamodules.transforms import Interpolation, SegmentationTransform
from wsbench.records import DataIdentity, SplitIdentity, checksum

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COUNTS = {"train": 1464, "val": 1449, "trainaug": 10582}
MASK_SOURCE = "source.txt"
DATA_COMMAND = "python -m wsbench data voc"


def devkit(root: Path) -> Path:
    """``root/VOCdevkit/VOC2012``."""
    return root / "VOCdevkit" / "VOC2012"


def is_present(root: Path) -> bool:
    """Whether VOC 2012 segmentation lies under ``root``."""
    return (devkit(root) / "ImageSets" / "Segmentation" / "val.txt").is_file()


def lines_of(path: Path) -> list[str]:
    """The lines of a list file, without empty ones."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def read_names(root: Path, split: str) -> list[str]:
    """The picture names of ``ImageSets/Segmentation/<split>.txt``."""
    path = devkit(root) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        how = f"`{DATA_COMMAND} --root {root}` builds it" if split == "trainaug" else f"see `{DATA_COMMAND}`"
        raise DatasetError(f"'{path}' is missing; {how}, or choose another list (--data.train_set, --data.val_set)")
    return lines_of(path)


class VOC(LightningDataModule):
    """PASCAL VOC 2012 segmentation, or a dataset in its layout, or its miniature.

    Args:
        root: folder that holds ``VOCdevkit/VOC2012``; default: the environment variable WSBENCH_DATA.
        miniature: use the miniature made of handwritten digits; ``root`` must not be given.
        train_set: ``trainaug``, the 10,582 pictures built by `python -m wsbench data voc`, or another list in
            ``ImageSets/Segmentation``.
        val_set: the list to evaluate on.
        train_labels: folder of the training masks; ``auto`` is SegmentationClassAug for ``trainaug``, else
            SegmentationClass. Evaluation always uses SegmentationClass.
        num_classes: classes including background.
        crop: side of the training crop in pixels, and what smaller evaluation pictures are padded to.
        scale: range of the random scale.
        flip: probability of the mirror.
        interpolation: for scaling pictures.
        micro_batch: pictures on a device in one micro-step.
        effective_batch: pictures in an optimizer step; accumulation is derived from it, micro_batch and devices.
        steps_per_epoch: optimizer steps between evaluations and checkpoints; None is one pass over the data.
        eval_batch: pictures on a device in evaluation; above 1 only where padding makes them equally large.
        num_workers: processes that load data.
        pictures: a folder of pictures for ``predict``.
        seed: of shuffling and augmentation; the run's seed on the command line.
    """

    def __init__(
        self,
        root: str | None = None,
        miniature: bool = False,
        train_set: str = "trainaug",
        val_set: str = "val",
        train_labels: Literal["auto", "SegmentationClass", "SegmentationClassAug"] = "auto",
        num_classes: int = 21,
        crop: int = 513,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        interpolation: Interpolation = "lanczos",
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
        for name, value in {"micro_batch": micro_batch, "effective_batch": effective_batch, "crop": crop,
                            "eval_batch": eval_batch, "steps_per_epoch": steps_per_epoch or 1}.items():  # fmt: skip
            if value < 1:
                raise BatchError(f"--data.{name} must be at least 1, got {value}")
        if not 0 < scale[0] <= scale[1]:
            raise DatasetError(f"--data.scale must be two positive numbers, the smaller first, got {list(scale)}")
        if not 0 <= flip <= 1:
            raise DatasetError(f"--data.flip is a probability, got {flip}")
        self.miniature, self.train_set, self.val_set, self.train_labels = miniature, train_set, val_set, train_labels
        self.num_classes, self.crop, self.pictures, self.seed = num_classes, crop, pictures, seed
        self.micro_batch, self.effective_batch, self.eval_batch = micro_batch, effective_batch, eval_batch
        self.steps_per_epoch, self.num_workers = steps_per_epoch, num_workers
        self.transform = SegmentationTransform(crop, scale, flip, interpolation)
        self._root = root

    def prepare_data(self) -> None:
        """Make the miniature, once for all processes of a machine."""
        if self.miniature:
            ensure(mini.NAME, mini.write)

    def root(self) -> Path:
        """The folder that holds VOCdevkit; DatasetNotFoundError if there is none."""
        if self.miniature:
            return ensure(mini.NAME, mini.write)
        text = self._root or os.environ.get("WSBENCH_DATA")
        root = Path(text).expanduser() if text else None
        if root is None or not is_present(root):
            raise DatasetNotFoundError("PASCAL VOC 2012", root, DATA_COMMAND)
        return root

    def setup(self, stage: str) -> None:
        """Read the lists that ``stage`` needs, and check that every file is there."""
        if stage == "predict":
            if self.pictures is None:
                raise DatasetError("predict needs --data.pictures FOLDER, a folder of pictures")
            self.predict_data = PictureFolder(Path(self.pictures).expanduser(), self.crop)
            return
        root = self.root()
        if stage == "fit":
            labels = self.train_labels
            if labels == "auto":
                labels = "SegmentationClassAug" if self.train_set == "trainaug" else "SegmentationClass"
            self.train_names = read_names(root, self.train_set)
            self.train_data = self._dataset(root, self.train_names, labels, transform=self.transform)
        self.val_names = read_names(root, self.val_set)
        self.val_data = self._dataset(root, self.val_names, "SegmentationClass", pad=self.crop)

    def _dataset(self, root: Path, names: Sequence[str], labels: str, **kwargs: Any) -> SegmentationDataset:
        folder = devkit(root)
        images = [folder / "JPEGImages" / f"{name}.jpg" for name in names]
        masks = [folder / labels / f"{name}.png" for name in names]
        return SegmentationDataset(images, masks, self.num_classes, help_command=DATA_COMMAND, **kwargs)

    def identity(self) -> DataIdentity:
        """What the data is, for the record; after ``setup("fit")``."""
        official = self.num_classes == 21 and len(self.val_names) == COUNTS["val"]
        name = mini.NAME if self.miniature else "voc2012" if official else "custom"
        splits: Iterable[tuple[str, str, list[str]]] = (
            ("train", self.train_set, self.train_names),
            ("val", self.val_set, self.val_names),
        )
        return DataIdentity(
            name=name,
            splits={
                part: SplitIdentity(list=which + self._mask_source(part), count=len(names), checksum=checksum(names))
                for part, which, names in splits
            },
        )

    def _mask_source(self, part: str) -> str:
        """Whose masks VOC's own training pictures have, as the builder of SegmentationClassAug left it there."""
        source = self.train_data.masks[0].parent / MASK_SOURCE
        return f", {source.read_text().strip()} masks" if part == "train" and source.is_file() else ""

    def sampler(self) -> StreamSampler:
        """The training stream of this device."""
        rank, world_size = self._rank()
        steps = self.steps_per_epoch or max(1, len(self.train_data) // self.effective_batch)
        batches = (self.effective_batch, self.micro_batch)
        return StreamSampler(len(self.train_data), steps, *batches, self.seed, rank, world_size, self._steps_taken)

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
        return self._loader(self.train_data, batch_size=self.micro_batch, sampler=self.sampler())

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation picture once, over all devices."""
        sampler = UnpaddedSampler(len(self.val_data), *self._rank())
        return self._loader(self.val_data, batch_size=self.eval_batch, sampler=sampler)

    def test_dataloader(self) -> DataLoader[Any]:
        """The same as validation: VOC's test masks are not public."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The user's pictures, one at a time."""
        sampler = UnpaddedSampler(len(self.predict_data), *self._rank())
        return self._loader(self.predict_data, batch_size=1, sampler=sampler, collate_fn=single)
