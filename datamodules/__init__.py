"""One LightningDataModule a dataset, reading the official on-disk layout."""

import pkgutil
from typing import TYPE_CHECKING, Any

from wsbench.datamodules.base import BenchmarkData
from wsbench.registry import TASKS, exported

if TYPE_CHECKING:
    from wsbench.datamodules.coco import COCO
    from wsbench.datamodules.imagenet import ImageNet
    from wsbench.datamodules.modelnet40 import ModelNet40
    from wsbench.datamodules.something import SomethingSomething
    from wsbench.datamodules.voc import VOC

__all__ = ["COCO", "VOC", "BenchmarkData", "ImageNet", "ModelNet40", "SomethingSomething", "data_class"]


def data_class(task: str) -> type[BenchmarkData]:
    """The class of a task's data, which is imported now."""
    cls: type[BenchmarkData] = pkgutil.resolve_name(TASKS[task].data)
    return cls


def __getattr__(name: str) -> Any:
    """``from wsbench.datamodules import VOC``: a dataset's class, imported when it is asked for."""
    return exported(__name__, name, (entry.data for entry in TASKS.values()))
