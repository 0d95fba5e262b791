"""Norms that came after the paper: their equations in float64, gradients, degenerate cells, and others' code."""

import copy
import math
from typing import Any

import pytest
import timm.layers as timm_layers
import torch
from torch import Tensor, nn

from wsbench.norms import ACTIVATIONS, GroupsError, NormSpec

C, EPS = 8, 1e-5
SHAPES = [(5, C), (3, C, 5), (3, C, 5, 4), (3, C, 3, 4, 2)]
RIVALS = ["syncbn", "gbn2", "brn", "mabn4", "bcn4", "bcn4@estimate", "frn", "evos4", "evob", "cln", "rms"]


def build(text: str, channels: int = C) -> Any:
    """In float64, with random parameters and statistics."""
    spec = NormSpec.parse(text)
    layer = ACTIVATIONS[spec.act].build(channels, spec.groups, spec.act_semantics).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.double))
        for name, buffer in layer.named_buffers():
            if name in ("running_mean", "running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.double) + 0.5)
    return layer


def data(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * 2 + 0.7


def wide(vector: Tensor, x: Tensor) -> Tensor:
    return vector.detach().view(1, -1, *(1,) * (x.dim() - 2))


def over(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, by their definitions."""
    mean = x.sum(dims, keepdim=True) / math.prod(x.shape[d] for d in dims)
    square = (x - mean) ** 2
    return mean, square.sum(dims, keepdim=True) / math.prod(x.shape[d] for d in dims)


def batch_dims(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def affine(layer: Any, x: Tensor) -> Tensor:
    return x * wide(layer.weight, x) + wide(layer.bias, x)


@pytest.mark.parametrize("shape", SHAPES)
def test_cln(shape: tuple[int, ...]) -> None:
    x, layer = data(shape), build("cln")
    mean, var = over(x, (1,))
    torch.testing.assert_close(layer(x), affine(layer, (x - mean) / (var + 1e-6).sqrt()))


@pytest.mark.parametrize("shape", SHAPES)
def test_rms(shape: tuple[int, ...]) -> None:
    x, layer = data(shape), build("rms")
    mean_square = sum(x[:, i] ** 2 for i in range(C)) / C
    torch.testing.assert_close(layer(x), affine(layer, x / (mean_square + 1e-6).sqrt()[:, None]))


def test_per_pixel_norms_are_timms() -> None:
    x = data((3, C, 5, 4))
    for ours, theirs in ((build("cln"), timm_layers.LayerNorm2d(C)), (build("rms"), timm_layers.RmsNorm2d(C))):
        theirs.double()
        theirs.weight.data.copy_(ours.weight.data)
        if getattr(theirs, "bias", None) is None:
            ours.bias.data.zero_()
        else:
            theirs.bias.data.copy_(ours.bias.data)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_frn(shape: tuple[int, ...]) -> None:
    x, layer = data(shape), build("frn")
    nu = (x**2).sum(tuple(range(2, x.dim())), keepdim=True) / math.prod(shape[2:])
    y = affine(layer, x / (nu + 1e-6).sqrt())
    torch.testing.assert_close(layer(x), torch.where(y > wide(layer.tau, x), y, wide(layer.tau, x)))
    layer.drop_activation()
    torch.testing.assert_close(layer(x), y)
    assert "tau" not in layer.state_dict()


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_evos(shape: tuple[int, ...]) -> None:
    x, layer = data(shape), build("evos4")
    out = torch.empty_like(x)
    for n in range(len(x)):
        for group in range(4):
            channels = slice(2 * group, 2 * group + 2)
            part = x[n, channels]
            var = ((part - part.mean()) ** 2).mean()
            v = layer.v.detach()[channels].view(2, *(1,) * (x.dim() - 2))
            out[n, channels] = part / (1 + torch.exp(-v * part)) / (var + EPS).sqrt()
    torch.testing.assert_close(layer(x), affine(layer, out))
    layer.drop_activation()
    torch.testing.assert_close(layer(x), affine(layer, x))
    assert "v" not in layer.state_dict()


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_evob(shape: tuple[int, ...]) -> None:
    x, layer = data(shape), build("evob")
    before = layer.running_var.clone()
    _, var = over(x, batch_dims(x))
    _, own = over(x, tuple(range(2, x.dim())))
    other = wide(layer.v, x) * x + (own + EPS).sqrt()
    torch.testing.assert_close(layer(x), affine(layer, x / torch.maximum((var + EPS).sqrt(), other)))
    values = x.numel() // C
    torch.testing.assert_close(layer.running_var, 0.9 * before + 0.1 * var.flatten() * values / (values - 1))
    running = wide(layer.running_var, x)
    torch.testing.assert_close(layer.eval()(x), affine(layer, x / torch.maximum((running + EPS).sqrt(), other)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("frn", timm_layers.FilterResponseNormTlu2d(C, eps=1e-6)),
        ("evos4", timm_layers.EvoNorm2dS0(C, groups=4)),
        ("evob", timm_layers.EvoNorm2dB0(C, eps=1e-5)),
    ],
)
@pytest.mark.parametrize("activation", [True, False])
def test_activating_norms_are_timms(ours: str, theirs: nn.Module, activation: bool) -> None:
    layer, x = build(ours).float(), data((3, C, 5, 4)).float()
    theirs = copy.deepcopy(theirs)
    if not activation:
        layer.drop_activation()
        theirs = type(theirs)(C, apply_act=False, eps=theirs.eps)
    wanted = theirs.state_dict().keys()
    theirs.load_state_dict({k: v for k, v in layer.state_dict().items() if k in wanted}, strict=activation)
    for training in (True, False):
        layer.train(training)
        theirs.train(training)
        torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)
    if ours == "evob" and activation:
        torch.testing.assert_close(layer.running_var, theirs.running_var)


@pytest.mark.parametrize("shape", SHAPES)
def test_gbn_is_bn_of_each_part(shape: tuple[int, ...]) -> None:
    x, layer = data(shape), build("gbn2")
    bn = ACTIVATIONS["bn"].build(C).double()
    bn.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), torch.cat([bn(part) for part in x.split(2)]))
    torch.testing.assert_close(dict(layer.named_buffers()), dict(bn.named_buffers()))
    torch.testing.assert_close(layer.eval()(x), bn.eval()(x))


def test_gbn_running_statistics_are_algorithm_1s() -> None:
    layer, x = ACTIVATIONS["gbn"].build(C, 4).double(), data((12, C, 3, 3))
    eta, parts = 0.1, x.split(4)
    layer(x)
    expected = sum((1 - eta) ** (len(parts) - 1 - i) * eta * part.mean((0, 2, 3)) for i, part in enumerate(parts))
    torch.testing.assert_close(layer.running_mean, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("passes", "r_max", "d_max"), [(0, 1, 0), (5_000, 1, 0), (15_000, 1 + 2 * 2 / 7, 2.5),
                                                        (25_000, 1 + 2 * 4 / 7, 5), (90_000, 3, 5)])  # fmt: skip
def test_brn(shape: tuple[int, ...], passes: int, r_max: float, d_max: float) -> None:
    x, layer = 4 * data(shape), build("brn")
    layer.num_batches_tracked.fill_(passes)
    mu, sigma = layer.running_mean.clone(), (layer.running_var + EPS).sqrt()
    mean, var = (t.flatten() for t in over(x, batch_dims(x)))
    sigma_batch = (var + EPS).sqrt()
    r = torch.clamp(sigma_batch / sigma, 1 / r_max, r_max)
    d = torch.clamp((mean - mu) / sigma, -d_max, d_max)
    expected = affine(layer, (x - wide(mean, x)) / wide(sigma_batch, x) * wide(r, x) + wide(d, x))
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.running_mean, mu + 0.01 * (mean - mu))
    torch.testing.assert_close((layer.running_var + EPS).sqrt(), sigma + 0.01 * (sigma_batch - sigma))
    bn = ACTIVATIONS["bn"].build(C).double().eval()
    bn.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer.eval()(x), bn(x))


def test_brn_before_its_schedule_is_bn_and_a_wide_one_is_evaluation() -> None:
    x, layer = data((3, C, 4, 4)), build("brn")
    bn = ACTIVATIONS["bn"].build(C).double()
    bn.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), bn(x))
    layer.num_batches_tracked.fill_(100_000)
    with torch.no_grad():
        evaluated = copy.deepcopy(layer).eval()(x)
        layer.running_mean.add_(0)
        torch.testing.assert_close(layer(x), evaluated)  # r and d are within their limits


def test_a_schedule_shrinks_with_the_run() -> None:
    layer = build("brn")
    layer.starts_training(800)
    layer.num_batches_tracked.fill_(150)
    assert [float(v) for v in layer.limits] == pytest.approx([1 + 2 * 2 / 7, 2.5])
    layer.starts_training(10**6)
    assert [float(v) for v in layer.limits] == [1, 0]
    layer.starts_training(None)
    assert [float(v) for v in layer.limits] == [1, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_mabn(shape: tuple[int, ...]) -> None:
    """Pass by pass against the equations, with a window of 4, averages from 5 passes on and r from 11 on."""
    layer = build("mabn4")
    layer.starts_training(160)  # a hundredth: averages after one pass and once the window is full, r after 10
    running, squares, gradients = layer.running_var.clone(), [], []
    for number in range(1, 16):
        x = (data(shape) * (1 + number / 10)).requires_grad_()
        grad = torch.randn(shape, dtype=torch.double)
        dims = batch_dims(x)
        squares.append((x.detach() ** 2).mean(dims))
        chi = torch.stack(squares[-4:]).mean(0) if number > 4 else squares[-1]
        r = torch.ones(C, dtype=torch.double)
        if number > 10:
            r = ((chi + EPS).sqrt() / (running + EPS).sqrt()).clamp(0.2, 5)
        z = x.detach() / wide((chi + EPS).sqrt(), x)
        running = 0.98 * running + 0.02 * chi
        out = layer(x)
        torch.testing.assert_close(out, affine(layer, wide(r, x) * z))
        torch.testing.assert_close(layer.running_var, running)
        (found,) = torch.autograd.grad(out, x, grad)
        g = grad * wide(layer.weight, x) * wide(r, x)
        gradients.append((g * z).mean(dims))
        psi = torch.stack(gradients[-4:]).mean(0) if number > 4 else gradients[-1]
        torch.testing.assert_close(found, (g - z * wide(psi, x)) / wide((chi + EPS).sqrt(), x))
    x = data(shape)
    torch.testing.assert_close(layer.eval()(x), affine(layer, x / wide((running + EPS).sqrt(), x)))


def test_mabn_before_its_averages_has_a_gradient() -> None:
    layer, x = build("mabn4"), data((3, C, 3)).requires_grad_()

    def plain(x: Tensor) -> Tensor:
        return affine(layer, x / (x.square().mean((0, 2), keepdim=True) + EPS).sqrt())

    grad = torch.randn_like(x)
    (found,) = torch.autograd.grad(layer(x), x, grad)
    (expected,) = torch.autograd.grad(plain(x), x, grad)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # eps is not in the published backward
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0].sum(), x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_bcn(shape: tuple[int, ...], training: bool) -> None:
    x, layer = data(shape), build("bcn4").train(training)
    bn = ACTIVATIONS["bn"].build(C).double().train(training)
    bn.load_state_dict({k: v for k, v in layer.state_dict().items() if k in bn.state_dict()})
    y = bn(x)
    groups = y.reshape(len(x), 4, -1)
    mean, var = over(groups, (2,))
    z = (groups - mean) / (var + EPS).sqrt() * layer.channel_weight.view(1, 4, 1) + layer.channel_bias.view(1, 4, 1)
    torch.testing.assert_close(layer(x), z.view_as(x))
    torch.testing.assert_close(layer.running_var, bn.running_var)
    torch.testing.assert_close(layer.running_mean, bn.running_mean)


def test_bcn_estimates() -> None:
    layer = build("bcn4@estimate")
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    for number in range(4):
        x = data((2, C, 4, 3)) + number
        batch = x.mean((0, 2, 3))
        var = 0.99 * var + 0.01 * ((x - wide(mean, x)) ** 2).mean((0, 2, 3))
        mean = 0.99 * mean + 0.01 * batch
        y = affine(layer, (x - wide(mean, x)) / (wide(var, x) + EPS).sqrt())
        groups = y.reshape(len(x), 4, -1)
        m, v = over(groups, (2,))
        z = (groups - m) / (v + EPS).sqrt() * layer.channel_weight.view(1, 4, 1) + layer.channel_bias.view(1, 4, 1)
        torch.testing.assert_close(layer(x), z.view_as(x))
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)
    assert ACTIVATIONS["bcn"].build(C, None, "estimate").running_var.eq(1).all()


def test_syncbn_of_one_process_is_bn() -> None:
    x, layer = data((3, C, 4)), build("syncbn")
    bn = ACTIVATIONS["bn"].build(C).double()
    bn.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), bn(x))
    assert torch.equal(layer.eval()(x), bn.eval()(x))


@pytest.mark.parametrize("name", [n for n in RIVALS if not n.startswith("mabn")])
@pytest.mark.parametrize("training", [True, False])
def test_gradients(name: str, training: bool) -> None:
    layer = build(name).train(training)
    x = data((3, C, 2, 2)).requires_grad_()
    parameters = tuple(layer.parameters())
    state = copy.deepcopy(layer.state_dict())

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        probe = copy.deepcopy(layer)
        probe.load_state_dict(state)
        names = [n for n, _ in layer.named_parameters()]
        out: Tensor = torch.func.functional_call(probe, dict(zip(names, parameters, strict=True)), (x,))
        return out

    if name in ("brn", "bcn4@estimate") and training:
        # what moves before it is used is a constant to the gradient and not to differences: see the tests below
        return
    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_brn_has_the_gradient_of_fixed_r_and_d() -> None:
    layer, x = build("brn"), data((3, C, 2, 2)).requires_grad_()
    layer.num_batches_tracked.fill_(100_000)
    mean, var = (t.detach().flatten() for t in over(x, (0, 2, 3)))
    sigma = (layer.running_var + EPS).sqrt()
    r, d = ((var + EPS).sqrt() / sigma).clamp(1 / 3, 3), ((mean - layer.running_mean) / sigma).clamp(-5, 5)
    batch_mean, batch_var = over(x, (0, 2, 3))
    expected = affine(layer, (x - batch_mean) / (batch_var + EPS).sqrt() * wide(r, x) + wide(d, x))
    grad = torch.randn_like(x)
    (a,), (b,) = torch.autograd.grad(layer(x), x, grad), torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(a, b)


def test_estimates_have_no_gradient() -> None:
    layer, x = build("bcn4@estimate"), data((3, C, 2, 2)).requires_grad_()
    grad = torch.randn_like(x)
    (a,) = torch.autograd.grad(layer(x), x, grad)
    layer.eval()  # by the statistics that training has just moved
    (b,) = torch.autograd.grad(layer(x), x, grad)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("shape", [(1, C), (1, C, 1, 1)])
def test_one_value_a_channel(name: str, shape: tuple[int, ...]) -> None:
    """Finite, and as the facts say; no statistic moves by what is none."""
    layer, x = build(name).train(), data(shape)
    before = {k: v.clone() for k, v in layer.named_buffers()}
    out = layer(x)
    assert out.isfinite().all()
    said = ACTIVATIONS[NormSpec.parse(name).act].facts.one_value
    if "running" in said and "estimate" not in name:
        assert all(torch.equal(v, before[k]) for k, v in layer.named_buffers())
        torch.testing.assert_close(out, layer.eval()(x))
    if name == "frn":
        torch.testing.assert_close(out, torch.maximum(affine(layer, x), wide(layer.tau, x)))
    one = build(name.replace("4", "1"), 1)  # one channel, one value
    x = data((1, 1, 1, 1))
    out = one(x)
    assert out.isfinite().all()
    if said.startswith("affine map only"):
        torch.testing.assert_close(out, affine(one, x))
    if name == "evos4":
        torch.testing.assert_close(out, affine(one, x * torch.sigmoid(wide(one.v, x) * x)))


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("shape", [(0, C, 4, 4), (0, C)])
def test_a_batch_of_nothing(name: str, shape: tuple[int, ...]) -> None:
    layer = build(name)
    before = {k: v.clone() for k, v in layer.named_buffers()}
    assert layer(torch.zeros(shape, dtype=torch.double)).shape == shape
    counted = "syncbn" if name == "syncbn" else ""  # torch counts it, as for bn
    assert all(torch.equal(v, before[k]) or (counted and k == "num_batches_tracked") for k, v in layer.named_buffers())


@pytest.mark.parametrize("name", RIVALS)
def test_half_precision_has_the_statistics_of_single(name: str) -> None:
    layer, x = build(name).float(), (data((4, C, 6, 6)) + 40).half()
    if name.startswith(("frn", "evo")):
        x = x - 40  # their outputs overflow no dtype, their differences do not fit half precision
    half, single = copy.deepcopy(layer).half()(x), layer(x.float())
    torch.testing.assert_close(half.float(), single, rtol=5e-3, atol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(layer)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", RIVALS)
def test_state_and_pickle(name: str) -> None:
    layer, x = build(name), data((3, C, 3, 3))
    layer(x)
    other = build(name)
    other.load_state_dict(layer.state_dict())
    again = copy.deepcopy(layer)
    assert torch.equal(layer.eval()(x), other.eval()(x))
    assert torch.equal(layer(x), again.eval()(x))
    with pytest.raises((ValueError, RuntimeError), match=rf"expects .*{C}|running_mean should contain"):
        build(name)(torch.randn(2, C + 1, 3, 3, dtype=torch.double))


@pytest.mark.parametrize("name", ["brn", "bcn4", "bcn4@estimate", "syncbn"])
@pytest.mark.parametrize("training", [True, False])
def test_from_moments(name: str, training: bool) -> None:
    x = data((3, C, 5, 4))
    layer, direct = build(name).train(training), build(name).train(training)
    layer.num_batches_tracked.fill_(30_000)
    direct.num_batches_tracked.fill_(30_000)
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    scale, shift = layer.from_moments(mean, var, 20)
    torch.testing.assert_close(x * scale[..., None, None] + shift[..., None, None], direct(x))
    torch.testing.assert_close(dict(layer.named_buffers()), dict(direct.named_buffers()))
    gain = layer.signed_gain() if hasattr(layer, "signed_gain") else layer.weight
    assert (torch.sign(scale) == torch.sign(gain)).all()


def test_groups_that_do_not_divide() -> None:
    for name in ("evos3", "bcn3"):
        with pytest.raises(GroupsError, match=f"3 groups do not divide 8 channels; write '{name[:-1]}'"):
            build(name)
    assert ACTIVATIONS["evos"].build(48).num_groups == 24
