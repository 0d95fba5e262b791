"""TSM's optimizer groups, and that it needs time's order."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests import tiny
from wsbench.datamodules.mini import something as mini
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.something import parameter_groups


@pytest.mark.parametrize("norm", ["bn", "gn", "gn+ws", "sn", "gn+wn", "in+ws-af", "none"])
def test_groups_are_tsms(norm: str, tiny_roots: dict[str, Path]) -> None:
    """First weight and other weights at the rate; biases at twice, norms without decay; the head at 5 and 10 times."""
    task: Any = tiny.model("something", norm)
    trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(task, tiny.data("something", tiny_roots["something"]))
    groups = {g["name"]: g for g in trainer.optimizers[0].param_groups}
    factors = {n: (g["initial_lr"] / 0.0125, g["weight_decay"] / 5e-4) for n, g in groups.items()}
    expected = {"first weight": (1, 1), "weight": (1, 1), "norm": (1, 0), "head weight": (5, 1), "head bias": (10, 0)}
    for name in factors:
        assert factors[name] == pytest.approx(expected[name]), name
    owned = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(owned) == sorted(id(p) for p in task.network.parameters()), "every parameter once"
    assert [tuple(p.shape) for p in groups["first weight"]["params"]] == [(64, 3, 7, 7)]
    vectors = [p for p in task.network.backbone.parameters() if p.dim() == 1]
    if norm != "none":
        assert {id(p) for p in vectors} <= {id(p) for p in groups["norm"]["params"]}
    if norm.endswith(("wn", "af")):
        gains = [p for n, p in task.network.named_parameters() if n.endswith(("weight_gain", "weight_shift"))]
        assert gains
        assert {id(p) for p in gains} <= {id(p) for p in groups["norm"]["params"]}


def test_biases_have_twice_the_rate_and_no_decay() -> None:
    task: Any = tiny.model("something", "gn")
    conv = task.network.backbone.layer1[0].conv2
    conv.bias = torch.nn.Parameter(torch.zeros(64))
    groups = parameter_groups(task.network)
    assert [id(p) for p in groups["bias"]] == [id(conv.bias)]


def test_an_unknown_layer_is_refused() -> None:
    task: Any = tiny.model("something", "gn")
    task.network.backbone.extra = torch.nn.PReLU()
    with pytest.raises(TypeError, match="no learning policy for 'weight' of PReLU"):
        parameter_groups(task.network)


def test_head_rates_of_trn(tiny_roots: dict[str, Path]) -> None:
    trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
    task = tiny.model("something", "gn", head_lr=False)
    trainer.fit(task, tiny.data("something", tiny_roots["something"]))
    groups = {g["name"]: g["initial_lr"] for g in trainer.optimizers[0].param_groups}
    assert (groups["head weight"], groups["head bias"]) == pytest.approx((0.0125, 0.025))
    assert "1 and 2" in task.definitions()["optimizer"]


def test_without_the_shift_the_order_of_frames_cannot_matter(tiny_roots: dict[str, Path]) -> None:
    batch = {"clip": torch.randint(0, 256, (2, 8, 3, 32, 32), dtype=torch.uint8)}
    shuffled = {"clip": batch["clip"][:, [3, 1, 7, 0, 2, 6, 5, 4]]}
    tsn: Any = tiny.model("something", "gn+ws", network="tsn_resnet_mini").double().eval()
    torch.testing.assert_close(tsn.logits(batch), tsn.logits(shuffled))
    tsm: Any = tiny.model("something", "gn+ws").double().eval()
    assert float((tsm.logits(batch) - tsm.logits(shuffled)).detach().abs().max()) > 1e-9


@pytest.mark.thorough
@pytest.mark.slow
def test_tsm_tells_directions_apart_and_the_same_network_without_the_shift_does_not(tmp_path: Path) -> None:
    """The miniature's first and last class on small frames: nearly all right with the shift, a coin's toss without."""
    labels = {"one place to the right": 1, "one place to the left": 8}
    with mock.patch.dict(mini.COUNTS, {"train": 240, "val": 80}), mock.patch.object(mini, "LABELS", labels):
        mini.write(tmp_path / "data")
    accuracy = {}
    for network in ("tsm_resnet_mini", "tsn_resnet_mini"):
        data = tiny.data("something", tmp_path / "data", num_classes=2, micro_batch=4, steps_per_epoch=50,
                         scales=(1.0,), eval_batch=20, seed=1)  # fmt: skip
        torch.manual_seed(0)
        task = tiny.model("something", "bn", network=network, num_classes=2, lr=0.02, milestones=[3])
        tiny.trainer(max_steps=200, accumulate_grad_batches=1, gradient_clip_val=20.0).fit(task, data)
        assert task.evaluation is not None
        accuracy[network] = task.evaluation.values["top1_acc"]
    assert accuracy["tsm_resnet_mini"] > 85, accuracy
    assert accuracy["tsn_resnet_mini"] < 70, accuracy


def test_unknown_networks() -> None:
    with pytest.raises(TaskOptionError, match="unknown network 'i3d'; choose tsm_ or tsn_"):
        tiny.model("something", "gn", network="i3d")
