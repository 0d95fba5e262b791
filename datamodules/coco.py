"""COCO detection and instance segmentation: images, and ``annotations/instances_*2017.json``; or one's own."""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from pycocotools.coco import COCO as Annotations
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2.functional import (
    horizontal_flip_bounding_boxes,
    horizontal_flip_image,
    horizontal_flip_mask,
)
from torchvision.tv_tensors import BoundingBoxFormat

from wsbench.datamodules.annotations import doubtful, read_annotations
from wsbench.datamodules.base import BenchmarkData, Split
from wsbench.datamodules.cache import derived
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import inside
from wsbench.datamodules.mini import coco as mini
from wsbench.datamodules.pictures import collate_one, read_picture
from wsbench.datamodules.sampling import BatchError, Draw, StreamSampler

COUNTS = {"train": 117_266, "val": 5_000}
"""Of 118,287 training images 117,266 have a valid box."""
LAYOUT = """\
ROOT/ (or ROOT/coco/)
    annotations/instances_train2017.json, instances_val2017.json   COCO's format; also instances_train.json, train.json
    train2017/*.jpg, val2017/*.jpg                                 also train/ and val/, images/train2017/ ..., images/
COCO 2017: 118,287 + 5,000 images of 80 categories (annotations_trainval2017.zip, train2017.zip, val2017.zip)"""


@dataclass(frozen=True)
class Place:
    """A split: its annotation file and the folder of its images."""

    annotations: Path
    images: Path


def split_place(folder: Path, split: str) -> Place | None:
    """Where a split lies in a dataset's folder; None if it has no annotation file."""
    names = (f"annotations/instances_{split}2017.json", f"annotations/instances_{split}.json",
             f"annotations/{split}.json", f"{split}.json", f"{split}/_annotations.coco.json")  # fmt: skip
    annotations = next((folder / name for name in names if (folder / name).is_file()), None)
    if annotations is None:
        return None
    places = (f"{split}2017", split, f"images/{split}2017", f"images/{split}", "images", ".")
    return Place(annotations, next(folder / name for name in places if (folder / name).is_dir()))


def place(root: Path) -> Path | None:
    """``root`` or ``root/coco``, whichever holds annotations of train and val; DatasetError if of one only."""
    for folder in (root, root / "coco"):
        places = {split: split_place(folder, split) for split in ("train", "val")}
        complete = [place for place in places.values() if place is not None]
        if len(complete) == 2:
            return folder
        if complete:
            other = next(split for split, place in places.items() if place is None)
            raise DatasetError(
                f"'{complete[0].annotations}' is there, and no annotations of '{other}' are; looked for "
                f"'{folder}/annotations/instances_{other}2017.json', and for {other}.json"
            )
    return None


def is_valid(objects: Sequence[dict[str, Any]]) -> bool:
    """Whether a training image is kept: there is a box of more than a pixel each way (as maskrcnn-benchmark)."""
    return any(min(o["bbox"][2:]) > 1 for o in objects)


def _uniform(seed: int) -> float:
    return float(torch.rand((), generator=torch.Generator().manual_seed(seed)))


def labels_digest(annotations: Annotations) -> str:
    """SHA-256 of what annotations say, whatever the order of their fields and entries and how they are numbered."""
    digest = hashlib.sha256()
    content = annotations.dataset
    for category in sorted(content["categories"], key=lambda c: c["id"]):
        digest.update(f"{category['id']} {category['name']}\n".encode())
    for number in sorted(annotations.imgs):
        image = annotations.imgs[number]
        digest.update(f"{image['file_name']} {image['height']} {image['width']}\n".encode("utf-8", "surrogateescape"))
        lines = [
            json.dumps([o["category_id"], o["bbox"], o["iscrowd"], o["area"], o.get("segmentation")], sort_keys=True)
            for o in annotations.imgToAnns[number]
        ]
        digest.update("\n".join(sorted(lines)).encode())
    return digest.hexdigest()


class CocoDataset(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Images and their instances.

    Args:
        folder: of the images.
        annotations: as read by :func:`~wsbench.datamodules.annotations.read_annotations`.
        numbers: category id to class number, 1 and up; 0 is background.
        train: drop images without a valid box, and crowds; mirror with probability ``flip``.
        flip: probability of the mirror.
        masks: whether samples hold masks.
    """

    def __init__(
        self, folder: Path, annotations: Annotations, numbers: dict[int, int], train: bool, flip: float, masks: bool
    ) -> None:
        self.folder, self.annotations, self.numbers = folder, annotations, numbers
        self.train, self.flip, self.masks = train, flip, masks
        ids = sorted(annotations.imgs)
        self.ids = [i for i in ids if not train or is_valid(annotations.imgToAnns[i])]

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """The image of a sample."""
        return inside(self.folder, self.annotations.imgs[self.ids[index]]["file_name"])

    def wide(self) -> list[int]:
        """1 for images that are wider than high, else 0: what aspect-ratio grouping keeps apart."""
        images = (self.annotations.imgs[i] for i in self.ids)
        return [int(image["width"] > image["height"]) for image in images]

    def files(self) -> list[str]:
        """The files of the samples."""
        return [f"{self.folder}/{self.annotations.imgs[number]['file_name']}" for number in self.ids]

    def check(self, index: int) -> None:
        """Read an image and its objects; DatasetError if it cannot be done."""
        self[index]

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, dict[str, Any]]:
        """uint8 (3, H, W), and ``boxes`` (n, 4; x1, y1, x2, y2), ``labels`` (n,), ``masks`` (n, H, W), ``image_id``."""
        index = draw.index if isinstance(draw, Draw) else draw
        number, path = self.ids[index], self.path(index)
        facts = self.annotations.imgs[number]
        image = read_picture(path)
        height, width = image.shape[1:]
        if (height, width) != (facts["height"], facts["width"]):
            raise DatasetError(f"'{path}' is {width}x{height}, its annotation says {facts['width']}x{facts['height']}")
        if not self.train:
            return image, {"image_id": number}
        target = self._target(number, height, width)
        if isinstance(draw, Draw) and _uniform(draw.seed) < self.flip:
            image = horizontal_flip_image(image)
            target["boxes"] = horizontal_flip_bounding_boxes(target["boxes"], BoundingBoxFormat.XYXY, (height, width))
            if self.masks:
                target["masks"] = horizontal_flip_mask(target["masks"])
        return image, target

    def _target(self, number: int, height: int, width: int) -> dict[str, Any]:
        objects = [o for o in self.annotations.imgToAnns[number] if not o["iscrowd"]]
        corners = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).view(-1, 4)
        boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
        boxes = clip_boxes_to_image(boxes, (height, width))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)  # v2's sanitizing would drop objects narrower than a pixel, too
        objects = [o for o, k in zip(objects, kept.tolist(), strict=True) if k]
        labels = torch.tensor([self.numbers[o["category_id"]] for o in objects], dtype=torch.int64)
        target: dict[str, Any] = {"boxes": boxes[kept], "labels": labels, "image_id": number}
        if self.masks:
            drawn = [self._mask(o) for o in objects]
            stacked = np.stack(drawn) if drawn else np.zeros((0, height, width), np.uint8)
            target["masks"] = torch.from_numpy(stacked)
        return target

    def _mask(self, annotation: dict[str, Any]) -> Any:
        try:
            return self.annotations.annToMask(annotation)
        except (ValueError, TypeError, IndexError) as error:
            image = self.annotations.imgs[annotation["image_id"]]["file_name"]
            raise DatasetError(f"the segmentation of an object in image {annotation['image_id']} ('{image}', box "
                               f"{annotation['bbox']}) cannot be drawn: {error}") from error  # fmt: skip


def collate(batch: list[tuple[Tensor, dict[str, Any]]]) -> dict[str, Any]:
    """Images of different sizes stay a list."""
    return {"images": [image for image, _ in batch], "targets": [target for _, target in batch]}


class COCO(BenchmarkData):
    """COCO 2017, or a dataset in its layout, or its miniature.

    Categories are numbered 1, 2, ... in the order of their ids; 0 is background, which ``num_classes`` does not count.

    Args:
        masks: whether samples have masks; follows --model.network.
        flip: probability of the mirror.
        group_by_aspect: micro-batches of images that are all wide or all high, as the reference has them; each pass
            over the data then leaves out up to ``micro_batch - 1`` images of each kind.
        kwargs: of :class:`~wsbench.datamodules.base.BenchmarkData`; ``root`` holds images and annotations, or coco.
            ``eval_batch`` is best 1.
    """

    task = "coco"
    fewest_classes = 1
    title = "A detection dataset (COCO 2017, or one in its format)"
    layout = LAYOUT
    looked_for = "annotations/instances_train2017.json and instances_val2017.json, or other names"
    mini: ClassVar[ModuleType] = mini
    collate = staticmethod(collate)
    collate_prediction = staticmethod(collate_one)
    place = staticmethod(place)

    def __init__(
        self,
        masks: bool = True,
        flip: float = 0.5,
        group_by_aspect: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.require_probability(flip=flip)
        self.masks, self.flip, self.group_by_aspect = masks, flip, group_by_aspect
        self._places: dict[str, Place] = {}

    def read(self, train: bool) -> None:
        """Read the annotations, and look for the images."""
        folder = self.folder()
        for split in ("train", "val"):
            self._places[split] = self._place(folder, split)
        if self.val_data is None:
            # evaluation needs masks where they are predicted; a crowd's are run lengths
            self.val_data = self._dataset("val")
            if not any(not one["iscrowd"] for one in self.val_data.annotations.dataset["annotations"]):
                raise DatasetError(f"'{self._places['val'].annotations}': all objects are crowds ('iscrowd' 1), which "
                                   "are not evaluated")  # fmt: skip
        if train and self.train_data is None:
            self.train_data = self._dataset("train")
            if not len(self.train_data):
                raise DatasetError(f"'{self._places['train'].annotations}' has no image with a valid box: a 'bbox' "
                                   "[x, y, width, height] of more than a pixel each way")  # fmt: skip
            self.doubt_shared(*(data.files() for data in (self.train_data, self.val_data)))

    @staticmethod
    def _place(folder: Path, split: str) -> Place:
        place = split_place(folder, split)
        assert place is not None
        return place

    def _dataset(self, split: str) -> CocoDataset:
        where = self._places[split]
        annotations = read_annotations(where.annotations, where.images, self.masks)
        categories = {int(c["id"]): str(c["name"]) for c in annotations.dataset["categories"]}
        ids = sorted(categories)
        if split == "val":
            self.val_annotations, self.category_ids = annotations, ids
            self.take_classes([categories[i] for i in ids])
        else:
            ours = dict(zip(self.category_ids, self.classes, strict=True))
            differ = sorted(i for i in {*ours, *categories} if ours.get(i) != categories.get(i))
            if differ:
                raise DatasetError(
                    f"'{where.annotations}' and '{self._places['val'].annotations}' give category {differ[0]} other "
                    f"names: '{categories.get(differ[0], 'none')}' and '{ours.get(differ[0], 'none')}' "
                    f"({len(differ)} categories differ)"
                )
        for text in doubtful(annotations, self.max_dropped):
            self.doubt(f"'{where.annotations}': {text}")
        names = [image["file_name"] for image in annotations.dataset["images"]]
        missing = [name for name in names if not inside(where.images, name).is_file()]
        if missing:
            raise DatasetError(
                f"{len(missing)} images of '{where.annotations}' are missing in '{where.images}', among them "
                f"{', '.join(missing[:3])}; unpack them there"
            )
        numbers = {category: i for i, category in enumerate(self.category_ids, start=1)}
        train = split == "train"
        return CocoDataset(where.images, annotations, numbers, train, self.flip if train else 0.0, train and self.masks)

    @property
    def shown_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Not turned as a camera says: as it is evaluated."""
        return "image", read_picture

    @property
    def prediction_reader(self) -> tuple[str, Callable[[Path], Any]]:
        """Images of any size."""
        return "image", partial(read_picture, upright=True)

    def sampler(self) -> StreamSampler:
        """The training stream, by aspect ratio if asked for."""
        sampler = super().sampler()
        if self.group_by_aspect and self.micro_batch > 1:
            try:
                sampler.group_by(self.train_data.wide())
            except ValueError as error:
                raise BatchError(f"--data.group_by_aspect: {error}; set it to false") from error
        return sampler

    def part(self, indices: Sequence[int], train: bool) -> CocoDataset:
        """Some samples of the training list."""
        chosen: CocoDataset = copy.copy(self.train_data)
        chosen.ids = [chosen.ids[i] for i in indices]
        if not train:
            chosen.train, chosen.flip, chosen.masks = False, 0.0, False
        return chosen

    def describe(self) -> dict[str, Split]:
        """Samples are image ids with the number of their instances; labels are what the annotations say."""
        splits = {}
        for split, data in (("train", self.train_data), ("val", self.val_data)):
            if data is not None:
                names = [f"{i} {len(data.annotations.imgToAnns[i])}" for i in data.ids]
                digest = derived("coco", self._places[split].annotations, partial(labels_digest, data.annotations))
                splits[split] = Split(f"{split}2017", names, digest)
        return splits

    @property
    def official(self) -> str:
        """COCO 2017."""
        return "coco2017"

    @property
    def resembles_official(self) -> bool:
        """80 categories, persons and others."""
        return len(self.classes) == 80 and self.classes[0] == "person"

    @property
    def official_counts(self) -> dict[str, int]:
        """117,266 with a valid box, and 5,000."""
        return COUNTS

    def remedy(self, split: str) -> str:
        """Which archives to unpack again."""
        return f"unpack annotations_trainval2017.zip and {split}2017.zip again"
