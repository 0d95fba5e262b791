"""One LightningDataModule a dataset, reading the official on-disk layout."""

from wsbench.datamodules.voc import VOC

__all__ = ["VOC"]
