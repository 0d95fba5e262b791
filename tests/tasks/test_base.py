"""What all tasks share: the accumulation rule in Lightning's loop, initialization, the checkpoint guard."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wsbench.norms import NormMismatchError, normalize, stamp_spec
from wsbench.tasks.base import BenchmarkTask
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.voc import VOCSegmentation


class Line(BenchmarkTask):
    """Mean squared error of a linear layer; an item is a row that is not NaN."""

    task, monitor = "line", "loss"
    network_name = "line"

    def __init__(self) -> None:
        super().__init__("none")
        self.set_network(nn.Sequential(nn.Linear(2, 1, bias=False)), None)
        nn.init.ones_(self.network[0].weight)
        self.gradients: list[Tensor] = []

    def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        (x,) = batch if isinstance(batch, list) else (batch,)
        valid = x[~x.isnan().any(1)]
        return self.network(valid).square().sum(), torch.tensor(len(valid))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        self.gradients.append(self.network[0].weight.grad.clone())

    def input_words(self, shape: str) -> str:
        return "rows"

    def write_prediction(self, prediction: Any, folder: Path) -> list[Path]:
        return []

    def prediction_row(self, prediction: Any) -> dict[str, Any]:
        return {}

    def example_input(self, data: Any) -> Tensor:
        return torch.zeros(2, 2)

    def reset_metrics(self) -> None: ...
    def evaluate(self, batch: Any) -> None: ...
    def compute_metrics(self) -> tuple[dict[str, float], int]:
        return {"loss": 0.0}, 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class Rows(LightningDataModule):
    micro_batch, seed, val_data = 1, 0, ()

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=1)  # type: ignore[arg-type]


def quiet_trainer(accumulate: int, **kwargs: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, accumulate_grad_batches=accumulate, **kwargs,
    )  # fmt: skip


def gradients(rows: Tensor, accumulate: int) -> tuple[list[Tensor], Trainer]:
    task, trainer = Line(), quiet_trainer(accumulate)
    trainer.fit(task, Rows(rows))
    return task.gradients, trainer


def exact(rows: Tensor) -> Tensor:
    rows = rows[~rows.isnan().any(1)]
    return 2 * (rows.sum(1, keepdim=True) * rows).sum(0, keepdim=True) / len(rows)


def test_a_short_last_window_is_weighted_by_its_true_length() -> None:
    """Ten micro-batches, windows of four: Lightning alone gives the last step, of two, half its gradient."""
    rows = torch.randn(10, 2)
    got, trainer = gradients(rows, 4)
    assert trainer.global_step == 3
    for gradient, part in zip(got, (rows[:4], rows[4:8], rows[8:]), strict=True):
        torch.testing.assert_close(gradient, exact(part))


def test_lightning_alone_does_not() -> None:
    """The trap itself, so that this is noticed when Lightning mends it."""

    class Plain(Line):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            total, number = self.loss(batch)
            return total / number

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.gradients.append(self.network[0].weight.grad.clone())

    rows = torch.randn(10, 2)
    task = Plain()
    trainer = quiet_trainer(4)
    trainer.fit(task, Rows(rows))
    torch.testing.assert_close(task.gradients[-1], exact(rows[8:]) / 2)


def test_items_that_do_not_count() -> None:
    rows = torch.randn(8, 2)
    rows[1] = rows[2] = rows[4:] = torch.nan
    got, _ = gradients(rows, 4)
    torch.testing.assert_close(got[0], exact(rows[:4]))
    assert not got[1].any(), "a window without a single valid item has no gradient, and no NaN"


def test_clipping_sees_the_true_gradient() -> None:
    rows = 10 * torch.randn(4, 2)

    class Clipped(Line):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            self.clipped = self.network[0].weight.grad.norm()

    task = Clipped()
    trainer = quiet_trainer(4, gradient_clip_val=1.0)
    trainer.fit(task, Rows(rows))
    assert exact(rows).norm() > 1
    torch.testing.assert_close(task.clipped, torch.tensor(1.0))


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(FloatingPointError, match="at step 0 with 'none'; lower the learning rate"):
        gradients(torch.full((4, 2), 1e30), 4)


def mini(norm: str, **kwargs: Any) -> VOCSegmentation:
    return VOCSegmentation(norm=norm, network="deeplabv3_resnet_mini", aspp_width=32, **kwargs)


def checkpoint(path: Path, task: VOCSegmentation) -> str:
    content: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    torch.save(content, path)
    return str(path)


def test_init_from_the_same_normalization(tmp_path: Path) -> None:
    source = mini("gn+ws")
    path = checkpoint(tmp_path / "a.ckpt", source)
    task = mini("gn+ws", init_from=path)
    for a, b in zip(source.backbone().state_dict().values(), task.backbone().state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(source.network.classifier.weight, task.network.classifier.weight)


def test_init_from_another_is_refused_by_name(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", mini("gn"))
    with pytest.raises(NormMismatchError, match=r"a.ckpt' was trained with 'gn', the model is 'gn\+ws'"):
        mini("gn+ws", init_from=path)
    task = mini("gn+ws", init_from=path, init_from_any_norm=True)
    assert task.spec.weight == "ws"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        mini("gn", init_from=str(tmp_path / "b.ckpt"))


@pytest.mark.parametrize("norms", [("bn", "gn+ws"), ("gn", "bn"), ("sn+ws-af", "bn+wn"), ("gn+wn", "sn")])
def test_init_from_any_norm_takes_what_both_have(norms: tuple[str, str], tmp_path: Path) -> None:
    source = mini(norms[0])
    task = mini(norms[1], init_from=checkpoint(tmp_path / "a.ckpt", source), init_from_any_norm=True)
    for name in ("conv1.weight", "layer4.0.bn3.bias"):
        assert torch.equal(source.backbone().state_dict()[name], task.backbone().state_dict()[name])


def test_init_from_a_classifier(tmp_path: Path) -> None:
    """A checkpoint of the imagenet task: network.conv1..., network.fc."""
    source = mini("gn+ws")
    state = {f"network.{k}": v for k, v in source.backbone().state_dict().items()}
    content: dict[str, Any] = {"state_dict": state | {"network.fc.weight": torch.zeros(3, 3)}}
    stamp_spec(content, "gn+ws")
    torch.save(content, tmp_path / "a.ckpt")
    task = mini("gn+ws", init_from=str(tmp_path / "a.ckpt"))
    assert torch.equal(task.backbone().conv1.weight, source.backbone().conv1.weight)


def test_init_from_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"junk")
    with pytest.raises(TaskOptionError, match="is not a checkpoint"):
        mini("gn", init_from=str(path))
    state = {f"module.{k}": v for k, v in mini("gn").backbone().state_dict().items()}
    torch.save(state, path)
    with pytest.raises(NormMismatchError, match="does not say"):
        mini("gn", init_from=str(path))
    torch.save({"state_dict": state, "norm_spec": "gn"}, path)
    mini("gn", init_from=str(path))
    del state["module.conv1.weight"]
    torch.save({"state_dict": state | {"other": torch.zeros(1)}, "norm_spec": "gn"}, path)
    with pytest.raises(TaskOptionError, match=r"1 keys missing \(conv1.weight ...\); 1 keys unexpected \(other"):
        mini("gn", init_from=str(path))


def test_torchvision_weights_are_bn(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet50_Weights, resnet50

    theirs = resnet50()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda self, *a, **k: theirs.state_dict())
    task = VOCSegmentation(norm="bn", network="deeplabv3_resnet50", init_from="torchvision")
    assert torch.equal(task.backbone().layer4[2].conv3.weight, theirs.layer4[2].conv3.weight)
    with pytest.raises(NormMismatchError, match="'torchvision' was trained with 'bn'"):
        VOCSegmentation(norm="gn", network="deeplabv3_resnet50", init_from="torchvision")
    with pytest.raises(TaskOptionError, match="no ImageNet V1 weights"):
        mini("bn", init_from="torchvision")


def test_guard_on_loading() -> None:
    content: dict[str, Any] = {}
    mini("gn").on_save_checkpoint(content)
    mini("gn").on_load_checkpoint(content)
    with pytest.raises(NormMismatchError, match="'gn'"):
        mini("gn+ws").on_load_checkpoint(content)
    with pytest.raises(RuntimeError, match="task 'imagenet'"):
        mini("gn").on_load_checkpoint(content | {"task": "imagenet"})


def test_definitions_name_the_degenerate_cells() -> None:
    assert "running statistics" in mini("bn").definitions()["norms"]
    model = nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), nn.BatchNorm2d(32))
    assert not normalize(model, "gn+ws").notes
