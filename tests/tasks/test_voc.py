"""Loss, schedule and metric of the VOC task against independent forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torchmetrics.classification import MulticlassJaccardIndex

from wsbench.datamodules import VOC
from wsbench.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD
from wsbench.tasks.voc import VOCSegmentation, mean_iou


def tiny_task(norm: str = "gn+ws", **kwargs: object) -> VOCSegmentation:
    return VOCSegmentation(norm=norm, network="deeplabv3_resnet_mini", aspp_width=32, output_stride=8, **kwargs)  # type: ignore[arg-type]


def histogram(predictions: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """The authors' way: add one in uint8, so that 255 wraps to 0; areas of intersection and union by histograms."""
    p, t = (predictions + 1).astype(np.uint8), (targets + 1).astype(np.uint8)
    p = p * (t > 0)
    both = p * (p == t)
    areas = [np.histogram(a, bins=classes, range=(1, classes))[0] for a in (both, p, t)]
    return areas[0] / (areas[1] + areas[2] - areas[0] + 1e-10)


@pytest.mark.parametrize("present", [21, 12])
def test_mean_iou_is_the_authors_and_torchmetrics(present: int) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, present, (4, 40, 40)).astype(np.uint8)
    predictions = np.where(rng.random(targets.shape) < 0.6, targets, rng.integers(0, present, targets.shape)).astype(
        np.uint8
    )
    targets[:, :3] = 255
    task = tiny_task()
    task.confusion.update(torch.from_numpy(predictions).long(), torch.from_numpy(targets).long())
    ours = float(mean_iou(task.confusion.compute()))
    assert ours == pytest.approx(histogram(predictions, targets, 21).mean(), abs=1e-12)
    theirs = MulticlassJaccardIndex(21, ignore_index=255, average="none")
    assert ours == pytest.approx(
        float(theirs(torch.from_numpy(predictions).long(), torch.from_numpy(targets).long()).mean()), abs=1e-6
    )


def test_mean_iou_is_not_averaged_per_image() -> None:
    """One matrix over the set: an image with little of a class does not weigh as much as one full of it."""
    confusion = torch.tensor([[90, 10], [0, 100]]) + torch.tensor([[1, 0], [9, 90]])
    assert float(mean_iou(confusion)) == pytest.approx((91 / (91 + 10 + 9) + 190 / (190 + 10 + 9)) / 2)


def random_batch(n: int) -> dict[str, torch.Tensor]:
    image, mask = torch.randint(0, 256, (n, 3, 33, 33)), torch.randint(0, 21, (n, 33, 33))
    return {"image": image.to(torch.uint8), "mask": mask.to(torch.uint8), "size": torch.tensor([[33, 20]] * n)}


def test_inputs_are_normalized_and_padding_is_the_mean_colour() -> None:
    batch = random_batch(2)
    x = tiny_task().inputs(batch)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(x[..., :20], (batch["image"][..., :20] / 255 - mean) / std)
    assert not x[..., 20:].any()
    assert x.dtype == torch.float32


def test_the_loss_is_a_sum_and_a_number() -> None:
    task = tiny_task()
    batch = random_batch(2)
    batch["mask"][0, :20] = 255
    total, number = task.loss(batch)
    expected = F.cross_entropy(task.network(task.inputs(batch)), batch["mask"].long(), ignore_index=255)
    torch.testing.assert_close(total / number, expected)
    batch["mask"][:] = 255
    total, number = task.loss(batch)
    assert (float(total), int(number)) == (0.0, 0)


@pytest.mark.parametrize("norm", ["gn+ws", "gn", "ln+ws", "in", "sn+ws-af", "gn+wn"])
def test_one_image_n_times_is_n_images_once(norm: str) -> None:
    """In float64, with valid pixels unevenly spread: sum of sums over sum of numbers."""
    task = tiny_task(norm).double()
    if norm.startswith("sn"):
        task.eval()  # at one sample SN has no batch statistics, so compare without them
    batch = random_batch(4)
    batch["mask"][0, 3:] = 255
    batch["mask"][2] = 255
    total, number = task.loss(batch)
    whole = torch.autograd.grad(total / number, list(task.network.parameters()), allow_unused=True)
    sums = [torch.zeros_like(p) for p in task.network.parameters()]
    count = 0
    for i in range(4):
        total, number = task.loss({k: v[i : i + 1] for k, v in batch.items()})
        grads = torch.autograd.grad(total, list(task.network.parameters()), allow_unused=True)
        sums = [s if g is None else s + g for s, g in zip(sums, grads, strict=True)]
        count += int(number)
    difference = max(float((s / count - w).abs().max()) for s, w in zip(sums, whole, strict=True) if w is not None)
    assert difference < 1e-11


def test_for_bn_it_is_not() -> None:
    task = tiny_task("bn").double()
    batch = random_batch(2)
    weight = task.network.classifier.weight
    whole = torch.autograd.grad(task.loss(batch)[0], weight)[0]
    parts = sum(
        torch.autograd.grad(task.loss({k: v[i : i + 1] for k, v in batch.items()})[0], weight)[0] for i in range(2)
    )
    assert float((whole - parts).norm() / whole.norm()) > 0.01


class Loop:
    """Runs fit on a tiny VOC without the command line."""

    def __init__(self, root: Path, **trainer: object) -> None:
        self.data = VOC(root=str(root), train_set="train", crop=33, num_workers=0, effective_batch=4, steps_per_epoch=2)
        self.trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
            **{"max_steps": 4, "accumulate_grad_batches": 4} | trainer,  # type: ignore[arg-type]
        )  # fmt: skip


def test_poly_schedule_at_every_step(voc_root: Path) -> None:
    loop = Loop(voc_root)
    task = tiny_task(lr=0.007, head_lr_mult=10.0)
    rates = []
    hook = task.on_before_optimizer_step
    task.on_before_optimizer_step = lambda o: (rates.append([g["lr"] for g in o.param_groups]), hook(o))  # type: ignore[method-assign,assignment,func-returns-value]
    loop.trainer.fit(task, loop.data)
    expected = [0.007 * (1 - step / 4) ** 0.9 for step in range(4)]
    np.testing.assert_allclose(rates, [[lr, 10 * lr] for lr in expected], rtol=1e-9)


def test_optimizer_is_the_authors(voc_root: Path) -> None:
    loop = Loop(voc_root)
    task = tiny_task()
    loop.trainer.fit(task, loop.data)
    (optimizer,) = loop.trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    groups = optimizer.param_groups
    assert {(g["momentum"], g["weight_decay"], g["nesterov"]) for g in groups} == {(0.9, 1e-4, False)}
    owned = [id(p) for g in groups for p in g["params"]]
    assert sorted(owned) == sorted(id(p) for p in task.network.parameters()), "everything decays, once"


def test_poly_needs_an_end_in_steps_or_epochs(voc_root: Path) -> None:
    loop = Loop(voc_root, max_steps=-1, max_epochs=-1)
    with pytest.raises(ValueError, match=r"needs an end: --trainer\.max_steps or --trainer.max_epochs"):
        loop.trainer.fit(tiny_task(), loop.data)
    loop = Loop(voc_root, max_steps=-1, max_epochs=2)
    task = tiny_task()
    loop.trainer.fit(task, loop.data)
    assert task.total_steps() == loop.trainer.global_step
    assert loop.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12), "it falls to zero there"


def test_classifier_init() -> None:
    spread = {n: float(tiny_task(n).network.classifier.weight.std()) for n in ("gn", "gn+ws")}
    assert spread["gn"] == pytest.approx(math.sqrt(2 / 21), rel=0.15), "N(0, sqrt(2 / 21)) without WS"
    assert spread["gn+ws"] == pytest.approx(1 / math.sqrt(3 * 32), rel=0.15), "PyTorch's default with it"
    assert float(tiny_task("gn", classifier_init="default").network.classifier.weight.std()) < 0.15


def test_networks_by_name() -> None:
    assert tiny_task().network_name == "deeplabv3_resnet_mini"
    with pytest.raises(ValueError, match="unknown network 'unet'; choose from deeplabv3_resnet50"):
        VOCSegmentation(network="unet")
