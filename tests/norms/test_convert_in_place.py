"""``normalize`` changes what runs: whoever holds a layer, a parameter or a hook sees the converted network."""

import copy
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torchvision.models import googlenet
from torchvision.models.video import r3d_18

from wsbench.norms import (
    AccumulationWindow,
    ConversionError,
    FanInError,
    GroupNorm,
    NormalizedConv2d,
    NormalizedLayer,
    SwitchNorm,
    WindowError,
    fold,
    normalize,
    normalized,
)

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def by_hand(x: Tensor, conv: nn.Module, norm: nn.Module, groups: int = 8) -> Tensor:
    """GN + WS by the paper's equations, from the parameters."""
    w = conv.weight.double()
    mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), correction=0, keepdim=True)
    y = F.conv2d(x.double(), (w - mean) / (var.sqrt() + 1e-5), None if conv.bias is None else conv.bias.double(),
                 conv.stride, conv.padding)  # fmt: skip
    g = y.view(len(y), groups, -1)
    g = (g - g.mean(2, keepdim=True)) / (g.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    return g.view_as(y) * norm.weight.double().view(1, -1, 1, 1) + norm.bias.double().view(1, -1, 1, 1)


class Elsewhere(nn.Module):
    """Layers that run through a plain list, a closure, a second attribute and a dictionary of functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.listed = [self.conv0, self.norm0]
        conv, norm = self.conv1, self.norm1
        self.closure = lambda x: norm(conv(x))
        self.second = self.norm1

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.listed:
            x = layer(x)
        out: Tensor = self.closure(x)
        return out


@pytest.mark.parametrize("example", [X, None])
def test_layers_that_run_through_other_references(example: Tensor | None) -> None:
    model = Elsewhere()
    report = normalize(model, "gn8+ws", example)
    assert report.activations == ("norm0", "norm1")
    x = by_hand(X, model.conv0, model.norm0)
    torch.testing.assert_close(model(X).double(), by_hand(x, model.conv1, model.norm1), rtol=1e-4, atol=1e-4)
    assert model.second is model.norm1
    assert isinstance(model.second, GroupNorm)
    plain = fold(model)
    with torch.no_grad():  # a copy of a closure is the closure: what it holds is still the trained network
        torch.testing.assert_close(plain(X), model(X), rtol=1e-4, atol=1e-4)


def test_a_bound_method_that_was_taken_before_is_an_error() -> None:
    class Captured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
            self.run = nn.BatchNorm2d.forward

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            if isinstance(self.norm, nn.BatchNorm2d):
                x = self.norm(x)
            return x

    model = Captured()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConversionError, match=r"'norm' ran before the conversion and not after it"):
        normalize(model, "gn+ws", X)
    assert type(model.norm) is nn.BatchNorm2d
    assert type(model.conv) is nn.Conv2d
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_network_that_reads_what_is_gone_is_as_it_was() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.norm.running_mean.view(1, -1, 1, 1)

    model = Reads()
    with pytest.raises(ConversionError, match=r"does not run any more as 'gn\+ws': AttributeError.*running_mean"):
        normalize(model, "gn+ws", X)
    assert type(model.norm) is nn.BatchNorm2d
    model(X)
    assert normalize(model, "gn+ws", X, exclude=["norm"]).weight_normalized == ("conv",)


def test_a_forward_of_this_one_object_is_left_and_named() -> None:
    """As accelerate's hooks and monkey patches set it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
    own = model[0].forward
    model[0].forward = lambda x: own(x)
    model[1].forward = lambda x: x
    report = normalize(model, "gn+ws", X)
    assert report.activations == report.weight_normalized == ()
    assert report.notes == (
        "0: note: this Conv2d has a forward of its own",
        "1: note: this BatchNorm2d has a forward of its own",
    )


# -- parameters, hooks, modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["gn+ws", "in+wn", "ln", "sn+ws-af", "bn+ws"])
def test_an_optimizer_made_before_goes_on_training(spec: str) -> None:
    model = Elsewhere()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    normalize(model, spec, X)
    for name, parameter in parameters.items():
        assert model.get_parameter(name) is parameter
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    model(X).square().sum().backward()
    optimizer.step()
    moved = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    assert moved >= parameters.keys() - {"norm0.bias"}


def test_tied_parameters_stay_tied_and_hooks_stay() -> None:
    model = Elsewhere()
    model.norm1.weight = model.norm0.weight
    seen: list[str] = []
    handles = [
        model.norm0.register_forward_hook(lambda *_: seen.append("norm")),
        model.conv0.register_forward_pre_hook(lambda *_: seen.append("conv")),
        model.norm0.weight.register_hook(lambda g: seen.append("gradient")),
    ]
    model.norm0.note = "mine"
    normalize(model, "gn+ws", X)
    assert model.norm1.weight is model.norm0.weight
    assert model.norm0.note == "mine"
    seen.clear()
    model(X).sum().backward()
    assert sorted(seen) == ["conv", "gradient", "norm"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(X).sum().backward()
    assert seen == []


@pytest.mark.parametrize("spec", ["gn+ws", "sn+ws-af", "sn+wn"])
def test_a_frozen_network_stays_frozen(spec: str) -> None:
    """The parameters that are new, too."""
    model = Elsewhere().requires_grad_(False)
    normalize(model, spec, X)
    assert not any(p.requires_grad for p in model.parameters())
    half = Elsewhere()
    half.norm0.requires_grad_(False)
    half.conv0.requires_grad_(False)
    normalize(half, spec, X)
    for name, parameter in half.named_parameters():
        assert parameter.requires_grad == ("1." in name)


def test_modes_buffers_and_generators_are_left_alone() -> None:
    class Noisy(Elsewhere):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5, self.training)

    model = Noisy()
    model.norm0.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    normalize(model, "bn+ws", X)
    assert torch.equal(torch.rand(3), expected)
    assert not model.norm0.training
    assert model.norm1.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("to", ["gn+ws", "gn+wn", "sn+ws-af"])
def test_again_to_the_same_specification_keeps_what_was_learned(to: str) -> None:
    model = Elsewhere()
    normalize(model, to, X)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape))
    before, state = model(X), copy.deepcopy(model.state_dict())
    normalize(model, to, X)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if "running" not in k)
    torch.testing.assert_close(model(X), before)


# -- weights that something else computes ---------------------------------------------------------------------------


def apply_parametrization(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)


def apply_custom(layer: nn.Module) -> None:
    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w + w.flip(-1)

    parametrize.register_parametrization(layer, "weight", Symmetric())


COMPUTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hooked weight_norm": (weight_norm, r"remove_weight_norm"),
    "hooked spectral_norm": (spectral_norm, r"remove_spectral_norm"),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), r"prune.remove\(layer, 'weight'\)"),
    "parametrized": (apply_parametrization, r"remove_parametrizations\(layer, 'weight'\)"),
    "custom": (apply_custom, r"Symmetric of 'weight'.*remove_parametrizations"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("how", COMPUTED)
def test_computed_before(how: str) -> None:
    apply, remedy = COMPUTED[how]
    model = Elsewhere()
    apply(model.conv1)
    with pytest.raises(ConversionError, match=rf"'conv1': its weight is computed by .*{remedy}"):
        normalize(model, "gn+ws", X)
    assert type(model.norm0) is nn.BatchNorm2d
    assert normalize(model, "gn+ws", X, exclude=["conv1"]).weight_normalized == ("conv0",)
    layer = nn.Conv2d(3, 4, 3)
    apply(layer)
    with pytest.raises(TypeError, match=r"computed by|cannot normalize the weight of Parametrized"):
        normalized(layer, "gn+ws")
    assert isinstance(normalize(Elsewhere(), "gn", X).activations, tuple)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("how", COMPUTED)
def test_computed_behind(how: str) -> None:
    apply, remedy = COMPUTED[how]
    model = Elsewhere()
    normalize(model, "gn+ws", X)
    window = AccumulationWindow(model)
    apply(model.conv1)
    model(X)
    with pytest.raises(WindowError, match=rf"'conv1' is computed by .*{remedy}"):
        AccumulationWindow(model)
    with pytest.raises(WindowError, match=rf"'conv1' is computed by .*{remedy}"):
        window.begin(last=False)
    with pytest.raises(TypeError, match=rf"'conv1' is computed by .*{remedy}"):
        fold(model)


# -- networks that cannot be converted ------------------------------------------------------------------------------


def test_wrapped_or_compiled_networks_are_refused(tmp_path: Any) -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).eval(), X)
    with pytest.raises(ConversionError, match=r"the model was compiled by torch.jit"):
        normalize(scripted, "gn+ws", X)
    with pytest.raises(ConversionError, match=r"'0' was compiled by torch.jit"):
        normalize(nn.Sequential(scripted), "gn+ws", X)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ConversionError, match=r"DistributedDataParallel already.*before it is wrapped"):
            normalize(DistributedDataParallel(Elsewhere()), "gn+ws", X)
    finally:
        torch.distributed.destroy_process_group()


def test_lazy_layers() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(8, 3, bias=False), nn.LazyBatchNorm2d(), nn.ReLU())

    with pytest.raises(ConversionError, match=r"'0' is a lazy layer.*pass example"):
        normalize(model(), "gn+ws")
    converted = model()
    report = normalize(converted, "gn8+ws", X)
    assert report.weight_normalized == ("0",)
    expected = by_hand(X, converted[0], converted[1]).relu()
    torch.testing.assert_close(converted(X).double(), expected, rtol=1e-4, atol=1e-4)


def test_all_layers_of_one_value_are_named_at_once() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1, groups=8, bias=False), nn.BatchNorm2d(8),
    )  # fmt: skip
    with pytest.raises(FanInError, match=r"'0'.*first of 2 layers: '0', '4'.*exclude=\['0', '4'\]"):
        normalize(model, "gn+ws", X)
    assert normalize(model, "gn+ws", X, exclude=["0", "4"]).weight_normalized == ("2",)


def test_instance_norm_that_never_knew_its_channels() -> None:
    """Without affine parameters torch accepts any number; the example shows the real one."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(1))
    report = normalize(model, "gn8+ws", X)
    assert "it said 1 channels and is given 8" in report.notes[0]
    torch.testing.assert_close(model(X).double(), by_hand(X, *model), rtol=1e-4, atol=1e-4)


# -- what a norm consumes -------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.q_norm, self.k_norm = nn.Linear(8, 24), nn.LayerNorm(4), nn.LayerNorm(4)
        self.q_only, self.q_only_norm, self.out = nn.Linear(8, 8), nn.LayerNorm(4), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)
        other = self.q_only_norm(self.q_only(x).unflatten(-1, (2, 4)))
        out: Tensor = self.out((self.q_norm(q) * self.k_norm(k) * v + other).flatten(-2))
        return out


def test_a_norm_of_a_part_does_not_consume_the_whole() -> None:
    report = normalize(Attention(), "gn+ws", torch.randn(2, 5, 8))
    assert report.weight_normalized == ("q_only",)


class Auxiliary(nn.Module):
    """A head that only training reaches, as in GoogLeNet."""

    def __init__(self, needs: bool = False) -> None:
        super().__init__()
        self.needs = needs
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.aux = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        x = self.stem(x)
        if not self.training:
            return x
        if self.needs and target is None:
            raise ValueError("training takes targets")
        return x, self.aux(x)


def test_auxiliary_heads_get_both_normalizations() -> None:
    model = Auxiliary()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    report = normalize(model, "bn+ws", X)
    assert report.weight_normalized == ("stem.0", "aux.0")
    assert report.plain == ("aux.3",)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    report = normalize(Auxiliary(needs=True), "gn+ws", X)
    assert report.weight_normalized == ("stem.0",)
    assert any(n.startswith("aux.0: note: the example does not reach it in evaluation, and the network does not train "
                            "on it (ValueError: training takes targets)") for n in report.notes)  # fmt: skip


# -- subclasses -----------------------------------------------------------------------------------------------------


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


# -- what a stranger's network does beside its layers ----------------------------------------------------------------


def test_a_raw_weight_past_the_attribute_is_an_error() -> None:
    class Past(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self._parameters["weight"], self.bias)

    model = network(Past(3, 8, 3, bias=False))
    with pytest.raises(ConversionError, match=r"'0': its raw weight is given to an operation.*exclude=\['0'\]"):
        normalize(model, "gn+ws", X)
    assert type(model[0]) is Past


def test_an_included_layer_that_never_runs_is_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(F.conv2d(x, self.conv.weight))
            return out

    with pytest.raises(ConversionError, match="'conv': its raw weight is given to an operation"):
        normalize(Functional(), "gn+ws", X, include=["conv"])
    attention = nn.TransformerEncoderLayer(8, 2, 16)
    report = normalize(attention, "gn+ws", torch.zeros(3, 2, 8), include=["*out_proj"])
    assert any("included by '*out_proj', but the example does not call it" in note for note in report.notes)


def test_fused_and_named_norms_are_compared_too() -> None:
    class Doubles(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(2 * super().forward(x))

    class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    class Called(nn.BatchNorm2d):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * super().__call__(x)

    for norm in (Doubles(8), FrozenBatchNorm2d(8), Called(8)):
        report = normalize(nn.Sequential(nn.Conv2d(3, 8, 3), norm), "gn", X)
        assert report.activations == ()
        assert "does more than the norm that it is named after" in report.notes[0]


def test_an_input_without_a_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8))
    report = normalize(model, "in", X[0])
    assert report.activations == ()
    assert "without a batch dimension" in report.notes[0]


def test_a_frozen_stage_stays_frozen_where_its_norm_has_no_parameters() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), torchvision.ops.FrozenBatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=False),
        torchvision.ops.FrozenBatchNorm2d(8),
    )  # fmt: skip
    model[0].requires_grad_(False)
    for example in (X, None):
        twin = copy.deepcopy(model)
        normalize(twin, "sn+ws", example)
        assert not any(p.requires_grad for p in twin[1].parameters())
        assert all(p.requires_grad for p in twin[3].parameters())


def test_what_a_forward_leaves_behind_is_put_back() -> None:
    class Leaves(Auxiliary):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ema", torch.zeros(()))
            self.teacher = nn.Linear(2, 2).requires_grad_(False)

        def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
            if self.training:
                self.ema = self.ema + random.random() + float(np.random.rand())
                with torch.no_grad():
                    self.teacher.weight.add_(1)
            return super().forward(x, target)

    model = Leaves()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1), np.random.seed(1)
    normalize(model, "gn+ws", X)
    assert (random.random(), np.random.rand()) == expected
    for name in ("ema", "teacher.weight"):
        assert torch.equal(model.state_dict()[name], state[name])


def test_a_network_without_layers_is_warned_of() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Conv2d(3, 8, 3)]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers[0](x)
            return out

    with pytest.warns(UserWarning, match="found no convolution, linear or normalization layer in Listed"):
        normalize(Listed(), "gn+ws", X)


def test_threads_share_a_converted_subclass() -> None:
    model = network(Same(3, 8, 3, bias=False)).eval()
    normalize(model, "gn8+ws", X)
    with torch.no_grad():
        expected = model(X)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: model(X), range(100)))
    for out in found:
        torch.testing.assert_close(out, expected)


def test_parametrized_behind_and_back_to_plain() -> None:
    model = Elsewhere()
    normalize(model, "gn+ws", X)
    parametrizations.weight_norm(model.conv1)
    with pytest.raises(ConversionError, match=r"'conv1': its weight is computed by a parametrization"):
        normalize(model, "gn")
    model(X)
