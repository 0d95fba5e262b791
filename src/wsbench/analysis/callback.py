"""Lightning's side: gradient shares at the first optimizer step of each epoch, and snapshots to analyze later."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from wsbench.analysis import log
from wsbench.analysis.shares import PARTS, ChannelShares, SharesError, decompose, standardized_layers
from wsbench.norms import GradientTap, NormalizedLayer, NormSpec
from wsbench.records import write_atomically
from wsbench.run.folder import CHANNELS, snapshot_name

#: checkpoints that are kept of a run
MOST_SNAPSHOTS = 10_000


def check_options(norm: str, analysis: bool, snapshots: int, compiled: bool, endless: bool) -> None:
    """Refuse what a run cannot be measured under, before it is begun.

    Args:
        norm: the spec.
        analysis: whether gradient shares are to be measured.
        snapshots: how many are to be kept.
        compiled: whether the network is compiled.
        endless: whether the run has no length.

    Raises:
        SharesError: names the option and what to do.
    """
    if snapshots == 1 or not 0 <= snapshots <= MOST_SNAPSHOTS:
        raise SharesError(
            f"--snapshots {snapshots}: 0, or at least 2 (the first and the last step) and at most {MOST_SNAPSHOTS:,}"
        )
    if snapshots and endless:
        raise SharesError("--snapshots are spread evenly over the run; say its length with --trainer.max_steps or "
                          "--trainer.max_epochs")  # fmt: skip
    spec = NormSpec.parse(norm)
    if analysis and spec.weight != "ws":
        raise SharesError(
            f"--analysis true measures what weight standardization takes out of gradients, and '{spec}' has none; "
            f"use for instance --norm {spec.act}+ws"
        )
    if analysis and compiled:
        raise SharesError("--analysis true looks into the network's layers, which --model.compile true has fused; "
                          "leave one of them out")  # fmt: skip


class GradientShares(Callback):
    """Measures A, B and R (:mod:`wsbench.analysis.shares`) at the first optimizer step of each epoch, as Fig. 4 does.

    The gradient on Ŵ is that of the whole optimizer step: summed over its micro-steps, averaged over devices. R is
    computed from the ``.grad`` that the optimizer is about to use (before clipping), so the relative error of
    A + B + R says whether what was gathered is what is trained with. A step whose gradient is not finite (a GradScaler
    will leave it out) is passed over for the next.

    Works with any module that optimizes automatically, on one device and under DDP, with an accumulation window or not.

    Args:
        folder: where ``analysis.jsonl`` is appended to and ``analysis/`` gets the channels' values; None: nothing is
            written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._tap: GradientTap | None = None
        self._layers: dict[str, NormalizedLayer] = {}
        self._due = False
        #: the last measurement: layer to its shares
        self.shares: dict[str, ChannelShares] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers; SharesError if there are none, or if they cannot be looked at."""
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise SharesError(
                f"gradients are gathered on one device and under DDP, not with {type(trainer.strategy).__name__}"
            )
        if not pl_module.automatic_optimization:
            raise SharesError(f"{type(pl_module).__name__} optimizes by itself; use GradientTap and decompose there")
        self._layers = standardized_layers(pl_module)
        if not self._layers:
            raise SharesError("no layer has weight standardization, so there is nothing that it could do to gradients")
        self._tap = GradientTap(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Gather, if the epoch's first optimizer step begins."""
        if batch_idx == 0:
            self._due = True
        if self._due and self._tap is not None and batch_idx % trainer.accumulate_grad_batches == 0:
            self._tap.close()
            self._tap.open()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure, if this step was gathered."""
        tap = self._tap
        if tap is None or not tap.is_open:
            return
        tap.close()
        measured = self._of_all_devices(trainer, tap)
        tap.gradients = {}
        if measured is None:
            return
        self._due, self.shares = False, measured
        if trainer.is_global_zero:
            self._write(trainer)

    def _of_all_devices(self, trainer: Trainer, tap: GradientTap) -> dict[str, ChannelShares] | None:
        """The shares of every layer that took part; None if a gradient is not finite."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        layers = {name: layer for name, layer in self._layers.items() if layer.weight.grad is not None}
        gathered = self._average(trainer, layers, tap.gradients)
        shares: dict[str, ChannelShares] = {}
        for name, layer in layers.items():
            grad = layer.weight.grad
            assert grad is not None
            if not (bool(grad.isfinite().all()) and bool(gathered[name].isfinite().all())):
                return None
            shares[name] = decompose(layer, gathered[name] / scale, grad)
        return shares

    @staticmethod
    def _average(
        trainer: Trainer, layers: dict[str, NormalizedLayer], gathered: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The mean over devices in one message; a layer that this device did not use adds zeros."""
        own = {n: gathered[n] if n in gathered else torch.zeros_like(layer.weight) for n, layer in layers.items()}
        if trainer.world_size == 1 or not own:
            return own
        dtype = torch.promote_types(next(iter(own.values())).dtype, torch.float32)
        flat = torch.cat([t.to(dtype).flatten() for t in own.values()])
        flat = trainer.strategy.reduce(flat, reduce_op="mean")
        pieces = flat.split([t.numel() for t in own.values()])
        return {n: piece.view_as(t) for (n, t), piece in zip(own.items(), pieces, strict=True)}

    def _write(self, trainer: Trainer) -> None:
        if self._folder is None:
            return
        step = trainer.global_step
        spec = str(next(iter(self._layers.values())).spec)
        log.append(self._folder, log.measurement(step, trainer.current_epoch, spec, self.shares))
        arrays = {
            f"{layer}/{part}": values
            for layer, shares in self.shares.items()
            for part, values in zip((*PARTS, "total"), (*shares.parts.cpu().numpy(), shares.total.cpu().numpy()),
                                    strict=True)
        }  # fmt: skip
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(self._folder / CHANNELS / f"step-{step:08d}.npz", content.getvalue())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the layers."""
        if self._tap is not None:
            self._tap.close()
            self._tap, self._layers = None, {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the layers."""
        self.on_train_end(trainer, pl_module)


class Snapshots(Callback):
    """Keeps the weights at evenly spaced steps, the first and the last included, for ``analyze``.

    Args:
        folder: of the run; ``step-NNNNNNNN.ckpt`` are written there, without the optimizer's state.
        count: how many, at least 2.
    """

    def __init__(self, folder: Path, count: int) -> None:
        if count < 2:
            raise ValueError(f"--snapshots {count}: at least 2, the first and the last step (0 keeps none)")
        self._folder, self._count = folder, count
        self._steps: set[int] = set()

    def _keep(self, trainer: Trainer) -> None:
        if trainer.global_step in self._steps:
            self._steps.discard(trainer.global_step)
            trainer.save_checkpoint(self._folder / snapshot_name(trainer.global_step), weights_only=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the steps, and keep the initial weights."""
        whole = int(trainer.estimated_stepping_batches)
        steps = {round(i * whole / (self._count - 1)) for i in range(self._count)}
        self._steps = {step for step in steps if step >= trainer.global_step}
        self._keep(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep the weights, if this step is one of them."""
        self._keep(trainer)
