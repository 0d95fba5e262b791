"""The callback in Lightning's loop, in every way that a run can accumulate, be interrupted or be configured."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from tests.analysis.test_shares import SPECS
from tests.norms.nets import batches, net
from tests.tasks.test_window import Module
from wsbench.analysis import GradientShares, SharesError, Snapshots, aggregate, decompose
from wsbench.analysis.log import points, read
from wsbench.norms import GradientTap, NormalizedLayer
from wsbench.run.folder import snapshots
from wsbench.tasks.window import WindowCallback


def train(module: Module, *callbacks: Callback, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "accumulate_grad_batches": 4, "max_epochs": 2,
        "callbacks": list(callbacks), "limit_val_batches": 0,
    }  # fmt: skip
    trainer = Trainer(**(settings | changes))
    data = batches(8, dtype=module.network.head.weight.dtype)
    trainer.fit(module, DataLoader(data, batch_size=None), ckpt_path=module.__dict__.get("resume"))  # type: ignore[arg-type]
    return trainer


def expected_first_step(spec: str) -> dict[str, Any]:
    """Shares of the first optimizer step, by one big batch and ``decompose``."""
    model, data = net(spec), batches(8)[:4]
    with GradientTap(model) as tap:
        sum(F.cross_entropy(model(x).float(), y) / 4 for x, y in data).backward()  # type: ignore[union-attr]
    layers = {n: m for n, m in model.named_modules() if isinstance(m, NormalizedLayer)}
    return {n: decompose(m, tap.gradients[n], m.weight.grad) for n, m in layers.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("window", [True, False])
def test_the_first_step_of_each_epoch_is_measured_exactly(spec: str, window: bool, tmp_path: Path) -> None:
    callback = GradientShares(tmp_path)
    train(Module(net(spec)), callback, *([WindowCallback()] if window else []))
    lines = read(tmp_path)
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 0), (1, 2)]
    assert all(line["network"]["error"] < 1e-12 for line in lines)
    expected = expected_first_step(spec)
    assert set(lines[0]["layers"]) == {f"network.{name}" for name in expected}
    whole = aggregate(expected)
    for part, mean, total in zip("ABR", whole.mean_of_ratios, whole.ratio_of_sums, strict=True):
        assert lines[0]["network"]["mean_of_ratios"][part] == pytest.approx(mean, rel=1e-9, abs=1e-15)
        assert lines[0]["network"]["ratio_of_sums"][part] == pytest.approx(total, rel=1e-9, abs=1e-15)
    for name, shares in expected.items():
        line = lines[0]["layers"][f"network.{name}"]
        assert [line["mean_of_ratios"][p] for p in "ABR"] == pytest.approx(shares.ratios.mean(1).tolist(), abs=1e-12)
    assert sum(layer["share_of_network"] for layer in lines[0]["layers"].values()) == pytest.approx(1)
    channels = np.load(tmp_path / "analysis" / "step-00000000.npz")
    total = channels["network.stem/A"] + channels["network.stem/B"] + channels["network.stem/R"]
    np.testing.assert_allclose(total, channels["network.stem/total"], rtol=1e-12)


@pytest.mark.parametrize("changes", [{"accumulate_grad_batches": 1}, {"gradient_clip_val": 1e-3}, {"max_epochs": 1}])
def test_clipping_and_no_accumulation(changes: dict[str, Any], tmp_path: Path) -> None:
    train(Module(net()), GradientShares(tmp_path), **changes)
    assert all(line["network"]["error"] < 1e-12 for line in read(tmp_path))


def test_training_is_what_it_would_have_been(tmp_path: Path) -> None:
    ours, theirs = Module(net()), Module(net())
    train(ours, GradientShares(tmp_path), WindowCallback())
    train(theirs, WindowCallback())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all("tap" not in m.attached for m in ours.modules() if isinstance(m, NormalizedLayer))


@pytest.mark.parametrize(("precision", "most"), [("32-true", 1e-5), ("bf16-mixed", 2e-2)])
def test_lower_precision_says_so_in_the_error(precision: str, most: float, tmp_path: Path) -> None:
    module = Module(net(dtype=torch.float32))
    train(module, GradientShares(tmp_path), WindowCallback(), precision=precision)
    errors = [line["network"]["error"] for line in read(tmp_path)]
    assert all(1e-9 < error < most for error in errors)


class _Scaler:
    """What the callback asks a GradScaler for; Lightning has unscaled .grad by then."""

    def get_scale(self) -> float:
        return 1024.0


class _Scaled(GradientShares):
    """Gradients on Ŵ as they are under a GradScaler."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        assert self._tap is not None
        for grad in self._tap.gradients.values():
            grad *= 1024
        trainer.precision_plugin.scaler = _Scaler()  # type: ignore[attr-defined]
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        del trainer.precision_plugin.scaler  # type: ignore[attr-defined]


def test_a_loss_scale_is_taken_off(tmp_path: Path) -> None:
    train(Module(net()), _Scaled(tmp_path))
    assert all(line["network"]["error"] < 1e-12 for line in read(tmp_path))


class _Overflow(Callback):
    """The gradient of the first step is infinite."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 0:
            pl_module.network.stem.weight.grad.fill_(torch.inf)


def test_a_step_that_is_not_finite_is_passed_over_for_the_next(tmp_path: Path) -> None:
    module = Module(net())
    callback = GradientShares(tmp_path)
    optimizer_step = torch.optim.SGD.step
    with pytest.MonkeyPatch.context() as patch:
        # as a GradScaler does
        patch.setattr(
            torch.optim.SGD, "step",
            lambda self, closure=None: (closure(), None if torch.isinf(module.network.stem.weight.grad).any()
                                        else optimizer_step(self))[1],
        )  # fmt: skip
        train(module, _Overflow(), callback, max_epochs=1)
    assert [line["step"] for line in read(tmp_path)] == [1]


def test_a_layer_that_takes_no_part_is_left_out(tmp_path: Path) -> None:
    module = Module(net())
    module.network.use_maybe = False
    module.network.stem.weight.requires_grad_(False)
    train(module, GradientShares(tmp_path))
    assert set(read(tmp_path)[0]["layers"]) == {"network.twice", "network.up", "network.hidden"}


def test_without_standardization_there_is_nothing_to_measure(tmp_path: Path) -> None:
    for spec in ("gn", "gn+wn"):
        with pytest.raises(SharesError, match="no layer has weight standardization"):
            train(Module(net(spec)), GradientShares(tmp_path))
    assert not (tmp_path / "analysis.jsonl").exists()


def test_other_strategies_and_manual_optimization_are_refused() -> None:
    module = Module(net())
    module.automatic_optimization = False
    with pytest.raises(SharesError, match="Module optimizes by itself"):
        train(module, GradientShares(), accumulate_grad_batches=1)
    with pytest.raises(SharesError, match="not with FSDPStrategy"):
        GradientShares().on_train_start(mock.Mock(strategy=FSDPStrategy()), Module(net()))


class _Interrupt(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")


def test_an_error_leaves_no_tap_behind_and_a_resumed_run_repeats_no_line(tmp_path: Path) -> None:
    module = Module(net())
    callback = GradientShares(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        train(module, callback, _Interrupt())
    assert all("tap" not in m.attached for m in module.modules() if isinstance(m, NormalizedLayer))
    again = Module(net())
    train(again, GradientShares(tmp_path))
    assert [line["step"] for line in read(tmp_path)] == [0, 2]
    assert len((tmp_path / "analysis.jsonl").read_text().splitlines()) == 3, "appended, nothing removed"
    with (tmp_path / "analysis.jsonl").open("a") as file:
        file.write('{"step": 4, "ep')  # torn by a kill
    assert [point.step for point in points(tmp_path)] == [0, 2]
    assert sum(points(tmp_path)[0].mean_of_ratios.model_dump().values()) == pytest.approx(1, abs=1e-5)


def test_log_is_json_that_anyone_can_read(tmp_path: Path) -> None:
    train(Module(net()), GradientShares(tmp_path), max_epochs=1)
    line = json.loads((tmp_path / "analysis.jsonl").read_text())
    assert line["norm"] == "gn+ws"
    stem = line["layers"]["network.stem"]
    assert stem["channels"] == 8
    assert stem["channels_without_gradient"] == 0
    assert 0.9 < stem["smallest_retained"] < 1


def test_snapshots_at_even_steps(tmp_path: Path) -> None:
    seen: dict[int, Tensor] = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen[trainer.global_step] = pl_module.network.stem.weight.detach().clone()

    module = Module(net())
    initial = module.network.stem.weight.detach().clone()
    train(module, Watch(), Snapshots(tmp_path, 3), max_epochs=4)
    paths = snapshots(tmp_path)
    assert [p.name for p in paths] == ["step-00000000.ckpt", "step-00000004.ckpt", "step-00000008.ckpt"]
    kept = [torch.load(p, weights_only=True) for p in paths]
    for content, expected in zip(kept, (initial, seen[4], seen[8]), strict=True):
        assert torch.equal(content["state_dict"]["network.stem.weight"], expected)
        assert "optimizer_states" not in content
    with pytest.raises(ValueError, match="--snapshots 1: at least 2"):
        Snapshots(tmp_path, 1)
