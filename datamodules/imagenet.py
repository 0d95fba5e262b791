"""ImageNet classification: ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``, or any dataset in such folders."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.mini import imagenet as mini
from wsbench.datamodules.pictures import PredictionFolder, collate_one, picture_paths, read_picture
from wsbench.datamodules.sampling import Draw, seeded
from wsbench.records import DataIdentity

COUNTS = {"train": 1_281_167, "val": 50_000}


def folder(root: Path) -> Path:
    """``root`` or ``root/ILSVRC2012``, whichever holds train and val."""
    return root if (root / "train").is_dir() else root / "ILSVRC2012"


def is_present(root: Path) -> bool:
    """Whether class folders for training and validation lie under ``root``."""
    return all(any(p.is_dir() for p in s.glob("n[0-9]*")) for s in (folder(root) / "train", folder(root) / "val"))


class _Folders(ImageFolder):  # type: ignore[misc]
    """torchvision's ImageFolder: a sample is a tensor and a label, a Draw seeds the transform."""

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        path, label = self.samples[draw.index if isinstance(draw, Draw) else draw]
        with seeded(draw.seed) if isinstance(draw, Draw) else nullcontext():
            return {"image": self.transform(read_picture(path)), "label": label}


class ImageNet(BenchmarkData):
    """ImageNet (ILSVRC 2012), or a dataset in class folders, or its miniature.

    Pictures stay uint8; the task normalizes them on the device. Classes are the folders' names in alphabetical order,
    which is the order of the published checkpoints.

    Args:
        num_classes: class folders that there must be.
        crop: side of the pictures.
        resize: shorter side that a picture to evaluate is resized to before its centre is cut out.
        scale: range of the area of the random crop, relative to the picture.
        flip: probability of the mirror.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds train and val, or ILSVRC2012.
    """

    task = "imagenet"
    title = "ImageNet (ILSVRC 2012)"
    mini: ClassVar[ModuleType] = mini
    collate_prediction = staticmethod(collate_one)
    is_present = staticmethod(is_present)

    def __init__(
        self,
        num_classes: int = 1000,
        crop: int = 224,
        resize: int = 256,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        self.require_positive(crop=crop, resize=resize)
        self.require_range(scale=scale)
        self.require_probability(flip=flip)
        self.require_room(resize, crop)
        self.train_transform = v2.Compose(
            [v2.RandomResizedCrop(crop, scale, antialias=True), v2.RandomHorizontalFlip(flip)]
        )
        self.val_transform = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(crop)])
        self.classes: tuple[str, ...] = ()

    def setup(self, stage: str) -> None:
        """Find the pictures that ``stage`` needs."""
        if stage == "predict":
            paths = picture_paths(self.prediction_folder("pictures"))
            self.predict_data = PredictionFolder(paths, self._read, "image")
            return
        place = folder(self.root())
        if stage == "fit":
            self.train_data = self._folders(place / "train", self.train_transform)
        self.val_data = self._folders(place / "val", self.val_transform)
        self.classes = tuple(self.val_data.classes)
        if stage == "fit" and self.train_data.classes != self.val_data.classes:
            differ = sorted(set(self.train_data.classes) ^ set(self.classes))
            raise DatasetError(f"train and val have different classes: {', '.join(differ[:5])} in one only")

    def _read(self, path: Path) -> Tensor:
        picture: Tensor = self.val_transform(read_picture(path, upright=True))
        return picture

    def _folders(self, path: Path, transform: Callable[[Tensor], Tensor]) -> Dataset[Any]:
        try:
            data = _Folders(str(path), transform)
        except FileNotFoundError as error:  # a class without pictures, or no classes
            raise DatasetError(f"'{path}': {error}; see `{self.command}`") from error
        if len(data.classes) != self.num_classes:
            raise DatasetError(
                f"'{path}' has {len(data.classes)} class folders, expected {self.num_classes}; set --data.num_classes"
            )
        return data

    def identity(self) -> DataIdentity:
        """Lists are the relative paths of the pictures."""
        counts = {"train": len(self.train_data), "val": len(self.val_data)}
        splits = {}
        for split, data in (("train", self.train_data), ("val", self.val_data)):
            prefix = len(data.root) + 1
            splits[split] = (split, [Path(path[prefix:]).as_posix() for path, _ in data.samples])
        return self.describe("imagenet1k", self.num_classes == 1000 and counts == COUNTS, splits)
