"""When a run writes checkpoints between epochs, and how it stops when it is told to: whole steps, and resumable."""

import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from wsbench.errors import UserError
from wsbench.options import parse_duration
from wsbench.run.folder import LAST
from wsbench.run.signals import Echo

#: what ends a run at its next optimizer step; a second one ends it at once
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: EX_TEMPFAIL: nothing is wrong, and the run is not finished
UNFINISHED = 75
#: seconds of training that may be lost where evaluation follows, in which no checkpoint can be written
_BEFORE_EVALUATION = 60.0


class Interrupted(UserError):
    """A run that has stopped because it was told to.

    Args:
        message: by what, where it is, and how to resume it.
        exit_status: of the process: 128 + N for signal N, as shells and schedulers count.
    """

    label = ""  # nothing is wrong

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Every(NamedTuple):
    """How often checkpoints are written between epochs; neither: not at all."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Every":
        """``10m``, ``1h30m``, ``90s``: by time; ``500``: by optimizer steps; ``never``.

        Raises:
            ValueError: it is none of them.
        """
        text = text.strip()
        if text == "never":
            return cls()
        if text.isdecimal() and int(text):
            return cls(steps=int(text))
        try:
            return cls(seconds=parse_duration(text))
        except ValueError as error:
            raise ValueError(f"{error}, no number of optimizer steps such as 500, and not never") from error


def seconds_of(max_time: Any) -> float | None:
    """Lightning's ``max_time``: None, ``DD:HH:MM:SS``, a mapping of timedelta's arguments, or a timedelta.

    Raises:
        UserError: it is none of them.
    """
    if max_time is None:
        return None
    if isinstance(max_time, timedelta):
        return max_time.total_seconds()
    with suppress(ValueError, TypeError):
        if isinstance(max_time, Mapping):
            return timedelta(**{k: float(v) for k, v in max_time.items()}).total_seconds()
        days, hours, minutes, seconds = (int(part) for part in str(max_time).split(":"))
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    raise UserError(f"--trainer.max_time '{max_time}': expected DD:HH:MM:SS, such as 00:12:00:00 for twelve hours")


class Stopping(Callback):
    """Writes ``last.ckpt`` every so often, and when the run is told to stop; always between optimizer steps.

    Devices agree in the reduction that each optimizer step has anyway (``asks`` and ``asked`` of the task): the first
    one's clock counts, and a signal to any of them stops all.

    Args:
        folder: the run's; None: no checkpoints are written.
        every: how often.
        max_seconds: how long this start may train; None: as long as it takes.
    """

    def __init__(self, folder: Path | None, every: Every, max_seconds: float | None = None) -> None:
        self.folder, self.every, self.max_seconds = folder, every, max_seconds
        self._signal: int | None = None
        self._echo = Echo()
        self._started = self._saved_at = time.monotonic()
        self._saved_step = 0
        #: step that a checkpoint of this folder holds; None: there is none
        self.step_on_disk: int | None = None
        self._batches = (0, 0, 1)
        self._device, self._in_fit = 0, False
        #: exit status and words, once all devices know
        self._reason: tuple[int, str] | None = None
        self._handlers: dict[int, Any] = {}

    # -- signals ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Lightning has registered its own by now, and puts back what was there before when it tears down."""
        if threading.current_thread() is not threading.main_thread() or self._handlers:
            return
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._note)

    def _let_go(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._echo() and number == self._signal:
            return
        if self._signal is not None:
            raise self._interrupted(_by(number))
        self._signal = number
        if not self._device and self._in_fit:
            print(f"\nwsbench: {signal.Signals(number).name}: stopping after this optimizer step; once more: at once",
                  flush=True)  # fmt: skip

    def _interrupted(self, reason: tuple[int, str], step: int | None = None) -> Interrupted:
        status, why = reason
        if not self._in_fit:
            return Interrupted(f"stopped by {why}", status)
        if self.folder is None:
            kept = "checkpoints are switched off, so it starts over"
        elif self.step_on_disk is None:
            kept = "no checkpoint had been written yet, so it starts over"
        else:
            kept = (
                f"'{self.folder / LAST}' holds step {self.step_on_disk}; the same command with --ckpt_path auto resumes"
            )
        return Interrupted(f"stopped by {why}{'' if step is None else f' at step {step}'}: {kept}", status)

    # -- in the loop ------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember which device this is."""
        self._device, self._in_fit = trainer.global_rank, self._in_fit or stage == "fit"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; tell other callbacks that a resumed run has been saved where it is."""
        task: Any = pl_module
        task.asks = self._asks
        self._started = self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        if trainer.global_step:
            self.step_on_disk = trainer.global_step
        for callback in trainer.checkpoint_callbacks:
            # else one with every_n_train_steps writes in the middle of the first window, over a good checkpoint
            if trainer.global_step and hasattr(callback, "_last_global_step_saved"):
                callback._last_global_step_saved = trainer.global_step
        loop: Any = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = _nothing  # a wait in each micro-step for what is agreed once a step
        self._listen()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop, where an epoch has ended since the run was told to; remember where in the epoch it is."""
        if self._reason is not None:
            raise self._interrupted(self._reason, trainer.global_step)
        self._batches = (batch_idx + 1, int(trainer.num_training_batches), trainer.accumulate_grad_batches)

    def _asks(self) -> tuple[bool, ...]:
        """Of this device: whether each of :data:`SIGNALS` came, the time is over, a checkpoint is due."""
        done, whole, accumulate = self._batches
        now, first = time.monotonic(), self._device == 0
        late = first and self.max_seconds is not None and now - self._started >= self.max_seconds
        due = self.every.seconds is not None and now - self._saved_at >= self.every.seconds
        # the last step before an evaluation, in which nothing can be saved
        last_chance = self.every != Every() and done + accumulate == whole
        due = due or (last_chance and now - self._saved_at >= _BEFORE_EVALUATION)
        return *(self._signal == number for number in SIGNALS), late, first and due

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: save, and stop, if a device has asked for it."""
        task: Any = pl_module
        asked, task.asked = task.asked, None
        if asked is None:
            return
        *signals, late, due = asked
        reasons = [_by(number) for number, came in zip(SIGNALS, signals, strict=True) if came]
        if late:
            reasons.append((UNFINISHED, "--trainer.max_time"))
        self._reason = reasons[0] if reasons else None
        steps = self.every.steps
        due = due or (steps is not None and trainer.global_step - self._saved_step >= steps)
        done, whole, _ = self._batches
        if done == whole or trainer.global_step == trainer.max_steps:
            return  # evaluation comes first, and then a checkpoint
        if self.folder is not None and (self._reason is not None or due):
            trainer.save_checkpoint(self.folder / LAST)
            self._saved(trainer)
        if self._reason is not None:
            trainer.strategy.barrier("stopping")
            raise self._interrupted(self._reason, trainer.global_step)

    def _saved(self, trainer: Trainer) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self.step_on_disk = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, also in an evaluation by itself."""
        self._listen()

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """An evaluation is given up at once: nothing of it is kept anyway."""
        if self._reason is not None and self._reason[0] != UNFINISHED:
            raise self._interrupted(self._reason, trainer.global_step)
        if self._signal is not None:
            raise self._interrupted(_by(self._signal), trainer.global_step)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch before has ended with a checkpoint of its own, written by another callback."""
        if self.folder is not None and trainer.global_step > self._saved_step:
            self._saved(trainer)

    on_train_end = on_train_epoch_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more; a copy of the task takes nothing of this along."""
        self._let_go()
        cast(Any, pl_module).asks = None


def _by(number: int) -> tuple[int, str]:
    """Exit status and name."""
    return 128 + number, signal.Signals(number).name


def _nothing() -> None:
    """In the place of a method."""
