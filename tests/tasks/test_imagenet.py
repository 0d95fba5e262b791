"""ImageNet's optimizer, schedule, errors and predictions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms.v2 import functional as T

from tests import tiny
from wsbench.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.imagenet import ImageNetClassification
from wsbench.tasks.pictures import PictureScale


def test_sgd_decays_everything_and_falls_at_epochs(tiny_roots: dict[str, Path]) -> None:
    """Epochs of 2 steps: the rate of step 0 to 3 is 0.1, of 4 and 5 a tenth, of 6 and 7 a hundredth."""
    task: Any = tiny.model("imagenet", "gn+ws", lr=0.1, milestones=[2, 3])
    rates = []
    hook = task.on_before_optimizer_step
    task.on_before_optimizer_step = lambda o: (rates.append(o.param_groups[0]["lr"]), hook(o))
    trainer = tiny.trainer(max_epochs=4, max_steps=-1, limit_val_batches=0)
    trainer.fit(task, tiny.data("imagenet", tiny_roots["imagenet"]))
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    (optimizer,) = trainer.optimizers
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)
    assert {id(p) for p in group["params"]} == {id(p) for p in task.network.parameters()}
    assert task.planned_steps() == "4 epochs of 2"


def test_no_last_gamma_starts_at_zero() -> None:
    task: Any = tiny.model("imagenet", "gn+ws")
    gammas = [m.weight for m in task.network.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert gammas
    assert all(bool((g == 1).all()) for g in gammas)


def test_errors_are_torchmetrics(tiny_roots: dict[str, Path]) -> None:
    task: Any = tiny.model("imagenet", "gn")
    logits, labels = torch.randn(40, 10), torch.randint(0, 10, (40,))
    task.reset_metrics()
    task.logits = lambda batch: batch["image"]
    for part in (slice(0, 25), slice(25, 40)):
        task.evaluate({"image": logits[part], "label": labels[part]})
    values, count = task.compute_metrics()
    expected = [MulticlassAccuracy(10, top_k=k, average="micro")(logits, labels) for k in (1, 5)]
    assert values == pytest.approx(
        {f"top{k}_error": 100 * (1 - float(e)) for k, e in zip((1, 5), expected, strict=True)}
    )
    assert count == 40


def test_training_errors_are_logged_and_recorded(tiny_roots: dict[str, Path]) -> None:
    task: Any = tiny.model("imagenet", "gn")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hits = task.training_hits
    task.training_hits = lambda logits, labels: (seen.append((logits, labels)), hits(logits, labels))[1]
    trainer = tiny.trainer(max_steps=4, limit_val_batches=0)
    trainer.fit(task, tiny.data("imagenet", tiny_roots["imagenet"]))
    last = seen[-4:]  # two steps of two micro-steps: the last epoch
    wrong = sum(int((logits.argmax(1) != labels).sum()) for logits, labels in last)
    metric = task.training_metrics["train_top1_error"]
    assert (metric.value, metric.n_eval, metric.step) == (pytest.approx(100 * wrong / 8), 8, 4)


def test_pixels_are_normalized_as_torchvision_does() -> None:
    pictures = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = T.normalize(T.to_dtype(pictures, torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(PictureScale()(pictures, torch.zeros(())), expected, rtol=0, atol=2e-6)


def test_loss_is_a_sum(tiny_roots: dict[str, Path]) -> None:
    task: Any = tiny.model("imagenet", "ln", label_smoothing=0.1)
    batch = {"image": torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), "label": torch.tensor([1, 5, 9])}
    total, number = task.loss(batch)
    expected = F.cross_entropy(task.logits(batch), batch["label"], label_smoothing=0.1)
    torch.testing.assert_close(total / number, expected)


def test_the_order_of_classes_is_checked(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    root = tiny_roots["imagenet"]
    trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(tiny.model("imagenet", "gn"), tiny.data("imagenet", root))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    other = tmp_path / "other"
    tiny.write("imagenet", other)
    for split in ("train", "val"):
        (other / split / "n00000003").rename(other / split / "n00000033")
    with pytest.raises(TaskOptionError, match="class 3 is 'n00000003' there and 'n00000004' here"):
        tiny.trainer().validate(
            tiny.model("imagenet", "gn"), tiny.data("imagenet", other), ckpt_path=str(tmp_path / "x.ckpt")
        )


def test_predictions_are_five_classes(tmp_path: Path) -> None:
    task: Any = tiny.model("imagenet", "gn").eval()
    task.classes = tuple("abcdefghij")
    batch = {"image": torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8), "path": "x/cat.jpg", "name": "cat"}
    (path,) = task.write_prediction(task.predict_step(batch, 0), tmp_path)
    content = json.loads(path.read_text())
    probabilities = task.logits(batch)[0].softmax(0)
    assert path.name == "cat.json"
    assert list(content["classes"]) == ["abcdefghij"[i] for i in probabilities.topk(5).indices]


def test_unknown_networks_and_options() -> None:
    for options, message in (
        ({"network": "vgg"}, "unknown ResNet 'vgg'; choose from resnet50"),
        ({"network": "resnetv2_7x1"}, "unknown ResNet 'resnetv2_7x1'"),
        ({"label_smoothing": 1.0}, "--model.label_smoothing"),
    ):
        with pytest.raises(TaskOptionError, match=message):
            ImageNetClassification(**({"num_classes": 10} | options))  # type: ignore[arg-type]
