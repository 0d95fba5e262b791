"""The window in Lightning's loop: on against off, in every way that a run can be interrupted or configured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from tests import tiny
from tests.norms.nets import Net, batches, difference, net
from wsbench.norms import AccumulationWindow, WindowError
from wsbench.tasks.window import WindowCallback


class Module(LightningModule):
    """A module that knows nothing of windows."""

    def __init__(self, network: Net, fused: bool = False) -> None:
        super().__init__()
        self.network, self.fused = network, fused
        self.skip: tuple[int, ...] = ()
        self.end_first_epoch_at: int | None = None
        self.grads: list[dict[str, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        if batch_idx in self.skip:
            return None
        x, y = batch
        return nn.functional.cross_entropy(self.network(x.to(self.network.head.weight.dtype)).float(), y)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.current_epoch == 0 and batch_idx == self.end_first_epoch_at else None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.network(batch[0].to(self.network.head.weight.dtype))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.grads.append({k: p.grad.clone() for k, p in self.named_parameters() if p.grad is not None})

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=1e-3, fused=self.fused)


def run(
    on: bool, callbacks: list[Callback], prepare: Callable[[Module], None] = lambda m: None, **kwargs: Any
) -> Module:
    dtype = kwargs.pop("dtype", torch.double)
    module = Module(net(dtype=dtype), kwargs.pop("fused", False))
    prepare(module)
    settings: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "accumulate_grad_batches": 4, "max_epochs": 2,
        "callbacks": [*callbacks, *([WindowCallback()] if on else [])],
    }  # fmt: skip
    trainer = Trainer(**(settings | kwargs))
    # ten micro-batches: windows of four, four and two
    loaders = [DataLoader(batches(10), batch_size=None), DataLoader(batches(2, seed=9), batch_size=None)]  # type: ignore[arg-type]
    trainer.fit(module, *loaders, ckpt_path=module.__dict__.get("resume"))
    return module


def weights(module: Module) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in module.named_parameters()}


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"gradient_clip_val": 0.1}, {"fused": True}, {"val_check_interval": 3}, {"precision": "64-true"},
     {"accumulate_grad_batches": 1}, {"accumulate_grad_batches": 16}],
    ids=str,
)  # fmt: skip
def test_same_weights(kwargs: dict[str, Any]) -> None:
    ours, theirs = (run(on, [], **kwargs) for on in (True, False))
    assert difference(weights(ours), weights(theirs)) < 1e-11
    assert len(ours.grads) == {1: 20, 16: 2}.get(kwargs.get("accumulate_grad_batches", 4), 6)


@pytest.mark.parametrize("skip", [(0,), (2,), (3,), (3, 9), (8, 9)])
def test_skipped_training_steps(skip: tuple[int, ...]) -> None:
    """A training step may return None, also the last of a window, which then has no backward."""
    found = [run(on, [], lambda m: setattr(m, "skip", skip)) for on in (True, False)]
    assert difference(*(weights(m) for m in found)) < 1e-11


@pytest.mark.parametrize("batch", [2, 5, 7])
def test_an_epoch_that_is_ended_in_the_middle_of_a_window(batch: int) -> None:
    """Its gradients are zeroed when the next epoch begins."""
    found = [run(on, [], lambda m: setattr(m, "end_first_epoch_at", batch)) for on in (True, False)]
    assert difference(*(weights(m) for m in found)) < 1e-11


@pytest.mark.skipif(not hasattr(callbacks, "WeightAveraging"), reason="this Lightning has no WeightAveraging")
def test_averaged_weights_and_evaluation_in_the_middle_of_a_window() -> None:
    """WeightAveraging swaps them in through .data, which moves no version."""
    found = [run(on, [callbacks.WeightAveraging()], val_check_interval=3) for on in (True, False)]
    assert difference(*(weights(m) for m in found)) < 1e-11


def test_saved_in_the_middle_of_a_window(tmp_path: Path) -> None:

    class Save(Callback):
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{batch_idx}.ckpt")

    found = [run(on, [Save(tmp_path / str(on))]) for on in (True, False)]
    assert difference(*(weights(m) for m in found)) < 1e-11
    for name in ("0-1.ckpt", "0-6.ckpt", "1-9.ckpt"):
        ours, theirs = (torch.load(tmp_path / str(on) / name)["state_dict"] for on in (True, False))
        assert ours.keys() == theirs.keys()
        assert difference(ours, theirs) < 1e-11


class Scaled(MixedPrecision):
    """16-mixed on a CPU, which Lightning itself turns into bfloat16."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))


class FlushTooLate(WindowCallback):
    """The trap: flush where the scaler has unscaled already."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self.window is not None
        self.window.begin(last=False)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert self.window is not None
        self.window.flush()


def test_float16_with_a_scaler() -> None:
    """Against no window; and the trap, in which weights with a normalization keep the scale of 256."""
    kwargs: dict[str, Any] = {"plugins": [Scaled()], "dtype": torch.float32, "max_epochs": 1}
    plain = run(False, [], **kwargs)
    ours = run(True, [], **(kwargs | {"plugins": [Scaled()]}))
    assert difference(ours.grads[0], plain.grads[0]) < 1e-2
    late = run(False, [FlushTooLate()], **(kwargs | {"plugins": [Scaled()]}))
    ratio = late.grads[0]["network.stem.weight"].norm() / plain.grads[0]["network.stem.weight"].norm()
    assert ratio == pytest.approx(256, rel=0.05)


def test_bfloat16() -> None:
    plain, ours = (run(on, [], precision="bf16-mixed", dtype=torch.float32, max_epochs=1) for on in (False, True))
    exact = run(False, [], max_epochs=1)
    first = {k: v.float() for k, v in exact.grads[0].items()}
    assert difference(ours.grads[0], first) < 1.5 * difference(plain.grads[0], first) + 1e-3


def test_a_strategy_that_hides_the_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import wsbench.tasks.window as room

    class Nothing: ...

    monkeypatch.setattr(room, "SingleDeviceStrategy", Nothing)
    monkeypatch.setattr(room, "DDPStrategy", Nothing)
    with pytest.raises(WindowError, match=r"SingleDeviceStrategy; add --model\.window false"):
        run(True, [])


def test_a_module_that_optimizes_by_itself_is_refused() -> None:
    def manual(module: Module) -> None:
        module.automatic_optimization = False

    callback, module = WindowCallback(), Module(net())
    manual(module)
    trainer = Trainer(accelerator="cpu", accumulate_grad_batches=1, logger=False, enable_checkpointing=False)
    trainer.accumulate_grad_batches = 2
    with pytest.raises(WindowError, match="Module optimizes by itself"):
        callback.on_train_start(trainer, module)


def test_an_exception_closes_the_window() -> None:
    callback = WindowCallback()

    class Stop(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise ArithmeticError

    module = Module(net())
    with pytest.raises(ArithmeticError):
        Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            accumulate_grad_batches=4, callbacks=[callback, Stop()],
        ).fit(module, DataLoader(batches(10), batch_size=None))  # type: ignore[arg-type]  # fmt: skip
    assert callback.window is None
    assert "window" not in module.network.stem.attached


# -- the tasks ------------------------------------------------------------------------------------------------------


def train(task: str, root: Path, steps: int, window: bool, precision: Any) -> Any:
    torch.manual_seed(3)
    model = tiny.model(task, "gn+ws", window=window)
    trainer = tiny.trainer(accumulate_grad_batches=4, max_steps=steps, precision=precision, limit_val_batches=0)
    trainer.fit(model, tiny.data(task, root, micro_batch=1, effective_batch=4, steps_per_epoch=steps))
    return model


@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize("task", tiny.TASKS)
def test_every_task_standardizes_once_a_step(
    task: str, window: bool, tiny_roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three optimizer steps of four micro-steps; and the record says so."""
    import wsbench.norms.layers as room

    calls = 0
    original = room.NormalizedLayer.effective_weight_of

    def count(self: Any, *parameters: Tensor) -> Tensor:
        nonlocal calls
        calls += self.training
        return original(self, *parameters)

    monkeypatch.setattr(room.NormalizedLayer, "effective_weight_of", count)
    model = train(task, tiny_roots[task], 3, window, "32-true")
    layers = len(model.norm_report.weight_normalized)
    if window:
        assert calls == 3 * layers
        assert model.definitions()["window"] == "effective weights are computed once per optimizer step"
    else:
        assert calls >= 12 * layers
        assert "window" not in model.definitions()


@pytest.mark.parametrize(
    ("task", "precision", "tolerance"),
    [*((task, "64-true", 1e-11) for task in tiny.TASKS if task != "coco"), ("coco", "32-true", 1e-3)],
)  # fmt: skip
def test_every_task_has_the_same_gradients(
    task: str, precision: str, tolerance: float, tiny_roots: dict[str, Path]
) -> None:
    """Of the first step; behind it small networks at high rates amplify rounding a thousandfold a step."""
    found = []
    for window in (True, False):
        model = train(task, tiny_roots[task], 1, window, precision)
        found.append({k: v.grad for k, v in model.named_parameters() if v.grad is not None})
    assert difference(*found) < tolerance


def test_a_plain_specification_has_no_window(tiny_roots: dict[str, Path]) -> None:
    assert not tiny.model("imagenet", "gn").configure_callbacks()
    (callback,) = tiny.model("imagenet", "gn+wn").configure_callbacks()
    assert isinstance(callback, WindowCallback)
    assert not AccumulationWindow(tiny.model("imagenet", "gn"))
