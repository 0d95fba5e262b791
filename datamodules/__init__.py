"""One LightningDataModule a dataset, reading the official on-disk layout."""

from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.coco import COCO
from wsbench.datamodules.imagenet import ImageNet
from wsbench.datamodules.modelnet40 import ModelNet40
from wsbench.datamodules.something import SomethingSomething
from wsbench.datamodules.voc import VOC

#: a task's name to its data
DATA_CLASSES: dict[str, type[BenchmarkData]] = {
    cls.task: cls for cls in (ImageNet, SomethingSomething, VOC, ModelNet40, COCO)
}

__all__ = ["COCO", "DATA_CLASSES", "VOC", "BenchmarkData", "ImageNet", "ModelNet40", "SomethingSomething"]
