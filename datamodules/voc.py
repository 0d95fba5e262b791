"""PASCAL VOC 2012 segmentation: ``VOCdevkit/VOC2012`` as it is unpacked, with the trainaug list where it was built."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from wsbench.datamodules.errors import DatasetError, DatasetNotFoundError
from wsbench.datamodules.mini import voc as mini
from wsbench.datamodules.mini.store import ensure
from wsbench.datamodules.sampling import Draw, StreamSampler, UnpaddedSampler
from wsbench.datamodules.transforms import (
    VOID,
    Interpolation,
    SegmentationTransform,
    mask_tensor,
    pad_to,
    to_normalized_tensor,
)

from wsbench.records import DataIdentity, SplitIdentity, checksum

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COUNTS = {"train": 1464, "val": 1449, "trainaug": 10582}
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
DATA_COMMAND = "python -m wsbench data voc"


class SegmentationSample(TypedDict):
    """One sample, or a batch of them with N in front."""

    image: Tensor
    """float32 (3, H, W), normalized."""
    mask: Tensor
    """uint8 (H, W): class numbers, 255 void."""


def devkit(root: Path) -> Path:
    """``root/VOCdevkit/VOC2012``."""
    return root / "VOCdevkit" / "VOC2012"


def is_present(root: Path) -> bool:
    """Whether VOC 2012 segmentation lies under ``root``."""
    return (devkit(root) / "ImageSets" / "Segmentation" / "val.txt").is_file()


def read_names(root: Path, split: str) -> list[str]:
    """The picture names of ``ImageSets/Segmentation/<split>.txt``."""
    path = devkit(root) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        how = f"`{DATA_COMMAND} --root {root}` builds it" if split == "trainaug" else f"see `{DATA_COMMAND}`"
        raise DatasetError(f"'{path}' is missing; {how}, or choose another list with --data.train_set")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def open_picture(path: Path) -> Image.Image:
    """Read a picture completely; a DatasetError names a file that cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError) as error:
        raise DatasetError(f"cannot read '{path}': {error}; replace the file") from error


class SegmentationDataset(Dataset[SegmentationSample]):
    """Pictures and masks by name.

    Args:
        root: folder that holds ``VOCdevkit``.
        names: picture names.
        labels: folder of the masks: ``SegmentationClass`` or ``SegmentationClassAug``.
        num_classes: masks hold 0 .. num_classes - 1 and 255; anything else is an error naming the file.
        transform: the training transform, drawn from the seed of each Draw; None is evaluation, full resolution.
        pad: evaluation only: pad right and bottom to this side, the mask with void.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: str,
        num_classes: int,
        transform: SegmentationTransform | None = None,
        pad: int = 0,
    ) -> None:
        folder = devkit(root)
        self.images = [folder / "JPEGImages" / f"{name}.jpg" for name in names]
        self.masks = [folder / labels / f"{name}.png" for name in names]
        self.num_classes, self.transform, self.pad = num_classes, transform, pad
        missing = [p for p in (*self.images, *self.masks) if not p.is_file()]
        if missing:
            some = ", ".join(f"'{p}'" for p in missing[:3])
            raise DatasetError(f"{len(missing)} files are missing, among them {some}; see `{DATA_COMMAND}`")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw | int) -> SegmentationSample:
        """Read one sample; a Draw says which and seeds its augmentation."""
        index = draw.index if isinstance(draw, Draw) else draw
        image, mask = open_picture(self.images[index]).convert("RGB"), open_picture(self.masks[index])
        self._check(index, image, mask)
        if self.transform is None:
            picture, labels = to_normalized_tensor(image), mask_tensor(mask)
            return {"image": pad_to(picture, self.pad, self.pad, 0.0), "mask": pad_to(labels, self.pad, self.pad, VOID)}
        if not isinstance(draw, Draw):
            raise TypeError("training samples are drawn with a seed: index with Draw(index, seed)")
        picture, labels = self.transform(image, mask, torch.Generator().manual_seed(draw.seed))
        return {"image": picture, "mask": labels}

    def _check(self, index: int, image: Image.Image, mask: Image.Image) -> None:
        path = self.masks[index]
        if mask.mode not in ("P", "L"):
            raise DatasetError(f"'{path}' is a {mask.mode} image; a mask is a palette or grey PNG of class numbers")
        if mask.size != image.size:
            raise DatasetError(f"'{path}' is {mask.size}, its picture {image.size} (width, height); they must agree")
        wrong = [value for _, value in mask.getcolors() or [] if isinstance(value, int)]
        wrong = sorted(v for v in wrong if self.num_classes <= v != VOID)
        if wrong:
            raise DatasetError(
                f"'{path}' holds class numbers {wrong[:5]}, expected 0 to {self.num_classes - 1} and {VOID} for void; "
                "set --data.num_classes"
            )


class PictureFolder(Dataset[dict[str, Any]]):
    """A folder of the user's pictures, for prediction."""

    def __init__(self, folder: Path, pad: int) -> None:
        if not folder.is_dir():
            raise DatasetError(f"'{folder}' is no folder; --data.pictures names a folder of pictures to predict")
        self.paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
        if not self.paths:
            raise DatasetError(f"no pictures in '{folder}' (looked for {', '.join(PICTURES)})")
        by_stem = {p.stem: p for p in self.paths}
        clash = next((p for p in self.paths if by_stem[p.stem] != p), None)
        if clash is not None:
            raise DatasetError(f"'{clash}' and '{by_stem[clash.stem]}' would write the same files; rename one")
        self.pad = pad

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The padded picture, its path and its size (H, W)."""
        picture = to_normalized_tensor(open_picture(self.paths[index]).convert("RGB"))
        padded = pad_to(picture, self.pad, self.pad, 0.0)
        return {"image": padded, "path": str(self.paths[index]), "size": tuple(picture.shape[1:])}


def _single(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate the one picture of a prediction batch; the user's pictures have any size."""
    (sample,) = batch
    return {**sample, "image": sample["image"][None]}


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
        self.miniature, self.train_set, self.val_set, self.train_labels = miniature, train_set, val_set, train_labels
        self.num_classes, self.crop, self.pictures, self.seed = num_classes, crop, pictures, seed
        self.micro_batch, self.effective_batch, self.eval_batch = micro_batch, effective_batch, eval_batch
        self.steps_per_epoch, self.num_workers = steps_per_epoch, num_workers
        self.transform = SegmentationTransform(crop, scale, flip, interpolation)
        self._root = root
        self.class_names = mini.CLASSES if miniature else CLASSES if num_classes == len(CLASSES) else ()

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
            self.train_data = SegmentationDataset(root, self.train_names, labels, self.num_classes, self.transform)
        self.val_names = read_names(root, self.val_set)
        self.val_data = SegmentationDataset(root, self.val_names, "SegmentationClass", self.num_classes, pad=self.crop)

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
                part: SplitIdentity(list=which, count=len(names), checksum=checksum(names))
                for part, which, names in splits
            },
        )

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
        return self._loader(self.predict_data, batch_size=1, sampler=sampler, collate_fn=_single)
