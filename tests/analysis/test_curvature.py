"""Hutchinson's estimates against full Hessians, and H = P H' P on a network."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.analysis.small import problem
from wsbench.analysis import Estimate, Problem, ProblemError, curvature
from wsbench.analysis.curvature import centred_weights, project
from wsbench.norms import normalize

SPECS = ["gn", "gn+ws", "gn+ws-mo", "gn+ws-do", "gn+ws-af", "gn+ws@authors", "gn+ws@timm", "bn", "bn+ws"]


def full_hessian(of: Problem, leaves: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Blocks (numel, numel) of the Hessian of the mean loss with respect to ``leaves``, entry by entry."""
    names = list(leaves)
    with of.undisturbed():
        total = torch.stack(list(of.parts())).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()), create_graph=True)
        rows = {
            name: [torch.autograd.grad(entry, list(leaves.values()), retain_graph=True) for entry in grad.flatten()]
            for name, grad in zip(names, gradients, strict=True)
        }
    return {
        (a, b): torch.stack([row[i].flatten() for row in rows[a]]) for a in names for i, b in enumerate(names)
    }  # fmt: skip


def projector(layer: nn.Module) -> Tensor:
    """P as a matrix on the flattened weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    basis = torch.eye(weight.numel(), dtype=torch.double)
    return torch.stack([project(layer, e.view_as(weight)).flatten() for e in basis])


def exact(of: Problem) -> dict[str, tuple[float, float]]:
    """Layer to ||H'||^2 and ||P H' P||^2."""
    layers = of.layers
    with centred_weights(layers) as leaves:
        blocks = full_hessian(of, leaves)
    projected = {(a, b): projector(layers[a]) @ h @ projector(layers[b]) for (a, b), h in blocks.items()}
    found = {n: (float(blocks[n, n].square().sum()), float(projected[n, n].square().sum())) for n in layers}
    whole = [float(sum(h.square().sum() for h in b.values())) for b in (blocks, projected)]
    return found | {"network": (whole[0], whole[1])}


@pytest.mark.parametrize("spec", SPECS)
def test_estimates_of_squared_norms(spec: str) -> None:
    of = problem(spec)
    expected = exact(of)
    found = curvature(of, probes=60, seed=1)
    assert [c.name for c in found] == ["first", "second", "network"]
    for c in found:
        free, centred = expected[c.name]
        for estimate, truth in ((c.free, free), (c.centred, centred), (c.ratio, centred / free)):
            assert abs(estimate.mean - truth) < 4 * estimate.standard_error + 1e-9 * truth, c.name
            assert 0 < estimate.standard_error < 0.3 * truth, "an estimate, and a useful one"


@pytest.mark.parametrize("spec", ["gn+ws", "gn+ws-mo", "gn+ws-af", "gn+ws@authors", "gn+ws@bit", "bn+ws"])
def test_equation_17_on_a_network(spec: str) -> None:
    """The Hessian with respect to W is P H' P, where P H' P is built from the centred weights as free variables."""
    of = problem(spec)
    layers = of.layers
    with centred_weights(layers) as leaves:
        free = full_hessian(of, leaves)
    weights = {name: layer.weight for name, layer in layers.items()}
    h = full_hessian(of, weights)  # type: ignore[arg-type]
    for (a, b), block in h.items():
        expected = projector(layers[a]) @ free[a, b] @ projector(layers[b])
        # eps enters W's Hessian through sigma(W), as it does that of the centred weight
        torch.testing.assert_close(block, expected, rtol=1e-7, atol=1e-9)
        assert float((free[a, b] - block).norm()) > 1e-3 * float(block.norm()), "and H' is another one"


@pytest.mark.parametrize("spec", ["gn+ws", "gn+ws-mo", "bn+ws"])
def test_equation_19_for_every_output_channel(spec: str) -> None:
    of = problem(spec)
    layers = of.layers
    with centred_weights(layers) as leaves:
        free = full_hessian(of, leaves)
    for name, layer in layers.items():
        assert isinstance(layer.weight, Tensor)
        channels, fan_in = layer.weight.shape[0], layer.weight[0].numel()
        h = free[name, name].view(channels, fan_in, channels, fan_in)
        p = torch.eye(fan_in, dtype=torch.double) - 1 / fan_in
        for c in range(channels):
            block = h[c, :, c]
            assert (p @ block @ p).square().sum() <= block.square().sum() - block.sum() ** 2 / fan_in**2 + 1e-12


def test_the_loss_is_the_same_from_centred_weights() -> None:
    of = problem("gn+ws@authors")
    with of.undisturbed():
        before = [float(part.detach()) for part in of.parts()]
        with centred_weights(of.layers):
            after = [float(part.detach()) for part in of.parts()]
    assert after == pytest.approx(before, rel=1e-12)


def test_nothing_is_left_changed() -> None:
    of = problem("bn+ws")
    state = {name: value.clone() for name, value in of.network.state_dict().items()}
    of.network.eval()
    curvature(of, probes=2)
    assert not any(module.training for module in of.network.modules())
    for name, value in of.network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None for p in of.network.parameters())


def test_ratio_and_mean_by_hand() -> None:
    assert Estimate.of([1.0, 3.0]) == Estimate(2.0, 1.0)
    ratio = Estimate.ratio([1.0, 2.0], [2.0, 4.0])
    assert (ratio.mean, ratio.standard_error) == (0.5, 0.0)
    assert math.isnan(Estimate.ratio([0.0, 0.0], [0.0, 0.0]).mean)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad * 2


def _not_twice(x: Tensor) -> Tensor:
    out: Tensor = _Once.apply(x)
    return out


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda of: setattr(of.network.head, "forward", lambda x: _not_twice(x)), "differentiated once only"),
        (lambda of: normalize(of.network, "gn+wn", torch.zeros(1, 2, 6, 6).double()), r"'first' has 'gn\+wn'"),
        (lambda of: [p.requires_grad_(False) for p in of.network.parameters()], "no layer with a trainable weight"),
    ],
)
def test_what_cannot_be_measured(change: Callable[[Problem], object], match: str) -> None:
    of = problem("gn+ws")
    change(of)
    with pytest.raises(ProblemError, match=match):
        curvature(of, probes=2)


def test_too_few_probes() -> None:
    with pytest.raises(ProblemError, match="--probes 1: at least 2"):
        curvature(problem("gn"), probes=1)
