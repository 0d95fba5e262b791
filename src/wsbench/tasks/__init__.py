"""One LightningModule a task; base.py holds all that they share."""

import pkgutil
from typing import TYPE_CHECKING, Any

from wsbench.registry import TASKS, exported
from wsbench.tasks.base import BenchmarkTask

if TYPE_CHECKING:
    from wsbench.tasks.coco import COCODetection
    from wsbench.tasks.imagenet import ImageNetClassification
    from wsbench.tasks.modelnet40 import ModelNetClassification
    from wsbench.tasks.something import SomethingClassification
    from wsbench.tasks.voc import VOCSegmentation

__all__ = [
    "BenchmarkTask",
    "COCODetection",
    "ImageNetClassification",
    "ModelNetClassification",
    "SomethingClassification",
    "VOCSegmentation",
    "task_class",
]


def task_class(task: str) -> type[BenchmarkTask]:
    """The class of a task, which is imported now."""
    cls: type[BenchmarkTask] = pkgutil.resolve_name(TASKS[task].module)
    return cls


def __getattr__(name: str) -> Any:
    """``from wsbench.tasks import VOCSegmentation``: a task's class, imported when it is asked for."""
    return exported(__name__, name, (entry.module for entry in TASKS.values()))
