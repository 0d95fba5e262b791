"""Every task under every specification: train, evaluate, save, load, predict the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from wsbench.norms import GroupsError, NormMismatchError
from wsbench.tasks import task_class

#: whose loss is a sum over samples or pixels
ADDITIVE = [task for task in tiny.TASKS if task_class(task).additive_loss]

#: the paper's norms
MAIN = tuple(f"{act}{weight}" for act in ("bn", "gn", "ln", "in", "sn") for weight in ("", "+ws"))
SPECS = (
    *MAIN, *(f"{act}+wn" for act in ("bn", "gn", "ln", "in", "sn")),
    "gn+ws-mo", "gn+ws-do", "gn+ws-af", "bn+ws-af",
    "ln+ws-mo", "in+ws-do", "sn+ws-af", "gn+ws@authors", "gn+ws@timm", "gn+ws@bit", "frozenbn",
    "syncbn+sws", "gbn2+cwn", "brn", "mabn+ws-mo", "bcn+ws", "bcn@estimate", "frn+spectral", "evos", "evob", "cln",
    "rms+ws", "none+sws",
)  # fmt: skip


def outputs(task: Any, batch: Any) -> list[torch.Tensor]:
    """What the network says in evaluation."""
    task.eval()
    with torch.no_grad():
        if task.task == "coco":
            return [v for out in task.network([image / 255 for image in batch["images"]]) for v in out.values()]
        return [task.network(task.inputs(batch))]


@pytest.mark.parametrize(
    ("task", "spec"),
    [
        pytest.param(task, spec, marks=() if spec in MAIN or task == "imagenet" else pytest.mark.thorough)
        for task in tiny.TASKS
        for spec in SPECS
    ],
)
def test_cell(task: str, spec: str, tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    """Two steps of two micro-steps, an evaluation, a checkpoint; another model loads it and says the same."""
    data = tiny.data(task, tiny_roots[task])
    model = tiny.model(task, spec, **({"lr": 1e-3} if spec == "evob" else {}))  # which two images let diverge
    trainer = tiny.trainer()
    trainer.fit(model, data)
    assert trainer.global_step == 2
    assert model.evaluation is not None
    assert model.evaluation.n_eval == tiny.COUNTS[task]["val"]
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.manual_seed(77)
    other = tiny.model(task, spec)
    again = tiny.trainer()
    again.validate(other, data, ckpt_path=str(tmp_path / "x.ckpt"), verbose=False, weights_only=True)
    assert other.evaluation is not None
    assert other.evaluation.values == model.evaluation.values
    batch = next(iter(data.val_dataloader()))
    for ours, theirs in zip(outputs(model, batch), outputs(other, batch), strict=True):
        assert torch.equal(ours, theirs)
        assert bool(ours.isfinite().all())


@pytest.mark.parametrize("task", tiny.TASKS)
def test_forbidden_groups_are_refused(task: str) -> None:
    with pytest.raises(GroupsError, match=r"layer '.*': 48 groups do not divide"):
        tiny.model(task, "gn48+ws")


@pytest.mark.parametrize("task", tiny.TASKS)
def test_another_norms_checkpoint_is_refused(task: str, tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(tiny.model(task, "gn"), tiny.data(task, tiny_roots[task]))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(NormMismatchError, match=r"trained with 'gn', the model is 'gn\+ws'"):
        tiny.trainer().validate(
            tiny.model(task, "gn+ws"), tiny.data(task, tiny_roots[task]), ckpt_path=str(tmp_path / "x.ckpt"),
            weights_only=True,
        )  # fmt: skip


def gradients(model: Any, batches: list[Any]) -> tuple[list[torch.Tensor], int]:
    """Sum of the gradients of all batches, and the number of items."""
    sums = [torch.zeros_like(p) for p in model.network.parameters()]
    count = 0
    for batch in batches:
        total, number = model.loss(batch)
        grads = torch.autograd.grad(total, list(model.network.parameters()), allow_unused=True)
        sums = [s if g is None else s + g for s, g in zip(sums, grads, strict=True)]
        count += int(number)
    return sums, count


def single_batches(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of a batch, each in a batch of its own."""
    return [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(next(iter(batch.values()))))]


def relative_difference(task: str, norm: str, root: Path) -> float:
    """Gradients of one image four times and of four images once, in float64, relative to the largest."""
    torch.manual_seed(5)
    model = tiny.model(task, norm).double()
    data = tiny.data(task, root, micro_batch=4)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    whole, count = gradients(model, [batch])
    parts, same_count = gradients(model, single_batches(batch))
    assert count == same_count
    pairs = [(w, p) for w, p in zip(whole, parts, strict=True) if float(w.abs().max()) > 0]
    assert pairs
    scale = max(float(w.abs().max()) for w, _ in pairs)
    return max(float((w - p).abs().max()) / scale for w, p in pairs)


@pytest.mark.parametrize("norm", ["gn", "gn+ws", "ln", "ln+ws", "in", "in+ws", "frn", "evos", "cln+sws"])
@pytest.mark.parametrize("task", ADDITIVE)
def test_one_image_n_times_is_n_images_once(task: str, norm: str, tiny_roots: dict[str, Path]) -> None:
    """Every task whose loss is a sum over samples or pixels; COCO's is a ratio in each image (see its record)."""
    assert relative_difference(task, norm, tiny_roots[task]) < 1e-11


@pytest.mark.parametrize("task", ADDITIVE)
def test_for_bn_it_is_not(task: str, tiny_roots: dict[str, Path]) -> None:
    assert relative_difference(task, "bn", tiny_roots[task]) > 1e-3


def test_coco_weighs_micro_batches_by_pictures(tiny_roots: dict[str, Path]) -> None:
    """The sum that ``loss`` returns is the detector's own loss times images, and the number is that of images."""
    model: Any = tiny.model("coco", "gn+ws")
    data = tiny.data("coco", tiny_roots["coco"], micro_batch=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    total, number = model.loss(batch)
    torch.manual_seed(0)
    losses = model.network([p.float() / 255 for p in batch["images"]], batch["targets"])
    assert int(number) == 2
    torch.testing.assert_close(total, 2 * sum(losses.values()))
    assert "weighted by images" in model.definitions()["loss"]
