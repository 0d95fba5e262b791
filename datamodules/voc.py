"""PASCAL VOC 2012 segmentation: ``VOCdevkit/VOC2012`` as it is unpacked, with the trainaug list where it was built."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import lines_of
from wsbench.datamodules.mini import voc as mini
from wsbench.datamodules.pictures import collate_one
from wsbench.datamodules.segmentation import PictureFolder, SegmentationDataset
from wsbench.datamodules.transforms import Interpolation, SegmentationTransform
from wsbench.records import DataIdentity

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


def read_names(root: Path, split: str) -> list[str]:
    """The picture names of ``ImageSets/Segmentation/<split>.txt``."""
    path = devkit(root) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        how = f"`{DATA_COMMAND} --root {root}` builds it" if split == "trainaug" else f"see `{DATA_COMMAND}`"
        raise DatasetError(f"'{path}' is missing; {how}, or choose another list (--data.train_set, --data.val_set)")
    return lines_of(path)


class VOC(BenchmarkData):
    """PASCAL VOC 2012 segmentation, or a dataset in its layout, or its miniature.

    Args:
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
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds ``VOCdevkit/VOC2012``.
            ``eval_batch`` above 1 only where padding makes the pictures equally large.
    """

    task = "voc"
    title = "PASCAL VOC 2012"
    mini: ClassVar[ModuleType] = mini
    collate_prediction = staticmethod(collate_one)
    is_present = staticmethod(is_present)

    def __init__(
        self,
        train_set: str = "trainaug",
        val_set: str = "val",
        train_labels: Literal["auto", "SegmentationClass", "SegmentationClassAug"] = "auto",
        num_classes: int = 21,
        crop: int = 513,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        interpolation: Interpolation = "lanczos",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        self.require_positive(crop=crop)
        self.require_range(scale=scale)
        self.require_probability(flip=flip)
        self.train_set, self.val_set, self.train_labels, self.crop = train_set, val_set, train_labels, crop
        self.transform = SegmentationTransform(crop, scale, flip, interpolation)

    def setup(self, stage: str) -> None:
        """Read the lists that ``stage`` needs, and check that every file is there."""
        if stage == "predict":
            self.predict_data = PictureFolder(self.prediction_folder("pictures"), self.crop)
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
        """Lists, their counts and checksums; and whose masks VOC's own training pictures have."""
        official = self.num_classes == 21 and len(self.val_names) == COUNTS["val"]
        train = self.train_set + self._mask_source()
        return self.describe(
            "voc2012", official, {"train": (train, self.train_names), "val": (self.val_set, self.val_names)}
        )

    def _mask_source(self) -> str:
        """As the builder of SegmentationClassAug left it there."""
        source = self.train_data.masks[0].parent / MASK_SOURCE
        return f", {source.read_text().strip()} masks" if source.is_file() else ""
