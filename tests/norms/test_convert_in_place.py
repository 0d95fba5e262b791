"""``normalize`` changes what runs: whoever holds a layer, a parameter or a hook sees the converted network."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from wsbench.norms import (
    AccumulationWindow,
    ConversionError,
    FanInError,
    GroupNorm,
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
