"""Callbacks that follow a run: its clock and best evaluation, and the files of a prediction."""

import csv
import io
import time
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from typing_extensions import override

from wsbench.records import BatchNumbers, Cost, MetricValue, write_atomically
from wsbench.run.provenance import machine, peak_memory_mib, reset_peak_memory


class Recorder(Callback):
    """What a record says of how a run ran, taken while it runs; its clock and best evaluation live in the checkpoint.

    After the run Lightning has moved the module to the CPU, undone the conversion of BN, and let go of the processes.
    """

    def __init__(self) -> None:
        self._train_seconds = self._earlier_seconds = 0.0
        self._peak = 0.0
        self._running_since: float | None = None
        self._session_start = time.monotonic()
        self._attempts = self._taken = 0
        self._counting: Any = None
        self.best: dict[str, MetricValue] = {}
        #: of the weights at the last evaluation
        self.evaluated_weights: int | None = None
        #: the five numbers; None until training starts
        self.batch: BatchNumbers | None = None
        #: as of :func:`~wsbench.run.provenance.machine`
        self.machine: dict[str, Any] = {}
        #: up to which step a run that was resumed elsewhere ran on how many devices
        self._parts: list[tuple[int, int]] = []
        self._devices: int | None = None

    def _stop_clock(self) -> None:
        if self._running_since is not None:
            self._train_seconds += time.monotonic() - self._running_since
            self._running_since = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at devices and layers; forget what setting up allocated; count the optimizer's steps."""
        device = trainer.strategy.root_device
        self.batch = cast(Any, pl_module).batch_numbers() if hasattr(pl_module, "batch_numbers") else None
        self.machine = machine(device, trainer.world_size)
        if self._devices not in (None, trainer.world_size):
            self._parts.append((trainer.global_step, self._devices))
        self._devices = trainer.world_size
        reset_peak_memory(device)
        self._counting = trainer.optimizers[0].register_step_post_hook(self._count_step)
        self._running_since = time.monotonic()  # an epoch that is resumed in its middle does not start

    def _count_step(self, *args: Any) -> None:
        self._taken += 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Count it; GradScaler may leave it out."""
        self._attempts += 1

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps that GradScaler left out."""
        return self._attempts - self._taken

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._running_since = time.monotonic()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on, if training does; keep the evaluation if it is the best."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._running_since = time.monotonic()
        self.evaluated_weights = weights_digest(pl_module)
        values = evaluation_metrics(pl_module)
        monitor, sign = str(pl_module.monitor), 1 if pl_module.mode == "max" else -1
        if values and (not self.best or sign * values[monitor].value > sign * self.best[monitor].value):
            self.best = values

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock; the peak is that of the device that needed most."""
        self._stop_clock()
        device = trainer.strategy.root_device
        here = torch.tensor(peak_memory_mib(device), device=device)
        self._peak = max(self._peak, float(cast(Any, trainer.strategy).reduce(here, reduce_op="max")))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._counting is not None:
            self._counting.remove()
            self._counting = None

    def definitions(self) -> dict[str, str]:
        """On what the run ran before it was resumed on another number of devices, for the record."""
        parts = [f"to step {step} on {devices} device{'s' * (devices > 1)}" for step, devices in self._parts]
        return {"devices": ", ".join(parts)} if parts else {}

    def cost(self, task: LightningModule, samples: int) -> Cost:
        """What the run has cost so far, for ``samples`` training samples."""
        return Cost(
            train_seconds=round(self._train_seconds, 2),
            total_seconds=round(self._earlier_seconds + time.monotonic() - self._session_start, 2),
            samples_per_second=round(samples / max(self._train_seconds, 1e-9), 2),
            peak_memory_mib=round(self._peak, 1),
            parameters=sum(p.numel() for p in task.parameters()),
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "train_seconds": self._train_seconds,
            "total_seconds": self._earlier_seconds + time.monotonic() - self._session_start,
            "peak": self._peak,
            "devices": self._devices,
            "parts": self._parts,
            "skipped": self.skipped_steps,
            "best": {name: value.model_dump() for name, value in self.best.items()},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._train_seconds, self._earlier_seconds = state_dict["train_seconds"], state_dict["total_seconds"]
        self._peak = state_dict["peak"]
        self._devices, self._parts = state_dict.get("devices"), [tuple(p) for p in state_dict.get("parts", ())]
        self._attempts, self._taken = state_dict.get("skipped", 0), 0
        self.best = {name: MetricValue(**value) for name, value in state_dict["best"].items()}


def weights_digest(module: LightningModule) -> int:
    """A checksum of the bits of all parameters and buffers; the same on every device, whatever the order of a sum."""
    totals: dict[torch.device, torch.Tensor] = {}
    for place, tensor in enumerate((*module.parameters(), *module.buffers())):
        flat = tensor.detach().contiguous().flatten()
        flat = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        part = flat.long().sum() * (2 * place + 1)
        totals[part.device] = totals[part.device] + part if part.device in totals else part
    return int(sum((total.cpu() for total in totals.values()), torch.zeros((), dtype=torch.int64)))


def evaluation_metrics(task: Any) -> dict[str, MetricValue]:
    """The task's last evaluation, as a record states it."""
    last = task.evaluation
    if last is None:
        return {}
    return {
        name: MetricValue(value=round(value, 4), n_eval=last.n_eval, step=last.step)
        for name, value in last.values.items()
    }


def as_text(value: Any) -> Any:
    """A cell of a CSV file that no spreadsheet takes for a formula: names of classes and files may be a stranger's."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


class PredictionFiles(BasePredictionWriter):
    """Writes each prediction as it comes, by the task's ``write_prediction(prediction, folder)``.

    Args:
        folder: where to; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.written: list[Path] = []
        self._rows: list[dict[str, Any]] = []

    @override
    def write_on_batch_end(self, trainer: Trainer, pl_module: Any, prediction: Any, *args: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.written += pl_module.write_prediction(prediction, self.folder)
        row = {"file": prediction["path"], **pl_module.prediction_row(prediction)}
        self._rows.append({name: as_text(value) for name, value in row.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table of all, of each device its own."""
        if not self._rows:
            return
        name = "predictions.csv" if trainer.world_size == 1 else f"predictions-{trainer.global_rank}.csv"
        out = io.StringIO()
        writer = csv.DictWriter(out, list(self._rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self.folder / name, out.getvalue().encode("utf-8", "surrogateescape"))
        self.written.append(self.folder / name)
