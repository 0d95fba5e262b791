"""Weight normalizations against the paper's equations, written as loops in float64, and against other libraries."""

import copy
import math
import pickle

import pytest
import torch
from timm.layers import StdConv2d
from torch import Tensor, nn

from wsbench.norms import FanInError, NormalizedConv2d, NormalizedLayer, fold, normalized, standardize
from wsbench.norms.layers import from_rows, to_rows

SPECS = [
    "gn+ws", "gn+ws-mo", "gn+ws-do", "gn+ws-af", "gn+wn", "gn+ws@authors", "gn+ws@timm", "gn+ws@bit", "gn+ws-do@timm",
    "gn+ws-af@authors", "gn+cwn", "gn+sws", "gn+sws@timm", "gn+spectral",
]  # fmt: skip
LAYERS = {
    "conv1d": lambda: (nn.Conv1d(6, 8, 3, groups=2), torch.randn(2, 6, 9)),
    "conv2d": lambda: (nn.Conv2d(3, 8, 3, bias=False), torch.randn(2, 3, 9, 9)),
    "conv2d 1x1": lambda: (nn.Conv2d(6, 8, 1), torch.randn(2, 6, 5, 5)),
    "grouped": lambda: (nn.Conv2d(8, 8, 3, groups=4, padding_mode="reflect", padding=1), torch.randn(2, 8, 9, 9)),
    "depthwise": lambda: (nn.Conv2d(8, 8, 3, groups=8), torch.randn(2, 8, 9, 9)),
    "conv3d": lambda: (nn.Conv3d(2, 4, 3), torch.randn(2, 2, 5, 5, 5)),
    "transposed1d": lambda: (nn.ConvTranspose1d(4, 6, 3, stride=2), torch.randn(2, 4, 5)),
    "transposed2d grouped": lambda: (
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), torch.randn(2, 4, 5, 5)),
    "transposed3d": lambda: (nn.ConvTranspose3d(2, 4, 2), torch.randn(2, 2, 3, 3, 3)),
    "linear": lambda: (nn.Linear(6, 4), torch.randn(2, 6)),
}  # fmt: skip


def filters(layer: nn.Module) -> list[Tensor]:
    """The fan-in values of each output channel, by index arithmetic on the definition of each layer."""
    weight = layer.weight
    if not isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return [weight[o].flatten() for o in range(weight.shape[0])]
    g = layer.groups
    per_in, per_out = weight.shape[0] // g, weight.shape[1]
    return [
        weight[o // per_out * per_in : (o // per_out + 1) * per_in, o % per_out].flatten() for o in range(g * per_out)
    ]


def equations_2_to_4(w: Tensor, eps: float = 1e-5) -> Tensor:
    """Eq. 2-4, each sum a loop."""
    values = w.tolist()
    mean = sum(values) / len(values)
    sigma = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return torch.tensor([(v - mean) / (sigma + eps) for v in values], dtype=torch.double)


@pytest.mark.parametrize("name", LAYERS)
def test_equations_2_to_4_for_every_layer(name: str) -> None:
    torch.manual_seed(0)
    plain = LAYERS[name]()[0].double()
    layer = normalized(plain, "gn+ws")
    assert isinstance(layer, NormalizedLayer)
    effective = copy.deepcopy(plain)
    effective.weight = nn.Parameter(layer.effective_weight())
    for got, raw in zip(filters(effective), filters(plain), strict=True):
        torch.testing.assert_close(got.detach(), equations_2_to_4(raw), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("spec", SPECS)
def test_forward_is_the_plain_layer_with_the_effective_weight(name: str, spec: str) -> None:
    plain, x = LAYERS[name]()
    plain, x = plain.double(), x.double()
    layer = normalized(plain, spec).eval()  # in training spectral's power iteration goes on
    expected = copy.deepcopy(plain)
    expected.weight = nn.Parameter(layer.effective_weight())
    assert torch.equal(layer(x), expected(x))
    assert torch.equal(fold(layer)(x), expected(x))
    assert type(fold(layer)) is type(plain)


def test_transposed_output_size() -> None:
    plain = nn.ConvTranspose2d(4, 6, 3, stride=2)
    x = torch.randn(1, 4, 5, 5)
    assert normalized(plain, "gn+ws")(x, output_size=[12, 12]).shape == plain(x, output_size=[12, 12]).shape


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["conv2d", "transposed2d grouped", "linear"])
def test_gradcheck(name: str, spec: str) -> None:
    torch.manual_seed(1)
    layer = normalized(LAYERS[name]()[0].double(), spec).eval()
    names = [n for n, _ in layer.named_parameters() if n != "bias"]

    def effective(*values: Tensor) -> Tensor:
        return torch.func.functional_call(
            _Effective(layer), dict(zip((f"layer.{n}" for n in names), values, strict=True)), ()
        )

    values = tuple(getattr(layer, n).detach().clone().requires_grad_() for n in names)
    assert torch.autograd.gradcheck(effective, values)
    assert torch.autograd.gradgradcheck(effective, values)


class _Effective(nn.Module):
    def __init__(self, layer: NormalizedLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.effective_weight()


def autograd_of_definition(rows: Tensor, grad: Tensor, eps: float, unbiased: bool) -> tuple[Tensor, Tensor]:
    rows = rows.detach().clone().requires_grad_()
    out = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, correction=int(unbiased), keepdim=True) + eps)
    return out, torch.autograd.grad(out, rows, grad)[0]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5])
def test_the_fused_backward_is_autograds_also_where_eps_bites(unbiased: bool, scale: float) -> None:
    torch.manual_seed(0)
    rows = (torch.randn(5, 12, dtype=torch.double) * scale + 0.1).requires_grad_()
    grad = torch.randn(5, 12, dtype=torch.double)
    out = standardize(rows, unbiased=unbiased)
    expected, expected_grad = autograd_of_definition(rows, grad, 1e-5, unbiased)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(out, rows, grad)[0], expected_grad, rtol=1e-9, atol=1e-9)


def test_float32_agrees_with_float64() -> None:
    torch.manual_seed(0)
    rows = torch.randn(64, 576) * 0.02
    grad = torch.randn_like(rows)
    wide, single = rows.double().requires_grad_(), rows.clone().requires_grad_()
    torch.testing.assert_close(standardize(single).double(), standardize(wide), rtol=1e-5, atol=1e-5)
    a = torch.autograd.grad(standardize(single), single, grad)[0].double()
    b = torch.autograd.grad(standardize(wide), wide, grad.double())[0]
    assert (a - b).norm() / b.norm() < 1e-6


def test_equations_8_and_9() -> None:
    """Eq. 8: dL/dW. = (dL/dWhat - <What, dL/dWhat> What / I) / sigma; Eq. 9: dL/dW = dL/dW. - mean(dL/dW.)."""
    torch.manual_seed(0)
    rows = torch.randn(4, 18, dtype=torch.double, requires_grad=True)
    g = torch.randn_like(rows)
    what = standardize(rows, eps=0.0)
    (grad,) = torch.autograd.grad(what, rows, g)
    fan_in = rows.shape[1]
    sigma = rows.std(1, correction=0, keepdim=True)
    eq8 = (g - (what * g).sum(1, keepdim=True) * what / fan_in) / sigma
    eq9 = eq8 - eq8.mean(1, keepdim=True)
    torch.testing.assert_close(grad, eq9, rtol=1e-11, atol=1e-12)


def test_gradient_norm_identity_of_section_2() -> None:
    """||g||^2 = <What,g>^2/I + <1,g>^2/I + sigma^2 ||dL/dW||^2: the two equations take exactly these parts away."""
    torch.manual_seed(0)
    rows = torch.randn(4, 18, dtype=torch.double, requires_grad=True)
    g = torch.randn_like(rows)
    what = standardize(rows, eps=0.0)
    (grad,) = torch.autograd.grad(what, rows, g)
    a = (what * g).sum(1) ** 2 / 18
    b = g.sum(1) ** 2 / 18
    r = rows.var(1, correction=0) * grad.square().sum(1)
    torch.testing.assert_close(a + b + r, g.square().sum(1), rtol=1e-12, atol=0)


def test_invariance_and_zero_sum_gradient() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 18, dtype=torch.double, requires_grad=True)
    out = standardize(rows)
    torch.testing.assert_close(standardize(rows + 3.0), out)
    torch.testing.assert_close(standardize(rows * 7.0, eps=0.0), standardize(rows, eps=0.0))
    (grad,) = torch.autograd.grad(out, rows, torch.randn_like(rows))
    assert grad.sum(1).abs().max() < 1e-13


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_constant_filters_have_finite_gradients(spec: str, value: float, dtype: torch.dtype) -> None:
    layer = normalized(nn.Conv2d(3, 8, 3), spec).to(dtype)
    nn.init.constant_(layer.weight, value)
    effective = layer.effective_weight()
    (effective.float() * torch.randn(effective.shape)).sum().backward()
    assert effective.isfinite().all()
    assert layer.weight.grad.isfinite().all()


def test_float32_inside_autocast_and_half_parameters() -> None:
    layer = normalized(nn.Conv2d(3, 8, 3), "gn+ws")
    exact = layer.effective_weight()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.effective_weight(), exact)
        assert layer(torch.randn(1, 3, 5, 5)).dtype == torch.bfloat16
    half = copy.deepcopy(layer).to(torch.bfloat16)
    rows = half.weight.float().flatten(1)
    expected = standardize(rows).to(torch.bfloat16).view(8, 3, 3, 3)
    assert torch.equal(half.effective_weight(), expected)


def test_timm_and_mmcv_layers_under_their_semantics() -> None:
    why = "mmcv-lite needs the system library libGL.so.1 (apt-get install libgl1 libglib2.0-0)"
    ConvWS2d = pytest.importorskip("mmcv.cnn.bricks.conv_ws", reason=why, exc_type=ImportError).ConvWS2d
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 9)
    for theirs, spec in [
        (StdConv2d(4, 8, 3, groups=2, padding=0), "gn+ws@timm"),
        (ConvWS2d(4, 8, 3, groups=2, bias=False), "gn+ws@authors"),
    ]:
        ours = NormalizedConv2d(4, 8, 3, groups=2, bias=False, spec=spec)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        grads = [torch.autograd.grad(m(x).square().sum(), m.weight)[0] for m in (ours, theirs)]
        assert (grads[0] - grads[1]).norm() / grads[1].norm() < 1e-5
    other = normalized(nn.Conv2d(4, 8, 3), "gn+ws@bit").double()
    w = other.weight.flatten(1)
    bit = (w - w.mean(1, keepdim=True)) / (w.var(1, correction=0, keepdim=True) + 1e-10).sqrt()
    torch.testing.assert_close(other.effective_weight().flatten(1), bit)


def test_the_semantics_differ() -> None:
    conv = nn.Conv2d(4, 8, 3)
    weights = [normalized(conv, s).effective_weight() for s in ("gn+ws", "gn+ws@authors", "gn+ws@timm", "gn+ws@bit")]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_variants() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3).double()
    w = conv.weight.flatten(1)
    centred = normalized(conv, "gn+ws-mo").effective_weight().flatten(1)
    torch.testing.assert_close(centred, w - w.mean(1, keepdim=True))
    scaled = normalized(conv, "gn+ws-do").effective_weight().flatten(1)
    torch.testing.assert_close(scaled, w / (w.square().mean(1, keepdim=True).sqrt() + 1e-5))
    affine = normalized(conv, "gn+ws-af")
    assert torch.equal(affine.effective_weight(), normalized(conv, "gn+ws").effective_weight())
    nn.init.constant_(affine.weight_gain, 2.0)
    nn.init.constant_(affine.weight_shift, 0.5)
    torch.testing.assert_close(affine.effective_weight(), 2 * normalized(conv, "gn+ws").effective_weight() + 0.5)


def test_weight_normalization_is_torchs() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3)
    x = torch.randn(1, 4, 9, 9)
    theirs = nn.utils.parametrizations.weight_norm(copy.deepcopy(conv), dim=0)
    ours = normalized(conv, "gn+wn")
    torch.testing.assert_close(ours(x), conv(x))
    theirs(x).square().sum().backward()
    ours(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original1.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        ours.weight_gain.grad, theirs.parametrizations.weight.original0.grad, rtol=1e-4, atol=1e-4
    )


def test_fan_in_one_is_refused() -> None:
    with pytest.raises(FanInError, match="1 value"):
        normalized(nn.Conv2d(8, 8, 1, groups=8), "gn+ws")
    with pytest.raises(FanInError):
        normalized(nn.ConvTranspose1d(2, 2, 1, groups=2), "gn+ws")


def test_layout_is_kept() -> None:
    conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    layer = normalized(conv, "gn+ws")
    assert layer.effective_weight().is_contiguous(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(conv).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(layer.effective_weight(), normalized(contiguous, "gn+ws").effective_weight())
    assert to_rows(conv.weight, False, 1).data_ptr() == conv.weight.data_ptr()
    weight = torch.randn(6, 4, 3)
    assert torch.equal(from_rows(to_rows(weight, True, 3), weight, True, 3), weight)


def test_a_layer_is_an_ordinary_module() -> None:
    conv = nn.Conv2d(4, 8, 3)
    layer = normalized(conv, "gn+ws")
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.weight is conv.weight
    before = layer.effective_weight()
    nn.init.normal_(layer.weight)
    assert not torch.equal(layer.effective_weight(), before)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(twin.effective_weight(), layer.effective_weight())
    assert "gn+ws" in repr(layer)
    assert type(normalized(layer, "bn")) is nn.Conv2d
    assert normalized(layer, "bn").weight is conv.weight


def test_no_more_than_the_weight_is_saved_for_backward() -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        standardize(weight)
    others = sum(n for p, n in saved.items() if p != weight.untyped_storage().data_ptr())
    assert others <= 3 * 64, "mean, 1 / sigma and its damping"


def test_rejects_other_layers() -> None:
    with pytest.raises(TypeError, match="Embedding"):
        normalized(nn.Embedding(3, 4), "gn+ws")
    with pytest.raises(ValueError, match="weight normalization"):
        NormalizedConv2d(3, 8, 3, spec="gn")


def test_torch_export_traces_it() -> None:
    layer, x = normalized(nn.Conv2d(3, 8, 3), "gn+ws").eval(), torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
