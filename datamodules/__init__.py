"""One LightningDataModule a dataset, reading the official on-disk layout."""

from wsbench.datamodules.coco import COCO
from wsbench.datamodules.imagenet import ImageNet
from wsbench.datamodules.modelnet40 import ModelNet40
from wsbench.datamodules.something import SomethingSomething
from wsbench.datamodules.voc import VOC

__all__ = ["COCO", "VOC", "ImageNet", "ModelNet40", "SomethingSomething"]
