"""COCO detection and instance segmentation: ``train2017``, ``val2017`` and ``annotations/instances_*2017.json``."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from pycocotools.coco import COCO as Annotations
from torch import Tensor
from torch.utils.data import Dataset

from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.mini import coco as mini
from wsbench.datamodules.pictures import PredictionFolder, collate_one, picture_paths, read_picture
from wsbench.datamodules.sampling import Draw, StreamSampler
from wsbench.records import DataIdentity

COUNTS = {"train": 117_266, "val": 5_000}
"""Of 118,287 training pictures 117,266 have a valid box."""


def folder(root: Path) -> Path:
    """``root`` or ``root/coco``, whichever holds the annotations."""
    return root if (root / "annotations").is_dir() else root / "coco"


def annotation_file(root: Path, split: str) -> Path:
    """``annotations/instances_{train,val}2017.json``."""
    return folder(root) / "annotations" / f"instances_{split}2017.json"


def is_present(root: Path) -> bool:
    """Whether COCO 2017 lies under ``root``."""
    return all(annotation_file(root, split).is_file() for split in ("train", "val"))


def read_annotations(path: Path) -> Annotations:
    """The annotations of a split; DatasetError if the file is missing or broken."""
    if not path.is_file():
        raise DatasetError(f"'{path}' is missing; unpack annotations_trainval2017.zip again")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            annotations = Annotations(str(path))
        for part in ("images", "annotations", "categories"):
            annotations.dataset[part]
    except (ValueError, KeyError, AssertionError) as error:
        raise DatasetError(f"'{path}' is no COCO annotation file: {error}; unpack it again") from error
    return annotations


def is_valid(objects: Sequence[dict[str, Any]]) -> bool:
    """Whether a training picture is kept: there is a box of more than a pixel each way (as maskrcnn-benchmark)."""
    return any(min(o["bbox"][2:]) > 1 for o in objects)


def _uniform(seed: int) -> float:
    return float(torch.rand((), generator=torch.Generator().manual_seed(seed)))


class CocoDataset(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Pictures and their instances.

    Args:
        pictures: folder of the pictures.
        annotations: as read by :func:`read_annotations`.
        numbers: category id to class number, 1 and up.
        train: drop pictures without a valid box, and crowds; mirror with probability ``flip``.
        flip: probability of the mirror.
        masks: whether samples hold masks.
    """

    def __init__(
        self, pictures: Path, annotations: Annotations, numbers: dict[int, int], train: bool, flip: float, masks: bool
    ) -> None:
        self.pictures, self.annotations, self.numbers = pictures, annotations, numbers
        self.train, self.flip, self.masks = train, flip, masks
        ids = sorted(annotations.imgs)
        self.ids = [i for i in ids if not train or is_valid(annotations.imgToAnns[i])]

    def __len__(self) -> int:
        return len(self.ids)

    def wide(self) -> list[int]:
        """1 for pictures that are wider than high, else 0: what aspect-ratio grouping keeps apart."""
        pictures = (self.annotations.imgs[i] for i in self.ids)
        return [int(picture["width"] > picture["height"]) for picture in pictures]

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, dict[str, Any]]:
        """uint8 (3, H, W), and ``boxes`` (n, 4; x1, y1, x2, y2), ``labels`` (n,), ``masks`` (n, H, W), ``image_id``."""
        number = self.ids[draw.index if isinstance(draw, Draw) else draw]
        facts = self.annotations.imgs[number]
        path = self.pictures / facts["file_name"]
        picture = read_picture(path)
        height, width = picture.shape[1:]
        if (height, width) != (facts["height"], facts["width"]):
            raise DatasetError(f"'{path}' is {width}x{height}, its annotation says {facts['width']}x{facts['height']}")
        if not self.train:
            return picture, {"image_id": number}
        target = self._target(number, height, width)
        if isinstance(draw, Draw) and _uniform(draw.seed) < self.flip:
            picture = picture.flip(2)
            boxes = target["boxes"]
            target["boxes"] = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            if self.masks:
                target["masks"] = target["masks"].flip(2)
        return picture, target

    def _target(self, number: int, height: int, width: int) -> dict[str, Any]:
        objects = [o for o in self.annotations.imgToAnns[number] if not o.get("iscrowd", 0)]
        corners = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).view(-1, 4)
        boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        objects = [o for o, k in zip(objects, kept.tolist(), strict=True) if k]
        labels = torch.tensor([self.numbers[o["category_id"]] for o in objects], dtype=torch.int64)
        target: dict[str, Any] = {"boxes": boxes[kept], "labels": labels, "image_id": number}
        if self.masks:
            drawn = [self.annotations.annToMask(o) for o in objects]
            stacked = np.stack(drawn) if drawn else np.zeros((0, height, width), np.uint8)
            target["masks"] = torch.from_numpy(stacked)
        return target


def collate(batch: list[tuple[Tensor, dict[str, Any]]]) -> dict[str, Any]:
    """Pictures of different sizes stay a list."""
    return {"images": [picture for picture, _ in batch], "targets": [target for _, target in batch]}


class COCO(BenchmarkData):
    """COCO 2017, or a dataset in its layout, or its miniature.

    Categories are numbered 1, 2, ... in the order of their ids; 0 is background.

    Args:
        num_classes: classes including background.
        masks: whether samples have masks; follows --model.network.
        flip: probability of the mirror.
        group_by_aspect: micro-batches of pictures that are all wide or all high, as the reference has them; each pass
            over the data then leaves out up to ``micro_batch - 1`` pictures of each kind.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds train2017, val2017 and annotations,
            or coco. ``eval_batch`` is best 1.
    """

    task = "coco"
    title = "COCO 2017"
    mini: ClassVar[ModuleType] = mini
    collate = staticmethod(collate)
    collate_prediction = staticmethod(collate_one)
    is_present = staticmethod(is_present)

    def __init__(
        self,
        num_classes: int = 81,
        masks: bool = True,
        flip: float = 0.5,
        group_by_aspect: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        self.require_probability(flip=flip)
        self.masks, self.flip, self.group_by_aspect = masks, flip, group_by_aspect
        self.classes: tuple[str, ...] = ()

    def setup(self, stage: str) -> None:
        """Read the annotations that ``stage`` needs."""
        if stage == "predict":
            paths = picture_paths(self.prediction_folder("pictures"))
            self.predict_data = PredictionFolder(paths, lambda path: read_picture(path, upright=True), "image")
            return
        root = self.root()
        self.val_annotations = read_annotations(annotation_file(root, "val"))
        categories = sorted(self.val_annotations.dataset["categories"], key=lambda c: int(c["id"]))
        if len(categories) + 1 != self.num_classes:
            raise DatasetError(
                f"'{annotation_file(root, 'val')}' has {len(categories)} categories, expected "
                f"{self.num_classes - 1} and background; set --data.num_classes"
            )
        self.category_ids = [int(c["id"]) for c in categories]
        self.classes = tuple(str(c["name"]) for c in categories)
        numbers = {category: i for i, category in enumerate(self.category_ids, start=1)}
        if stage == "fit":
            annotations = read_annotations(annotation_file(root, "train"))
            if {c["id"] for c in annotations.dataset["categories"]} != set(self.category_ids):
                raise DatasetError(f"'{annotation_file(root, 'train')}' has other categories than those of val")
            self.train_data = CocoDataset(folder(root) / "train2017", annotations, numbers, True, self.flip, self.masks)
            if not len(self.train_data):
                raise DatasetError(f"'{annotation_file(root, 'train')}' has no picture with a valid box")
        self.val_data = CocoDataset(folder(root) / "val2017", self.val_annotations, numbers, False, 0.0, False)

    def sampler(self) -> StreamSampler:
        """The training stream, by aspect ratio if asked for."""
        sampler = super().sampler()
        if self.group_by_aspect and self.micro_batch > 1:
            sampler.group_by(self.train_data.wide())
        return sampler

    def identity(self) -> DataIdentity:
        """Lists are picture ids with the number of their instances."""

        def names(data: CocoDataset) -> list[str]:
            return [f"{i} {len(data.annotations.imgToAnns[i])}" for i in data.ids]

        counts = {"train": len(self.train_data), "val": len(self.val_data)}
        splits = {"train": ("train2017", names(self.train_data)), "val": ("val2017", names(self.val_data))}
        return self.describe("coco2017", counts == COUNTS and self.num_classes == 81, splits)
