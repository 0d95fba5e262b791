"""What all tasks share: converting the network, the accumulation rule, evaluation, checkpoint guard, seeds."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import deprecated, override

from wsbench.models.by_name import is_named
from wsbench.norms import NormSpec, WindowError, adaptive_clip_grad_, fold, normalize, stamp_spec
from wsbench.norms.layers import torch_class
from wsbench.norms.recognize import is_norm
from wsbench.records import BatchNumbers, MetricValue
from wsbench.seeds import derived_seed
from wsbench.tasks.accumulation import derive_accumulation
from wsbench.tasks.bounds import require_within_bounds
from wsbench.tasks.checkpoints import begin_at_a_window, require_fitting, require_own, require_state_of_training
from wsbench.tasks.contract import Evaluation, TaskContract
from wsbench.tasks.data import TrainingData, data_of
from wsbench.tasks.errors import NotFiniteError, TaskOptionError
from wsbench.tasks.initialize import load_backbone
from wsbench.tasks.memory import MemoryFormat, memory_format_for
from wsbench.tasks.window import WindowCallback

#: ``init_from`` of a network by name: its package's own weights
PRETRAINED = "pretrained"


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or wider as it is: sums over pixels leave the range and the digits of half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class BenchmarkTask(LightningModule, TaskContract):
    """A network under one normalization, its loss and its metrics.

    **The accumulation rule.** A task's loss is a *sum* over items and their *number* (images, or valid pixels). The
    gradient of an optimizer step is that of the sum over the whole effective batch divided by the whole number, over
    all micro-steps and devices: what one big batch would give. Lightning divides every micro-step by the nominal
    accumulation, also in a window that the end of an epoch cut short, and DDP takes the mean over devices; both are
    undone here, once, before gradients are clipped.

    Args:
        norm: a :class:`~wsbench.norms.NormSpec`; on the command line --norm.
        init_from: a checkpoint whose backbone to start from, ``SPEC=CHECKPOINT`` for a published one that does not say
            its normalization, or ``torchvision`` for its ImageNet weights.
        init_from_any_norm: start from it even if it was trained under another normalization.
        window: standardize weights once per optimizer step instead of once per micro-step; exact.
        compile: compile the network with torch.compile.
        agc: clip the gradient of each filter to so many times the filter's norm (adaptive gradient clipping, for
            networks without normalizers; 0.01 in the paper), but for the last layer's; 0: do not.
        memory_format: of the network's weights, and so of its features; ``auto`` is what measured fastest.
    """

    def __init__(
        self,
        norm: str = "gn+ws",
        init_from: str | None = None,
        init_from_any_norm: bool = False,
        window: bool = True,
        compile: bool = False,
        memory_format: MemoryFormat = "auto",
        agc: float = 0.0,
    ) -> None:
        super().__init__()
        self._keep_options()
        if not agc >= 0:
            raise TaskOptionError(f"--model.agc {agc}: expected a number above 0, such as 0.01, or 0 for none")
        self._agc = agc
        self.spec = NormSpec.parse(norm)
        if compile and self.spec.act == "sn" and str(torch.__version__).startswith("2.8."):
            raise TaskOptionError(
                f"--model.compile true with --norm {self.spec}: what torch {torch.__version__} compiles for it writes "
                "beyond its memory on a CPU; take a later torch, or leave the option out"
            )
        self._init_from, self._init_from_any_norm = init_from, init_from_any_norm
        self.all_weights_loaded = False
        self.evaluation: Evaluation | None = None
        self.run_id: str | None = None
        #: what a run started from, with its content, as its id has it
        self.started_from: Any = None
        self.classes: tuple[str, ...] = ()
        #: of the last and the best epoch, for the record; a task that measures itself while it trains fills them
        self.training_metrics: dict[str, MetricValue] = {}
        self.best_training_metrics: dict[str, MetricValue] = {}
        self._sum: Tensor | None = None
        self._number: Tensor | None = None
        self._scale: float | None = None
        self._window = (
            WindowCallback(simple_loop=True, look_later=True) if window and self.spec.weight is not None else None
        )
        #: what this device asks of all, and what any of them has asked in the step that was taken (run/stopping.py)
        self.asks: Callable[[], Sequence[bool]] | None = None
        self.asked: tuple[bool, ...] | None = None
        self._compile, self._memory_format = compile, memory_format
        self._execution: dict[str, str] = {}
        self._evaluated = 0

    def _keep_options(self) -> None:
        """Store the arguments of the constructor, for ``load_from_checkpoint``, which brings the weights itself."""
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        # of the outermost constructor: a subclass that fixes an option of its parent does not take it
        options = dict(collect_init_args(frame.f_back, [], classes=(HyperparametersMixin,))[-1])
        if "init_from" in options:
            options["init_from"] = None
        if isinstance(options.get("norm"), NormSpec):
            options["norm"] = str(options["norm"])
        require_within_bounds(options)
        self.save_hyperparameters(options, logger=False)

    @property
    def pretrained(self) -> bool:
        """Whether a network by name is to have its package's own weights."""
        return self._init_from == PRETRAINED

    @property
    def attached_trainer(self) -> Trainer | None:
        """The Trainer that runs this task now, if one does; Lightning's ``trainer`` raises then."""
        return self._trainer

    @property
    def data(self) -> TrainingData:
        """The data of the Trainer that this task is attached to."""
        return data_of(self.trainer)

    def configure_callbacks(self) -> list[Callback]:
        """The accumulation window, under any Trainer."""
        return [] if self._window is None else [self._window]

    def set_network(self, network: nn.Module, example: Any, include: Sequence[str] = ()) -> None:
        """Convert ``network`` to the spec, initialize it, and make it this task's."""
        if self.pretrained and (not is_named(self.network_name) or self.network_name.startswith("mmseg:")):
            raise TaskOptionError(
                f"--model.init_from {PRETRAINED}: '{self.network_name}' has no weights of its own; that is for "
                "networks by name, such as timm:resnet18; otherwise give a checkpoint"
            )
        self.network = network
        own_norm = self.spec == NormSpec("bn") and all(
            isinstance(m, _BatchNorm) for m in network.modules() if is_norm(m)
        )
        self.norm_report = normalize(network, self.spec, example, include)
        counts = self.norm_report.counts()
        if is_named(self.network_name) and self.spec.act != "none" and not (counts["activation"] or counts["weight"]):
            raise TaskOptionError(
                f"'{self.network_name}' has no layer that '{self.spec}' applies to ({counts['kept']} normalization "
                f"layers of other kinds are kept), so a run of it would not be one of '{self.spec}'"
            )
        if self.pretrained:
            if not own_norm and not self._init_from_any_norm:
                raise TaskOptionError(
                    f"--model.init_from {PRETRAINED}: the weights were trained under the network's own normalization, "
                    f"not under '{self.spec}'; add --model.init_from_any_norm true to start from them all the same"
                )
            self.all_weights_loaded = False
        elif self._init_from is not None:
            try:
                left = load_backbone(self.backbone(), self._init_from, self.spec, self._init_from_any_norm)
            except ValueError as error:
                raise TaskOptionError(f"--model.init_from: {error}") from error
            self.all_weights_loaded = not left and self.backbone() is self.network

    @deprecated("adopt is called set_network now")
    def adopt(self, network: nn.Module, example: Any, include: Sequence[str] = ()) -> None:
        """:meth:`set_network` by its name in earlier versions."""
        self.set_network(network, example, include)

    def definitions(self) -> dict[str, str]:
        """Choices that the paper leaves open, for the record."""
        notes = "; ".join(self.norm_report.notes)
        accumulation = {"accumulation": "sum over the effective batch divided by its number of items"}
        return accumulation | ({"norms": notes} if notes else {}) | self._execution

    def class_name(self, number: int) -> str:
        """The name of a class; its number where the data has no names."""
        return self.classes[number] if number < len(self.classes) else str(number)

    @override
    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    def setup(self, stage: str) -> None:
        """Check the Trainer; choose the memory format, which DDP must find as it is to stay."""
        self.require_evaluation(self.trainer)
        if stage != "fit":
            return
        derive_accumulation(self.trainer)
        self.check_trainer(self.trainer)
        device = self.trainer.strategy.root_device
        layout, why = memory_format_for(self._memory_format, device, self.spec, self.data.micro_batch)
        if layout != torch.contiguous_format:
            self.network.to(memory_format=layout)
        self._execution = {"memory_format": why}
        if self._window is not None and self.trainer.accumulate_grad_batches > 1:
            self._execution["window"] = "effective weights are computed once per optimizer step"
        if self._compile:
            self._execution["compile"] = "torch.compile"

    def require_evaluation(self, trainer: Trainer) -> None:
        """TaskOptionError if a device would have nothing to evaluate: the others would wait for it."""
        samples = None if trainer.state.fn == "predict" else data_of(trainer).expected_evaluations()
        if samples is not None and samples < trainer.world_size:
            raise TaskOptionError(
                f"the evaluation has {samples} samples, fewer than the {trainer.world_size} devices; use fewer devices "
                "(--trainer.devices, --trainer.num_nodes) or more data"
            )

    def on_fit_start(self) -> None:
        """Remember the order of classes; tell norms that have a schedule how long it is; compile."""
        self._check_classes()
        scheduled: list[Any] = [m for m in self.network.modules() if hasattr(m, "starts_training")]
        if scheduled:
            steps = self.total_steps()
            for norm in scheduled:
                norm.starts_training(None if steps is None else steps * self.trainer.accumulate_grad_batches)
        if self._compile:
            self.network.compile()

    # -- training ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed each optimizer step from (seed, step, device): what it draws does not depend on interruptions."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            torch.manual_seed(derived_seed("step", self.data.seed, self.global_step, self.global_rank))
            self._sum = self._number = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One micro-step: the loss, scaled to about one by a constant that cancels at the optimizer step."""
        total, number = self.loss(batch)
        if self._scale is None:
            self._scale = 1.0 / max(1.0, self.items_in_micro_batch(batch))
        self._sum = total.detach() + (0 if self._sum is None else self._sum)
        self._number = number.detach() + (0 if self._number is None else self._number)
        return total * self._scale

    def items_in_micro_batch(self, batch: Any) -> float:
        """The data's micro-batch: items are samples."""
        return float(self.data.micro_batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Apply the accumulation rule to the gradients, and log the loss of the whole effective batch."""
        assert self._sum is not None
        assert self._number is not None
        assert self._scale is not None
        wide = torch.float32 if self._sum.device.type == "mps" else torch.float64
        asks = self.asks() if self.asks is not None else ()
        base = self.trainer.world_size + 1  # one number for all that is asked: a digit for each, how many ask
        code = sum(base**i for i, ask in enumerate(asks) if ask)
        window = torch.stack(
            [self._sum.to(wide), self._number.to(wide), self._sum.new_full((), code, dtype=wide),
             *self._unseen_writes(wide)]
        )  # fmt: skip
        window = self.trainer.strategy.reduce(window, reduce_op="sum")
        self._sum = self._number = None
        loss, number, answer, *unseen = window.tolist()  # the one time in a step that the host waits for the device
        self.asked = tuple(bool(int(answer) // base**i % base) for i in range(len(asks))) if asks else None
        if unseen and unseen[0]:
            assert self._window is not None
            assert self._window.window is not None
            self._window.window.refuse_unseen()
            raise WindowError("on another device a weight was written inside an accumulation window without a trace")
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"the training loss is {loss} at step {self.global_step} with '{self.spec}'; lower the "
                "learning rate, or look at the data of this step"
            )
        number = max(number, 1.0)
        factor = self.trainer.accumulate_grad_batches * self.trainer.world_size / (self._scale * number)
        torch._foreach_mul_([p.grad for p in self.parameters() if p.grad is not None], factor)
        if self._agc:
            layers = [m for m in self.network.modules() if torch_class(type(m)) is not None]
            adaptive_clip_grad_(self.network, self._agc, exclude=tuple(layers[-1:]))
        step = self.global_step + 1
        values = {"train/loss": loss / number, "train/lr": optimizer.param_groups[0]["lr"]}
        if step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._write_log(values, step)
        on_host = {name: torch.tensor(value) for name, value in values.items()}  # numbers would be copied to the device
        self.log_dict(on_host, on_step=True, on_epoch=False, logger=False, prog_bar=True)

    def _unseen_writes(self, dtype: torch.dtype) -> list[Tensor]:
        """How many weights were changed inside the accumulation window without a trace, 0-d."""
        if self._window is None or self._window.window is None:
            return []
        unseen = self._window.window.unseen
        assert self._sum is not None
        return [self._sum.new_zeros((), dtype=dtype) if unseen is None else unseen.sum(dtype=dtype)]

    def _write_log(self, values: dict[str, float], step: int) -> None:
        """Log under the number of steps taken; Lightning's own count shifts by one when a run is resumed."""
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step)

    # -- evaluation -------------------------------------------------------------------------------------------------

    @override
    def on_validation_epoch_start(self) -> None:
        self._check_classes()
        self.reset_metrics()
        self._evaluated = 0

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch)

    def require_finite(self, output: Tensor) -> Tensor:
        """``output`` (N, *) of an evaluation batch as it is.

        Raises:
            NotFiniteError: it holds NaN or infinity: metrics of that would look like numbers. Names the sample.
        """
        if not bool(output.isfinite().all()):
            broken = (~output.isfinite().flatten(1).all(1)).nonzero()
            index = self.global_rank + self.trainer.world_size * (self._evaluated + int(broken[0]))
            raise NotFiniteError(
                f"the network's output for {self.data.sample_name(index)} is not finite, and so is that of "
                f"{len(broken)} of {len(output)} samples of its batch: the weights have diverged, or the precision "
                f"({self.trainer.precision}) is too low for them"
            )
        self._evaluated += len(output)
        return output

    def on_validation_epoch_end(self) -> None:
        """Compute over all devices, check that every sample was seen once, log."""
        self._finish("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    @override
    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, stage: str) -> None:
        values, n_eval = self.compute_metrics()
        limit = self.trainer.limit_val_batches if stage == "val" else self.trainer.limit_test_batches
        whole = isinstance(limit, float) and limit == 1.0 and not self.trainer.sanity_checking  # 1 is one batch
        expected = self.data.expected_evaluations()
        if whole and expected is not None and n_eval != expected:
            raise RuntimeError(f"evaluated {n_eval} samples, the split has {expected}; the numbers would be wrong")
        self.evaluation = Evaluation(self.global_step, n_eval, values, self.per_class())
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(named, sync_dist=True, logger=False, prog_bar=True)
        self._write_log(named, self.global_step)

    # -- predictions ------------------------------------------------------------------------------------------------

    def require_finite_prediction(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        """``output`` as it is; NotFiniteError names the file whose output is NaN or infinite."""
        if not bool(output.isfinite().all()):
            raise NotFiniteError(
                f"the network's output for '{batch['path']}' is not finite: the weights have diverged, or the "
                f"precision ({self.trainer.precision}) is too low for them"
            )
        return output

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the spec: the weights cannot tell ``gn`` from ``gn+ws``."""
        stamp_spec(checkpoint, self.spec)
        checkpoint["task"], checkpoint["run_id"] = self.task, self.run_id
        checkpoint["classes"] = list(self.classes)
        if self.attached_trainer is not None:
            checkpoint["accumulate"] = self.attached_trainer.accumulate_grad_batches
        if self.started_from is not None:
            checkpoint["started_from"] = self.started_from
        if "optimizer_states" in checkpoint:  # it numbers its parameters; analyze diagnose wants their names
            names = {id(p): name for name, p in self.named_parameters()}
            groups = self.trainer.optimizers[0].param_groups
            checkpoint["parameter_names"] = [names[id(p)] for group in groups for p in group["params"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another task or normalization, by name."""
        require_own(checkpoint, self.task, self.spec)
        if self.attached_trainer is not None and self.attached_trainer.precision == "64-true":
            self.double()  # Lightning converts after it has loaded, and would round the weights to float32 before
        self.classes = tuple(checkpoint.get("classes", ()))
        self.started_from = checkpoint.get("started_from")
        if self.attached_trainer is not None and self.attached_trainer.state.fn == "fit" and "loops" in checkpoint:
            weights = {name for name, _ in self.named_parameters()}
            begin_at_a_window(checkpoint, self.attached_trainer.accumulate_grad_batches, weights)

    def require_checkpoint(self, checkpoint: Mapping[str, Any], resume: bool) -> None:
        """Look whether a checkpoint's content can be loaded, before anything is.

        Args:
            checkpoint: its content.
            resume: whether training is to resume from it.

        Raises:
            CheckpointError: it is another task's or network's, or lacks the state of training.
            NormMismatchError: it is another normalization's.
        """
        require_own(checkpoint, self.task, self.spec)
        if resume:
            require_state_of_training(checkpoint)
        require_fitting(checkpoint["state_dict"], self.state_dict(), self.network_name)

    def _check_classes(self) -> None:
        """Where the data names its classes: the weights were trained for an order of them, the data must have it."""
        of_data = self.data.classes
        if not self.classes:
            self.classes = of_data
        if of_data and self.classes != of_data:
            pairs = enumerate(zip(self.classes, of_data, strict=False))
            first = next((i for i, (a, b) in pairs if a != b), min(len(self.classes), len(of_data)))
            theirs, here = (names[first] if first < len(names) else "none" for names in (self.classes, of_data))
            raise TaskOptionError(
                f"the checkpoint's classes are not the data's: class {first} is '{theirs}' there and '{here}' here, so "
                "the numbers would be meaningless; use the dataset, or the order of classes, that it was trained on"
            )

    def steps_in_epoch(self) -> int:
        """Optimizer steps in an epoch, which a schedule by epochs counts in."""
        return self.data.steps_in_epoch()

    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run, which a schedule by its length counts in; None if it has no end."""
        trainer = self.trainer
        epochs = trainer.max_epochs or 0
        by_epochs = epochs * self.steps_in_epoch() if epochs > 0 else None
        if trainer.max_steps > 0:
            return min(trainer.max_steps, by_epochs or trainer.max_steps)
        return by_epochs

    def planned_steps(self) -> str:
        """How long the run is to be."""
        if self.trainer.max_steps > 0:
            return str(self.trainer.max_steps)
        if self.total_steps() is None:
            return "without an end"
        return f"{self.trainer.max_epochs} epochs of {self.steps_in_epoch()}"

    def folded(self, example: Any) -> nn.Module:
        """The network for inference: plain layers with the effective weights, BN fused into them."""
        return fold(self.network.eval(), (example,))

    # -- records ----------------------------------------------------------------------------------------------------

    def batch_numbers(self, synchronized: bool = False) -> BatchNumbers:
        """The five numbers of the run that is set up.

        Args:
            synchronized: BN is going to be synchronized: ``Trainer(sync_batchnorm=True)`` converts it when it starts,
                and back when it ends.
        """
        micro, devices = self.data.micro_batch, self.trainer.world_size
        layers: list[Any] = [m for m in self.modules() if hasattr(m, "samples_seen")]
        seen: set[int] = {m.samples_seen(micro, devices) for m in layers}
        kinds = (nn.SyncBatchNorm, _BatchNorm) if synchronized else (nn.SyncBatchNorm,)
        seen |= {micro * devices for m in self.modules() if isinstance(m, kinds)}
        return BatchNumbers(
            micro_batch=micro,
            accumulate=self.trainer.accumulate_grad_batches,
            devices=devices,
            effective_batch=micro * devices * self.trainer.accumulate_grad_batches,
            norm_batch=max(seen, default=micro),
        )
