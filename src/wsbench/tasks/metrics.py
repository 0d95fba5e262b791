"""Counters of an evaluation that never make the host wait for the device.

torchmetrics' own look at values while they are updated (validation, NaN checks, ``bincount``), which on a GPU is a
synchronization each; these only add. The sums over devices are torchmetrics'.
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class Counts(Metric):
    """Sums of counts (*), over all devices.

    Args:
        shape: of what is counted.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: Tensor | int) -> None:
        """Add those of a batch."""
        self.counts += counts

    def compute(self) -> Tensor:
        """Sums over all batches, of all devices after synchronization."""
        return self.counts


class Confusion(Metric):
    """Confusion matrix (targets by predictions, C x C), over all devices.

    Args:
        num_classes: C.
        ignore: target of samples that do not count.
    """

    full_state_update = False
    cells: Tensor

    def __init__(self, num_classes: int, ignore: int | None = None) -> None:
        super().__init__()
        self.num_classes, self.ignore = num_classes, ignore
        # the last two count ignored targets, and targets that are no class
        self.add_state("cells", torch.zeros(num_classes**2 + 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add a batch: int64, of any one shape."""
        predicted, target = predicted.flatten(), target.flatten()
        cells = target * self.num_classes + predicted
        cells = cells.masked_fill((target < 0) | (target >= self.num_classes), self.num_classes**2 + 1)
        if self.ignore is not None:
            cells.masked_fill_(target == self.ignore, self.num_classes**2)
        self.cells.scatter_add_(0, cells, torch.ones_like(cells))

    def compute(self) -> Tensor:
        """(C, C) int64.

        Raises:
            ValueError: a target was no class.
        """
        strangers = int(self.cells[-1])
        if strangers:
            raise ValueError(
                f"{strangers} targets are outside of the {self.num_classes} classes; the labels are those of other data"
            )
        return self.cells[: self.num_classes**2].view(self.num_classes, self.num_classes)
