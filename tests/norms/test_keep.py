"""What every normalization layer keeps when it becomes every other: eps, momentum, affine parameters, statistics."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from wsbench.norms import ACTIVATIONS, normalize

C = 8
#: eps, momentum and whatever else is not the default
MADE = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(C, eps=1e-3, momentum=0.3),
    "BatchNorm2d without statistics": lambda: nn.BatchNorm2d(C, eps=1e-3, momentum=0.3, track_running_stats=False),
    "BatchNorm2d without parameters": lambda: nn.BatchNorm2d(C, eps=1e-3, momentum=0.3, affine=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(C, eps=1e-3, momentum=0.3),
    "FrozenBatchNorm2d": lambda: FrozenBatchNorm2d(C, eps=1e-3),
    "GroupNorm": lambda: nn.GroupNorm(2, C, eps=1e-3),
    "GroupNorm without parameters": lambda: nn.GroupNorm(2, C, eps=1e-3, affine=False),
    "GroupNorm of one group": lambda: nn.GroupNorm(1, C, eps=1e-3),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(C, eps=1e-3, affine=True),
    "InstanceNorm2d without parameters": lambda: nn.InstanceNorm2d(C, eps=1e-3),
    **{f"ours: {name}": (lambda name=name: ours(name)) for name in ACTIVATIONS},
}
METHOD = {
    "BatchNorm2d": "bn", "BatchNorm2d without statistics": "bn", "BatchNorm2d without parameters": "bn",
    "SyncBatchNorm": "syncbn", "FrozenBatchNorm2d": "frozenbn", "GroupNorm": "gn", "GroupNorm without parameters": "gn",
    "GroupNorm of one group": "ln", "InstanceNorm2d": "in", "InstanceNorm2d without parameters": "in",
    **{f"ours: {name}": name for name in ACTIVATIONS},
}  # fmt: skip


#: those with BN's state, and those of them whose eps and momentum are BN's, too
BN_STATE, BN_NUMBERS = {"bn", "frozenbn", "syncbn", "gbn", "brn"}, {"bn", "frozenbn", "syncbn", "gbn"}


def ours(name: str) -> nn.Module:
    layer = ACTIVATIONS[name].build(C)
    for attribute, value in (("eps", 1e-3), ("momentum", 0.3)):
        if hasattr(layer, attribute):
            setattr(layer, attribute, value)
    return layer


def filled(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.fill_(7)
    return layer


def tensors(layer: nn.Module) -> dict[str, Tensor]:
    return {**layer._parameters, **layer._buffers}  # type: ignore[dict-item]


@pytest.mark.parametrize(("old_name", "to"), itertools.product(MADE, ACTIVATIONS))
def test_every_pair(old_name: str, to: str) -> None:
    old = filled(MADE[old_name]())
    had = {k: v.detach().clone() for k, v in tensors(old).items() if v is not None}
    objects, had_eps = dict(old.named_parameters()), hasattr(old, "eps")
    model = nn.Sequential(nn.Conv2d(3, C, 3, bias=False), old, nn.ReLU())
    report = normalize(model, to, torch.randn(2, 3, 5, 5))
    new, was = model[1], METHOD[old_name]
    now = {k: v for k, v in tensors(new).items() if v is not None}
    same = was == to or {was, to} <= BN_STATE
    numbers = was == to or {was, to} <= BN_NUMBERS

    # affine: values always, objects where both have parameters
    if "weight" in had and "weight" in now:
        for name in ("weight", "bias"):
            assert torch.equal(now[name], had[name])
            if name in objects and name in new._parameters:
                assert now[name] is objects[name]
    if "weight" not in had and was != "none" and to not in ("none", "frozenbn"):
        torchs = was == to or (was, to) == ("bn", "syncbn")
        assert ("weight" in now) != torchs, "whether it is affine is kept within a method"
        if "weight" in now:
            assert torch.equal(now["weight"], torch.ones(C))
            assert "the affine parameters are new" in report.notes[0]

    # eps and momentum
    if had_eps and hasattr(new, "eps"):
        own = ACTIVATIONS[to].build(C).eps
        assert new.eps == (1e-3 if numbers else own)
        assert any(f"eps 0.001 becomes {own:g}" in note for note in report.notes) == (not numbers)
    if was == to and hasattr(new, "momentum"):
        assert new.momentum == 0.3

    # statistics
    statistics = {"running_mean", "running_var", "num_batches_tracked", "mean_weight", "var_weight"} & now.keys()
    if was == "bn" and to in ("bn", "syncbn") and old_name.endswith("without statistics"):
        assert not statistics
    if to == "brn" and was != to:
        statistics -= {"num_batches_tracked"}  # counts its schedule
    for name in statistics & had.keys() if same else set():
        assert torch.equal(now[name], had[name])
    if was == to:
        assert all(torch.equal(now[name], had[name]) for name in now if name in had)
    if same and was == "bn" and statistics:
        assert {"running_mean", "running_var"} <= had.keys() or old_name.endswith("without statistics")

    if same and to in BN_STATE and not old_name.endswith("without statistics"):
        x = torch.randn(2, C, 4, 4)
        w, b = had.get("weight", torch.ones(C)), had.get("bias", torch.zeros(C))
        mean, var, weight, bias = (
            t.double().view(1, -1, 1, 1) for t in (had["running_mean"], had["running_var"], w, b)
        )
        expected = (x.double() - mean) / (var + (1e-3 if numbers else 1e-5)).sqrt() * weight + bias
        torch.testing.assert_close(new.eval()(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_small_variances_show_the_eps() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 3, bias=False), nn.BatchNorm2d(C, eps=1e-3))
    model[1].running_var.fill_(1e-4)
    x = torch.randn(2, 3, 8, 8)
    before = model.eval()(x)
    normalize(model, "frozenbn", x)
    torch.testing.assert_close(model(x), before)


def test_a_schedule_starts_anew_on_statistics_from_elsewhere() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 3, bias=False), nn.BatchNorm2d(C))
    model[1].num_batches_tracked.fill_(450_000)
    model[1].running_mean.fill_(2)
    normalize(model, "brn")
    assert int(model[1].num_batches_tracked) == 0
    assert bool((model[1].running_mean == 2).all())
