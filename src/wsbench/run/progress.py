"""Progress of a run: a rich bar on a terminal, plain lines in a log file."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from typing_extensions import override

from wsbench.run.report import duration


def _metrics(trainer: Trainer, *prefixes: str) -> str:
    """The last logged metrics whose names begin so, in one line."""
    chosen = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefixes)}
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(chosen.items()))


class PlainProgress(ProgressBar):
    """One line now and then: step, loss, learning rate, samples/s, time left. Rich's bar prints nothing into a file.

    Args:
        seconds: least time between two lines.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._enabled = True
        self._last = self._start = 0.0
        self._first_step = 0

    @override
    def disable(self) -> None:
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            print(*args, flush=True)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last = self._start = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if the last is old enough and a step has just ended."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = time.monotonic()
        done = trainer.global_step - self._first_step
        if now - self._last < self._seconds or not done or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._last = now
        total = trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)
        rate = done / (now - self._start)
        samples = rate * trainer.datamodule.effective_batch  # type: ignore[attr-defined]
        shown = _metrics(trainer, "train/", "val/")
        left = duration((total - trainer.global_step) / rate)
        self.print(f"step {trainer.global_step}/{total}  {shown}  {samples:.1f} samples/s  {left} left")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.print(f"step {trainer.global_step}  evaluated: {_metrics(trainer, 'val/')}")


class StepProgress(RichProgressBar):
    """Rich's bar for runs that end after a number of steps: Lightning's shows "Epoch 1/-2" and forgets accumulation."""

    @property
    def total_train_batches(self) -> int | float:
        """Micro-batches until the next evaluation."""
        return self.trainer.num_training_batches

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_steps <= 0:
            return f"epoch {current_epoch}"
        return f"from step {self.trainer.global_step} of {self.trainer.max_steps}"


def progress_callback() -> Callback:
    """The callback that suits standard output."""
    return StepProgress() if sys.stdout.isatty() else PlainProgress()
