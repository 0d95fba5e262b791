"""How many micro-steps a Trainer accumulates, derived from the data's effective batch."""

import weakref

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler

from wsbench.datamodules.sampling import accumulation
from wsbench.tasks.data import data_of
from wsbench.tasks.errors import TaskOptionError

#: what Trainers accumulate because it was derived, not because the user said it
_DERIVED: weakref.WeakKeyDictionary[Trainer, int] = weakref.WeakKeyDictionary()


def derive_accumulation(trainer: Trainer) -> None:
    """Let the Trainer accumulate what the data's effective batch asks for, where it leaves that open (1).

    Raises:
        TaskOptionError: the Trainer says another number.
        BatchError: the numbers do not divide.
    """
    data = data_of(trainer)
    whole = data.batch_in_step
    if trainer.accumulate_grad_batches == _DERIVED.pop(trainer, None):  # of an earlier fit, not the user's
        trainer.accumulate_grad_batches = 1
    if whole is None:
        return
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        raise TaskOptionError(
            "GradientAccumulationScheduler and --data.effective_batch both say how many samples a step has; leave the "
            "callback out, or use a DataLoader of your own"
        )
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise TaskOptionError(
            "--trainer.overfit_batches takes the sampler away, which deals samples out to optimizer steps; train on a "
            "small copy of the dataset instead"
        )
    derived = accumulation(whole, data.micro_batch, trainer.world_size)
    if trainer.accumulate_grad_batches not in (1, derived):
        raise TaskOptionError(
            f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} contradicts "
            f"--data.effective_batch {whole} = {data.micro_batch} per device x {derived} x {trainer.world_size} "
            f"device(s); leave it out, it is derived, or set effective_batch to "
            f"{data.micro_batch * trainer.accumulate_grad_batches * trainer.world_size}"
        )
    if trainer.accumulate_grad_batches != derived:
        _DERIVED[trainer] = derived
    trainer.accumulate_grad_batches = derived
