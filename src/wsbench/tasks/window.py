"""Lightning's side of the accumulation window: effective weights once per optimizer step."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim import Optimizer
from typing_extensions import override

from wsbench.norms import AccumulationWindow, WindowError


class WindowCallback(Callback):
    """Drives an :class:`~wsbench.norms.AccumulationWindow` over a module's micro-steps; nothing without accumulation.

    Works with any module that optimizes automatically, on one device and under DDP.

    Args:
        simple_loop: of the window: training steps do nothing with weights but compute a loss.
        look_later: of the window's ``end``: the module looks at ``window.unseen`` before the optimizer steps.
    """

    def __init__(self, simple_loop: bool = False, look_later: bool = False) -> None:
        self.window: AccumulationWindow | None = None
        self._simple_loop, self._look_later = simple_loop, look_later
        self._checked = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a window over the layers that have a weight normalization."""
        # gradients that a strategy shards or averages have to reach it in the backward
        together = None if isinstance(trainer.strategy, SingleDeviceStrategy) else False
        window = AccumulationWindow(pl_module, self._simple_loop, together)
        if not len(window):
            window.close()
            return
        self.window, self._checked = window, False
        if trainer.accumulate_grad_batches > 1:
            self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise WindowError(
                f"the accumulation window works on one device and under DDP, not with "
                f"{type(trainer.strategy).__name__}; add --model.window false"
            )
        if not pl_module.automatic_optimization:
            raise WindowError(
                f"{type(pl_module).__name__} optimizes by itself, so the end of a window is not known; use "
                "AccumulationWindow.micro_step there instead of this callback"
            )
        self._checked = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A micro-step begins."""
        if self.window is not None:
            # an epoch's end cuts a window short
            last = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
            if not last and not self._checked:  # accumulation may be scheduled
                self._check(trainer, pl_module)
            with trainer.precision_plugin.train_step_context():
                self.window.begin(last)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A micro-step has ended; gradients are not unscaled, clipped or looked at yet."""
        if self.window is not None:
            self.window.end(self._look_later)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients of a window that was given up (an epoch was ended in its middle) are zeroed with the others."""
        if self.window is not None:
            self.window.forget()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Where the last training step was skipped (it returned None) there was no backward to end the window."""
        if self.window is None or not self.window.gathered:
            return
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            self.window.flush()
        else:  # gradients are unscaled already, and Lightning leaves the optimizer's step out
            self.window.drop()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.window is not None:
            self.window.close()
            self.window = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
