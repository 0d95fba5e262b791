"""Weight normalizations before and after WS: equations in float64, others' layers, windows, and gradient clipping."""

import copy
import math
from typing import Any

import pytest
import torch
from timm.layers import ScaledStdConv2d
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from wsbench.norms import AccumulationWindow, NormalizedLayer, adaptive_clip_grad_, fold, normalize, normalized
from wsbench.norms.layers import rows_of

GAMMA = math.sqrt(2 / (1 - 1 / math.pi))  # the paper's; DeepMind's table of sampled values has 1.7140


def layer_of(spec: str, scale: float = 1.0, o: int = 5, i: int = 4) -> Any:
    torch.manual_seed(0)
    layer = normalized(nn.Conv2d(i, o, 3, bias=False).double(), spec)
    with torch.no_grad():
        layer.weight.mul_(scale).add_(0.03 * scale)
        for name in layer._extra:
            getattr(layer, name).copy_(torch.randn_like(getattr(layer, name)) + 1)
    return layer


def by_definition(layer: Any, weight: Tensor, *extra: Tensor) -> Tensor:
    """The effective rows by the papers' equations, in primitive operations."""
    w = weight.flatten(1)
    fan_in = w.shape[1]
    gain, *more = (e.view(-1, 1) for e in extra) if extra else (torch.ones(1), None)
    centred = w - w.sum(1, keepdim=True) / fan_in
    sigma = ((centred**2).sum(1, keepdim=True) / fan_in).sqrt()
    text = str(layer.spec).split("+")[1]
    if text == "cwn":
        out = gain * centred / (centred**2).sum(1, keepdim=True).sqrt()
    elif text == "sws":
        out = GAMMA * gain * centred / ((sigma**2 * fan_in).clamp(min=1e-4)).sqrt()
    elif text == "sws@timm":
        out = GAMMA * fan_in**-0.5 * gain * centred / (sigma**2 + 1e-6).sqrt()
    elif text == "wn":
        out = gain * w / (w**2).sum(1, keepdim=True).sqrt()
    elif text == "ws-af":
        out = gain * centred / (sigma + 1e-5) + more[0]
    elif text == "ws-af@authors":
        out = gain * centred / (sigma * math.sqrt(fan_in / (fan_in - 1)) + 1e-5) + more[0]
    elif text == "ws-do":
        out = w / (((w**2).sum(1, keepdim=True) / fan_in).sqrt() + 1e-5)
    elif text == "ws-do@timm":
        out = w / ((w**2).sum(1, keepdim=True) / fan_in + 1e-6).sqrt()
    elif text == "ws-mo":
        out = centred
    else:
        raise AssertionError(text)
    return out.view_as(weight)


@pytest.mark.parametrize(
    "spec",
    ["cwn", "sws", "sws@timm", "wn", "ws-af", "ws-af@authors", "ws-do", "ws-do@timm", "ws-mo"],
)
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-3, 1e-5])
def test_values_and_gradients_are_the_definitions(spec: str, scale: float) -> None:
    """Also where what keeps a division finite is as large as what is divided by, and where it takes over."""
    layer = layer_of(f"gn+{spec}", scale)
    parameters = layer.normalized_parameters
    grad = torch.randn_like(layer.weight)
    got, expected = layer.effective_weight(), by_definition(layer, *parameters)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(got, parameters, grad), torch.autograd.grad(expected, parameters, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8 * float(b.abs().max()))


@pytest.mark.parametrize("frozen", ["weight", "gain"])
@pytest.mark.parametrize("spec", ["cwn", "sws", "wn", "ws-af"])
def test_what_is_frozen_gets_no_gradient(spec: str, frozen: str) -> None:
    layer = layer_of(f"gn+{spec}")
    which = layer.weight if frozen == "weight" else layer.weight_gain
    which.requires_grad_(False)
    free = [p for p in layer.normalized_parameters if p.requires_grad]
    grad = torch.randn_like(layer.weight)
    a = torch.autograd.grad(layer.effective_weight(), free, grad)
    b = torch.autograd.grad(by_definition(layer, *layer.normalized_parameters), free, grad)
    torch.testing.assert_close(a, b)


def test_sws_is_timms_scaled_convolution() -> None:
    torch.manual_seed(0)
    theirs = ScaledStdConv2d(4, 6, 3, padding=0, bias=False, gamma=GAMMA)
    nn.init.normal_(theirs.gain)
    ours = normalized(nn.Conv2d(4, 6, 3, bias=False), "none+sws@timm")
    ours.load_state_dict({"weight": theirs.weight, "weight_gain": theirs.gain})
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_sws_keeps_the_variance_through_a_relu() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 256)
    layer = normalized(nn.Linear(256, 128, bias=False), "none+sws")
    for _ in range(4):
        x = layer(torch.relu(x)) if x.shape[1] == 256 else x
    assert float(x.var()) == pytest.approx(1, abs=0.1)


def test_gains_start_where_the_function_is_kept() -> None:
    conv = nn.Conv2d(4, 6, 3, bias=False).double()
    centred = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(normalized(conv, "gn+cwn").effective_weight(), centred)
    assert torch.equal(normalized(conv, "gn+sws").weight_gain, torch.ones(6, 1, 1, 1, dtype=torch.double))


# -- spectral --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plain", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Linear(9, 5), nn.Conv1d(3, 4, 3)]
)
def test_spectral_converges_to_the_largest_singular_value(plain: nn.Module) -> None:
    layer: Any = normalized(copy.deepcopy(plain).double(), "gn+spectral")
    for _ in range(300):
        layer.effective_weight()
    largest = torch.linalg.svdvals(rows_of(plain.double(), plain.weight))[0]
    torch.testing.assert_close(layer.effective_weight(), plain.weight / largest)


def test_spectral_is_torchs_with_the_same_vectors() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, bias=False).double()
    theirs = nn.utils.parametrizations.spectral_norm(copy.deepcopy(conv))
    ours = normalized(conv, "gn+spectral")
    ours.weight_u.copy_(theirs.parametrizations.weight[0]._u)
    x, grad = torch.randn(2, 4, 7, 7, dtype=torch.double), torch.randn(2, 6, 5, 5, dtype=torch.double)
    for _ in range(3):
        a, b = ours(x), theirs(x)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        (ga,) = torch.autograd.grad(a, ours.weight, grad)
        (gb,) = torch.autograd.grad(b, theirs.parametrizations.weight.original, grad)
        torch.testing.assert_close(ga, gb, rtol=1e-6, atol=1e-6)


def test_spectral_moves_in_training_passes_only() -> None:
    layer: Any = normalized(nn.Conv2d(4, 6, 3), "gn+spectral")
    before = layer.weight_u.clone()
    layer.eval()(torch.randn(1, 4, 5, 5))
    with torch.no_grad():
        layer.train()(torch.randn(1, 4, 5, 5))
    assert torch.equal(layer.weight_u, before)
    layer(torch.randn(1, 4, 5, 5))
    assert not torch.equal(layer.weight_u, before)
    again = copy.deepcopy(layer)
    assert torch.equal(layer.eval().effective_weight(), again.eval().effective_weight())
    other = normalized(nn.Conv2d(4, 6, 3), "gn+spectral")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.effective_weight(), other.eval().effective_weight())
    assert set(layer.to_plain().state_dict()) == {"weight", "bias"}


def test_a_pass_that_went_before_does_not_spoil_a_backward() -> None:
    layer: Any = normalized(nn.Conv2d(4, 6, 3), "gn+spectral")
    x = torch.randn(1, 4, 5, 5)
    first = copy.deepcopy(layer)
    (expected,) = torch.autograd.grad(first(x).square().sum(), first.weight)
    out = layer(x)
    layer(x)
    (found,) = torch.autograd.grad(out.square().sum(), layer.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("spec", ["gn+spectral", "gn+sws", "gn+cwn", "gn+wn", "gn+ws-do", "gn+ws-af", "bcn+sws"])
@pytest.mark.parametrize("simple_loop", [False, True])
def test_in_a_window(spec: str, simple_loop: bool) -> None:
    """One step of four micro-steps: the gradients of the same loop without it; spectral's u moves once."""
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3, 8, 8, dtype=torch.double)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    normalize(plain.double(), spec, x[0])
    held = copy.deepcopy(plain)
    layers: list[Any] = [m for m in plain.modules() if isinstance(m, NormalizedLayer)]
    for layer in layers:
        layer.refresh()  # as the window does, once
        layer.refresh = lambda: None
    for part in x:
        plain(part).square().mean().backward()
    window = AccumulationWindow(held, simple_loop)
    for number, part in enumerate(x):
        with window.micro_step(last=number == 3):
            held(part).square().mean().backward()
    window.close()
    for (name, a), (_, b) in zip(held.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")
    for (_, a), (_, b) in zip(held.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("spec", ["gn+spectral", "gn+sws", "gn+cwn"])
def test_fold(spec: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    x = torch.randn(2, 3, 8, 8)
    normalize(model, spec, x)
    folded = fold(model, (x,))
    torch.testing.assert_close(folded(x), model(x))
    assert not any(isinstance(m, NormalizedLayer) for m in folded.modules())


# -- adaptive gradient clipping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_agc_is_timms(scale: float) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1, bias=True), nn.Conv2d(8, 6, 3, groups=2, bias=False),
                         nn.Flatten(), nn.Linear(6 * 5 * 5, 4, bias=False))  # fmt: skip
    nn.init.zeros_(ours[1].weight[:2])
    theirs = copy.deepcopy(ours)
    for model in (ours, theirs):
        (scale * model(torch.arange(2 * 3 * 81.0).view(2, 3, 9, 9) / 100).square().sum()).backward()
    adaptive_clip_grad_(ours, 0.02, exclude=(ours[3],))
    adaptive_clip_grad(list(theirs[:2].parameters()), 0.02)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_agc_of_transposed_filters_and_vectors() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    before = {}
    for name, parameter in layer.named_parameters():
        parameter.grad = torch.randn_like(parameter) * torch.rand(1).item()
        before[name] = parameter.grad.clone()
    adaptive_clip_grad_(nn.Sequential(layer), 0.1, eps=1e-3)
    ratio = float(0.1 * layer.bias.detach().norm() / before["bias"].norm())
    assert ratio < 1
    torch.testing.assert_close(layer.bias.grad, before["bias"] * ratio)  # a vector is one unit
    for o in range(6):  # the filter of output o: inputs of its group, o within it
        index = (slice(o // 3 * 2, o // 3 * 2 + 2), o % 3)
        size, most = before["weight"][index].norm(), 0.1 * layer.weight[index].norm()
        factor = min(1.0, float(most / size))
        torch.testing.assert_close(layer.weight.grad[index], before["weight"][index] * factor)


@pytest.mark.parametrize("clipping", [0.0, -1.0, float("nan")])
def test_agc_needs_a_number_above_zero(clipping: float) -> None:
    with pytest.raises(ValueError, match="clipping must be above 0"):
        adaptive_clip_grad_(nn.Linear(2, 2), clipping)
