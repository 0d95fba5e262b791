"""Gradients on effective weights, against autograd of a network that computes with them as leaves."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.norms.nets import SPECS, Net, batches, net
from wsbench.norms import AccumulationWindow, GradientTap, NormalizedLayer, TapError, normalized, substituted


def on_leaves(model: Net, data: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """dL/dŴ by making every Ŵ a parameter of a plain layer."""
    plain = copy.deepcopy(model)
    names = [n for n, m in plain.named_modules() if isinstance(m, NormalizedLayer)]
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = plain.get_submodule(name)
        assert isinstance(layer, NormalizedLayer)
        setattr(plain.get_submodule(parent), child, layer.to_plain(layer.effective_weight()))
    for x, y in data:
        (F.cross_entropy(plain(x), y) / len(data)).backward()
    gradients = {}
    for name in names:
        grad = plain.get_submodule(name).weight.grad
        if grad is not None:
            assert isinstance(grad, Tensor)
            gradients[name] = grad
    return gradients


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("windowed", [True, False])
def test_gradients_are_those_of_the_effective_weights(spec: str, windowed: bool) -> None:
    model, data = net(spec), batches(3)
    expected = on_leaves(model, data)
    window = AccumulationWindow(model) if windowed else None
    with GradientTap(model) as tap:
        for i, (x, y) in enumerate(data):
            with window.micro_step(last=i == 2) if window else nullcontext():
                (F.cross_entropy(model(x), y) / 3).backward()
    assert tap.gradients.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(tap.gradients[name], grad, rtol=1e-10, atol=1e-13)


def test_the_network_learns_what_it_would_have_learned() -> None:
    ours, theirs = net(), net()
    x, y = batches(1)[0]
    with GradientTap(ours):
        F.cross_entropy(ours(x), y).backward()
    F.cross_entropy(theirs(x), y).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_layers_without_a_part_are_missing() -> None:
    model = net()
    model.use_maybe = False
    model.stem.weight.requires_grad_(False)
    x, y = batches(1)[0]
    with GradientTap(model) as tap:
        F.cross_entropy(model(x), y).backward()
    assert set(tap.layers) - set(tap.gradients) == {"maybe", "stem"}


def test_a_closed_tap_keeps_what_it_has_and_a_new_opening_begins_anew() -> None:
    model = net()
    x, y = batches(1)[0]
    tap = GradientTap(model)
    with tap:
        F.cross_entropy(model(x), y).backward()
    once = {name: grad.clone() for name, grad in tap.gradients.items()}
    F.cross_entropy(model(x), y).backward()
    assert all(torch.equal(tap.gradients[name], grad) for name, grad in once.items())
    assert not tap.is_open
    with tap:
        F.cross_entropy(model(x), y).backward()
    assert all(torch.equal(tap.gradients[name], grad) for name, grad in once.items())


def test_half_precision_is_summed_in_float32() -> None:
    layer = normalized(nn.Conv2d(3, 4, 3), "gn+ws").to(torch.bfloat16)
    with GradientTap(nn.Sequential(layer)) as tap:
        layer(torch.randn(1, 3, 5, 5, dtype=torch.bfloat16)).sum().backward()
    assert tap.gradients["0"].dtype == torch.float32


def test_one_tap_at_a_time_and_copies_have_none() -> None:
    model = net()
    with GradientTap(model):
        with pytest.raises(TapError, match="'stem' is tapped already; close"):
            GradientTap(model).open()
        assert "tap" in model.stem.attached
        assert "tap" not in copy.deepcopy(model).stem.attached
        assert "tap" not in pickle.loads(pickle.dumps(model.stem)).attached
    assert "tap" not in model.stem.attached


def test_other_weights_in_place_of_the_effective_ones() -> None:
    layer = normalized(nn.Conv2d(3, 4, 3, bias=False), "gn+ws")
    assert isinstance(layer, NormalizedLayer)
    x, other = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    before = layer(x)
    with substituted({layer: lambda: other}):
        assert torch.equal(layer(x), F.conv2d(x, other))
        with pytest.raises(TapError, match="tapped already"), substituted({layer: lambda: other}):
            pass
        assert torch.equal(layer(x), F.conv2d(x, other)), "the inner one took nothing away"
    assert torch.equal(layer(x), before)
