"""Conversion of networks whose layers are subclasses, lazily placed, or of other packages."""

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import googlenet
from torchvision.models.video import r3d_18

from tests.norms.test_convert_in_place import Elsewhere, X, by_hand
from wsbench.norms import (
    AccumulationWindow,
    ConversionError,
    GroupNorm,
    NormalizedConv2d,
    NormalizedLayer,
    SwitchNorm,
    fold,
    normalize,
)


class Same(nn.Conv2d):
    """Pads, and calls the same operation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class OnlyBuiltOtherwise(nn.Conv2d):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 3, padding=1, bias=False)


class OnlyBuiltTransposed(nn.ConvTranspose2d):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 3, padding=1, bias=False)


class Standardizes(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), None, padding=1)


class Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, padding=1) + F.conv2d(x, self.weight, None, padding=1)


class Activates(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight, None, padding=1), inplace=False)


def network(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(8))


@pytest.mark.parametrize("make", [lambda: Same(3, 8, 3, bias=False), lambda: OnlyBuiltOtherwise(3, 8)])
def test_subclasses_that_call_the_same_operation(make: Callable[[], nn.Conv2d]) -> None:
    model = network(make())
    kind = type(model[0])
    report = normalize(model, "gn8+ws", X)
    assert report.weight_normalized == ("0",)
    assert isinstance(model[0], kind)
    assert type(model[0]).__name__ == f"Normalized{kind.__name__}"
    padded = F.pad(X, (1, 1, 1, 1))
    plain = nn.Conv2d(3, 8, 3, bias=False)
    plain.weight = model[0].weight
    expected = by_hand(padded, plain, model[1])
    torch.testing.assert_close(model(X).double(), expected, rtol=1e-4, atol=1e-4)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is type(model[0])
        assert torch.equal(twin(X), model(X))
    folded = fold(model)
    assert type(folded[0]) is kind
    torch.testing.assert_close(folded(X), model(X))
    window = AccumulationWindow(model)
    model.zero_grad()
    for last in (False, True):
        with window.micro_step(last):
            model(X).square().mean().backward()
    found = model[0].weight.grad.clone()
    model.zero_grad()
    for _ in range(2):
        model(X).square().mean().backward()
    torch.testing.assert_close(found, model[0].weight.grad, rtol=1e-4, atol=1e-6)
    normalize(model, "bn", X)
    assert type(model[0]) is kind


def test_a_transposed_subclass() -> None:
    model = network(OnlyBuiltTransposed(3, 8))
    normalize(model, "gn8+ws", X)
    plain = nn.ConvTranspose2d(3, 8, 3, padding=1, bias=False)
    plain.weight = model[0].weight
    twin = network(plain)
    normalize(twin, "gn8+ws", X)
    assert torch.equal(twin(X), model(X))


@pytest.mark.parametrize(
    ("make", "why"), [(Standardizes, "its weight goes through 'sub'"), (Twice, "its weight goes through"),
                      (Activates, "it does more than its operation")],
)  # fmt: skip
def test_subclasses_that_do_more_are_left_and_named(make: type[nn.Conv2d], why: str) -> None:
    report = normalize(network(make(3, 8, 3, padding=1, bias=False)), "gn+ws", X)
    assert report.weight_normalized == ()
    assert why in report.notes[0] or "more than its operation" in report.notes[0]


def test_a_norm_that_only_casts_is_replaced_and_one_that_does_more_is_not() -> None:
    class Cast(nn.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float()).to(x.dtype)

    class Ghost(nn.BatchNorm2d):
        """In evaluation it is BN."""

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return torch.cat([super(Ghost, self).forward(part) for part in x.split(1)])
            return super().forward(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), Cast(2, 8), nn.Conv2d(8, 8, 3, bias=False), Ghost(8))
    report = normalize(model, "in", X)
    assert report.activations == ("1",)
    assert "Ghost has a forward of its own, which does more than the norm" in report.notes[0]


@pytest.mark.parametrize("name", ["resnetv2_50", "resnet50_gn", "tf_efficientnet_b0"])
def test_the_meta_device_gives_the_same_report(name: str) -> None:
    """Where every address is 0."""
    example = torch.zeros(1, 3, 64, 64)
    real = normalize(timm.create_model(name), "gn+ws", example)
    with torch.device("meta"):
        meta = normalize(timm.create_model(name), "gn+ws", example.to("meta"))
    assert meta.layers == real.layers


@pytest.mark.parametrize(
    ("name", "size", "counts"),
    [
        ("resnet50_gn", 64, (53, 53, 0)),  # timm's GroupNorm, a subclass that casts
        ("tf_efficientnet_b0", 64, (49, 49, 0)),  # five convolutions pad as TensorFlow does
        ("resnetv2_50", 64, (49, 32, 0)),
        ("resnetv2_50x1_bit", 64, (49, 0, 0)),  # its convolutions standardize by themselves
        ("resnetv2_50d_evos", 64, (0, 34, 51)),
        ("resnetv2_50d_frn", 64, (0, 34, 51)),
    ],
)
def test_networks_of_timm(name: str, size: int, counts: tuple[int, int, int]) -> None:
    """Norms that follow the spec, layers with the weight normalization, norms that are kept."""
    x = torch.randn(1, 3, size, size)
    model = timm.create_model(name).eval()
    report = normalize(model, "gn+ws", x)
    assert (len(report.activations), len(report.weight_normalized), len(report.kept)) == counts
    assert bool(model(x).isfinite().all())
    if name.endswith(("evos", "frn")):
        assert sum("brings its own activation" in note for note in report.notes) == 51
    if name.endswith("bit"):
        assert sum("StdConv2d is a subclass with a forward of its own" in note for note in report.notes) == 32
    torch.testing.assert_close(fold(model)(x), model(x), rtol=1e-3, atol=1e-3)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(x), model(x))


def test_networks_of_torchvision() -> None:
    clip = torch.randn(1, 3, 4, 32, 32)
    video = r3d_18()
    report = normalize(video, "gn+ws", clip)
    assert (len(report.activations), len(report.weight_normalized)) == (20, 20)
    aux = googlenet(init_weights=False)
    report = normalize(aux, "gn+ws", torch.zeros(1, 3, 96, 96))
    assert {"aux1.conv.conv", "aux2.conv.conv"} <= set(report.weight_normalized)
    assert (len(report.activations), len(report.weight_normalized)) == (59, 59)


def test_layers_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Elsewhere()
        report = normalize(model, "gn+ws", X.to("meta"))
    assert report.weight_normalized == ("conv0", "conv1")
    assert all(p.is_meta for p in model.parameters())
    assert isinstance(model.norm0, GroupNorm)


def test_nothing_is_left_of_a_conversion_that_failed_late() -> None:
    model = Elsewhere()
    normalize(model, "sn+wn", X)
    model.second = nn.Module()
    model.second.forward = lambda x: x
    state = copy.deepcopy(model.state_dict())
    kinds = {n: type(m) for n, m in model.named_modules()}
    weight = model.norm0.weight

    class Fails(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(self.inner.norm0, SwitchNorm):
                raise ArithmeticError("not so")
            out: Tensor = self.inner(x)
            return out

    with pytest.raises(ConversionError, match="ArithmeticError: not so"):
        normalize(Fails(model), "gn+ws-af", X)
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.norm0.weight is weight
    assert all(str(m.spec) == "sn+wn" for m in model.modules() if isinstance(m, NormalizedLayer))
    assert isinstance(model.conv0, NormalizedConv2d)
