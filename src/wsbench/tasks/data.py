"""What a task asks of its data, and how a plain DataLoader answers."""

import math
import os
from typing import Any, Protocol, cast

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from wsbench.datamodules.base import BenchmarkData
from wsbench.errors import UserError


class BatchUnknownError(UserError, ValueError):
    """A DataLoader that does not say how many samples a batch has."""


class TrainingData(Protocol):
    """The contract between a task and the data that a Trainer feeds it.

    :class:`~wsbench.datamodules.base.BenchmarkData` keeps it; :class:`LoaderData` keeps it for a DataLoader of the
    user's own.
    """

    @property
    def micro_batch(self) -> int:
        """Samples on one device in one micro-step."""

    @property
    def seed(self) -> int:
        """Of all that is drawn in training."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; empty if the data has none."""

    @property
    def batch_in_step(self) -> int | None:
        """Samples in an optimizer step over all devices, if the data says it; None: the Trainer's matter."""

    def steps_in_epoch(self) -> int:
        """Optimizer steps between evaluations."""

    def expected_evaluations(self) -> int | None:
        """Samples that one evaluation must count, over all devices; None if that is not known."""

    def sample_name(self, index: int) -> str:
        """What an evaluation sample is called in messages."""


class ModuleData:
    """The contract, kept by one of wsbench's datamodules."""

    def __init__(self, module: BenchmarkData) -> None:
        self.module = module
        self.micro_batch, self.seed = module.micro_batch, module.seed

    @property
    def classes(self) -> tuple[str, ...]:
        """The data's."""
        return self.module.classes

    @property
    def batch_in_step(self) -> int | None:
        """The option ``effective_batch``."""
        return self.module.effective_batch

    def steps_in_epoch(self) -> int:
        """The datamodule's."""
        return self.module.steps_in_epoch()

    def expected_evaluations(self) -> int | None:
        """Samples of the evaluation split: each is to be evaluated once."""
        return len(self.module.val_data)

    def sample_name(self, index: int) -> str:
        """Its file, where it has one."""
        path = getattr(self.module.val_data, "path", None)
        return f"'{path(index)}'" if path is not None else f"sample {index}"


class LoaderData:
    """The contract, kept by a DataLoader of the user's own: its batch is a micro-batch, the Trainer accumulates."""

    classes: tuple[str, ...] = ()
    batch_in_step = None

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.seed = int(os.environ.get("PL_GLOBAL_SEED") or 0)

    def _loader(self) -> DataLoader[Any]:
        if self._trainer.train_dataloader is None:
            self._trainer.fit_loop.setup_data()
        return cast("DataLoader[Any]", self._trainer.train_dataloader)

    @property
    def micro_batch(self) -> int:
        """The loader's ``batch_size``.

        Raises:
            BatchUnknownError: it has none.
        """
        size = getattr(self._loader(), "batch_size", None)
        if not size:
            raise BatchUnknownError(
                "the training DataLoader does not say its batch_size, so gradients cannot be averaged over samples; "
                "build it with batch_size=N, or use one of wsbench's datamodules"
            )
        return int(size)

    def steps_in_epoch(self) -> int:
        """Batches over the Trainer's accumulation, the incomplete last one counted."""
        self._loader()
        return max(1, math.ceil(self._trainer.num_training_batches / self._trainer.accumulate_grad_batches))

    def expected_evaluations(self) -> None:
        """Not known: its sampler may repeat or leave out samples."""
        return

    def sample_name(self, index: int) -> str:
        """A loader of the user's own has no file names: its index."""
        return f"sample {index}"


def data_of(trainer: Trainer) -> TrainingData:
    """The data that a Trainer was given, as tasks ask for it."""
    module = getattr(trainer, "datamodule", None)
    if isinstance(module, BenchmarkData) and _is_attached(trainer, module):
        return ModuleData(module)
    return LoaderData(trainer)


def _is_attached(trainer: Trainer, module: BenchmarkData) -> bool:
    """Whether the datamodule is what this call of the Trainer was given.

    A Trainer keeps the one of an earlier call when it is then given a DataLoader. There is no public way to tell.
    """
    loop = {"fit": trainer.fit_loop, "validate": trainer.validate_loop, "test": trainer.test_loop}.get(
        trainer.state.fn or ""
    )
    source = getattr(getattr(loop, "_data_source", None), "instance", module)
    return source is module
