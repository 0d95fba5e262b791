"""The loss of a network over a fixed set of training samples, as a function that can be called again and again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn

from wsbench.configuration.restore import load_data
from wsbench.errors import UserError
from wsbench.norms import ACTIVATIONS, NormalizedLayer
from wsbench.norms.weight import WeightStandardization
from wsbench.tasks import BenchmarkTask

#: samples at a time where the loss does not depend on it
_AT_ONCE = 16


class ProblemError(UserError, ValueError):
    """A loss that cannot be analyzed; the message says why and what to do."""


@dataclass
class Problem:
    """A network and its loss over micro-batches that stay the same.

    The network runs in training mode, as it is trained, in the same micro-batches (which BN depends on); running
    statistics are put back after every evaluation and random draws are the same in each.
    """

    network: nn.Module
    """The network whose loss is looked at; any module."""
    batches: list[Any]
    """The micro-batches."""
    loss_of: Callable[[Any], tuple[Tensor, Tensor]]
    """A micro-batch to the sum of its items' losses and their number, through ``network``."""
    eligible: tuple[str, ...]
    """Names, in ``network``, of the layers that a weight normalization applies to."""

    @classmethod
    def of_run(cls, task: BenchmarkTask, settings: dict[str, Any], samples: int, device: str = "cpu") -> "Problem":
        """The first ``samples`` of a run's training stream, through the run's network.

        Args:
            task: as :func:`~wsbench.configuration.restore.load_run` returns it.
            settings: likewise.
            samples: how many training samples, augmented as the run's first ones are; rounded up to micro-batches.
            device: where.

        Raises:
            ProblemError: ``samples`` is not positive.
        """
        if samples < 1:
            raise ProblemError(f"--samples {samples}: at least 1")
        data = load_data(settings)
        if ACTIVATIONS[task.spec.act].facts.samplewise and task.additive_loss:
            data.micro_batch = max(data.micro_batch, min(samples, _AT_ONCE))
        data.effective_batch, data.steps_per_epoch = data.micro_batch, -(-samples // data.micro_batch)
        data.num_workers = 0
        data.prepare_data()
        data.setup("fit")
        task = task.to(device)
        batches = [move_data_to_device(batch, torch.device(device)) for batch in data.train_dataloader()]
        return cls(task.network, batches, task.loss, task.norm_report.eligible)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers that are looked at: all that a weight normalization applies to, with a trainable weight.

        Raises:
            ProblemError: there are none, or one has a weight normalization other than ``ws``.
        """
        modules = dict(self.network.named_modules())
        trainable = {n: modules[n] for n in self.eligible if modules[n].weight.requires_grad}
        for name, layer in trainable.items():
            if isinstance(layer, NormalizedLayer) and not isinstance(layer.method, WeightStandardization):
                raise ProblemError(f"layer '{name}' has '{layer.spec}'; curvature and shares are those of ws or none")
        if not trainable:
            raise ProblemError("no layer with a trainable weight is followed by a normalization layer")
        return trainable

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Training mode, and buffers and modes as they were afterwards."""
        modes = {module: module.training for module in self.network.modules()}
        buffers = {name: value.clone() for name, value in self.network.named_buffers()}
        self.network.train()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.network.named_buffers():
                    value.copy_(buffers[name])
            for module, mode in modes.items():
                module.training = mode

    @cached_property
    def number(self) -> float:
        """Items over all micro-batches, which the loss is divided by."""
        with self.undisturbed(), torch.no_grad():
            return sum(float(self.loss_of(batch)[1]) for batch in self.batches)

    def parts(self) -> Iterator[Tensor]:
        """Each micro-batch's part of the mean loss; their sum is the loss. Drawn alike every time."""
        number = self.number
        for i, batch in enumerate(self.batches):
            torch.manual_seed(i)
            yield self.loss_of(batch)[0] / number

    def loss_and_gradient(self, parameters: list[nn.Parameter]) -> tuple[float, list[Tensor]]:
        """The loss and its gradient with respect to ``parameters``, zeros where it has none."""
        total, sums = 0.0, [torch.zeros_like(p) for p in parameters]
        with self.undisturbed():
            for part in self.parts():
                grads = torch.autograd.grad(part, parameters, allow_unused=True)
                for kept, grad in zip(sums, grads, strict=True):
                    if grad is not None:
                        kept += grad
                total += float(part.detach())
        return total, sums
