"""One LightningModule a task; base.py holds all that they share."""

from wsbench.tasks.base import BenchmarkTask
from wsbench.tasks.voc import VOCSegmentation

__all__ = ["BenchmarkTask", "VOCSegmentation"]
