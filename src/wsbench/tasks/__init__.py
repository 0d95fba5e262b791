"""One LightningModule a task; base.py holds all that they share."""

from wsbench.tasks.base import BenchmarkTask
from wsbench.tasks.coco import COCODetection
from wsbench.tasks.imagenet import ImageNetClassification
from wsbench.tasks.modelnet40 import ModelNetClassification
from wsbench.tasks.something import SomethingClassification
from wsbench.tasks.voc import VOCSegmentation

#: a task's name to its class
TASK_CLASSES: dict[str, type[BenchmarkTask]] = {
    cls.task: cls
    for cls in (
        ImageNetClassification, SomethingClassification, VOCSegmentation, ModelNetClassification, COCODetection
    )
}  # fmt: skip

__all__ = [
    "TASK_CLASSES",
    "BenchmarkTask",
    "COCODetection",
    "ImageNetClassification",
    "ModelNetClassification",
    "SomethingClassification",
    "VOCSegmentation",
]
