"""Activation normalizations against torch's layers and plain formulas, and every degenerate cell."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from wsbench.norms import (
    ACTIVATIONS,
    GroupsError,
    NormMismatchError,
    NormReport,
    NormSpec,
    SwitchNorm,
    effective_weight,
    normalize,
    require_spec,
    stamp_spec,
)
from wsbench.norms.activation import largest_divisor

SHAPES = [(3, 8, 5), (3, 8, 5, 4), (3, 8, 3, 4, 2)]
torch.manual_seed(0)


def build(spec: str, channels: int = 8) -> Any:
    parsed = NormSpec.parse(spec)
    layer = ACTIVATIONS[parsed.act].build(channels, parsed.groups, parsed.act_semantics).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def by_formula(x: Tensor, dims: tuple[int, ...], layer: Any) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    out: Tensor = (x - mean) / (var + 1e-5).sqrt() * layer.weight.view(shape) + layer.bias.view(shape)
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_formulas(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.double)
    spatial = tuple(range(2, x.dim()))
    for spec, dims in [("bn", (0, *spatial)), ("ln", (1, *spatial)), ("in", spatial)]:
        layer = build(spec)
        torch.testing.assert_close(layer(x), by_formula(x, dims, layer))
    layer = build("gn4")
    grouped = x.view(3, 4, 2, *shape[2:])
    mean = grouped.mean(tuple(range(2, grouped.dim())), keepdim=True)
    var = grouped.var(tuple(range(2, grouped.dim())), correction=0, keepdim=True)
    out = ((grouped - mean) / (var + 1e-5).sqrt()).view(shape)
    cols = (1, -1) + (1,) * len(spatial)
    torch.testing.assert_close(layer(x), out * layer.weight.view(cols) + layer.bias.view(cols))


@pytest.mark.parametrize(
    ("shape", "cls"), list(zip(SHAPES, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), strict=True))
)
def test_bn_is_torchs_in_training_and_evaluation(shape: tuple[int, ...], cls: type[nn.Module]) -> None:
    ours = build("bn")
    theirs = cls(8).double()
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.double)
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_in_is_torchs() -> None:
    x = torch.randn(3, 8, 5, 4, dtype=torch.double)
    ours, theirs = build("in"), nn.InstanceNorm2d(8, affine=True).double()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("spec", ["gn4", "ln"])
def test_n_c_features(spec: str) -> None:
    x = torch.randn(3, 8, dtype=torch.double)
    layer = build(spec)
    torch.testing.assert_close(layer(x), layer(x[:, :, None])[:, :, 0])
    assert layer(x).var() > 0.01


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (1, 8, 1, 1), (2, 8, 1, 1), (2, 8, 1)])
@pytest.mark.parametrize("spec", ["in", "gn8"])
def test_one_value_a_group_is_affine_only(spec: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.double)
    layer = build(spec)
    cols = (1, -1) + (1,) * (len(shape) - 2)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), x * layer.weight.view(cols) + layer.bias.view(cols))


@pytest.mark.parametrize("shape", [(1, 8), (1, 8, 1, 1)])
def test_bn_of_one_value_uses_running_statistics_and_leaves_them(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm2d(8)(torch.randn(1, 8, 1, 1))
    layer = build("bn")
    layer(torch.randn(4, 8, 3, 3, dtype=torch.double))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.randn(shape, dtype=torch.double)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_empty_batch() -> None:
    for spec in ("gn4", "ln", "in", "bn", "sn", "sn@authors"):
        assert build(spec).eval()(torch.zeros(0, 8, 7, 7, dtype=torch.double)).shape == (0, 8, 7, 7)


@pytest.mark.parametrize("spec", ["sn", "sn@authors"])
def test_an_empty_batch_moves_no_statistics(spec: str) -> None:
    layer = build(spec)
    assert layer(torch.zeros(0, 8, 7, 7, dtype=torch.double)).shape == (0, 8, 7, 7)
    assert int(layer.num_batches_tracked) == 0
    assert bool(layer.running_mean.isfinite().all())


def test_groups() -> None:
    assert [largest_divisor(c, 32) for c in (64, 48, 16, 40, 7, 37)] == [32, 24, 16, 20, 7, 1]
    assert build("gn", 48).num_groups == 24
    with pytest.raises(GroupsError, match=r"16 groups do not divide 24 channels.*\(24\)"):
        build("gn16", 24)


def reference_switch_norm(x: Tensor, layer: SwitchNorm, use: list[bool]) -> Tensor:
    """Eq. 3-5 of the paper with the statistics each computed on its own, from the definition."""
    flat = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    dims = [(2,), (1, 2), (0, 2)]
    means = [flat.mean(d, keepdim=True) for d in dims]
    variances = [flat.var(d, correction=0, keepdim=True) for d in dims]
    used = [i for i in range(3) if use[i]]
    m = layer.mean_weight[used].softmax(0)
    v = layer.var_weight[used].softmax(0)
    mean = sum(w * means[i] for w, i in zip(m, used, strict=True))
    var = sum(w * variances[i] for w, i in zip(v, used, strict=True))
    out: Tensor = (flat - mean) / (var + 1e-5).sqrt() * layer.weight[None, :, None] + layer.bias[None, :, None]
    return out.view(x.shape)


@pytest.mark.parametrize(
    ("shape", "use"),
    [
        ((3, 8, 5, 4), [True, True, True]),
        ((3, 8, 5), [True, True, True]),
        ((3, 8, 2, 3, 2), [True, True, True]),
        ((1, 8, 5, 4), [True, True, False]),
        ((3, 8, 1, 1), [False, True, True]),
        ((3, 8), [False, True, True]),
        ((1, 8, 1, 1), [False, True, False]),
    ],
)
def test_switch_norm_by_definition(shape: tuple[int, ...], use: list[bool]) -> None:
    layer = build("sn")
    assert isinstance(layer, SwitchNorm)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(layer(x), reference_switch_norm(x, layer, use))
    torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("shape", [(3, 8, 5, 4), (1, 8, 5), (3, 8, 1, 1), (3, 8), (1, 8)])
@pytest.mark.parametrize("spec", ["sn", "sn@authors"])
def test_switch_norm_gradients(spec: str, shape: tuple[int, ...], seen: bool, training: bool) -> None:
    """Of input and parameters, in training and in evaluation, with running statistics and without: as autograd's."""
    layer = build(spec)
    assert isinstance(layer, SwitchNorm)
    if seen:
        layer(torch.randn(4, 8, 3, dtype=torch.double))
    layer.train(training)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p))
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    g = torch.randn_like(x)
    other = copy.deepcopy(layer)
    ours, theirs = layer(x), other.in_primitive_operations(x)
    torch.testing.assert_close(ours, theirs)
    found = torch.autograd.grad(ours, (x, *layer.parameters()), g)
    expected = torch.autograd.grad(theirs, (x, *other.parameters()), g, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(layer.state_dict(), other.state_dict())
    tracked = layer.num_batches_tracked.clone()
    torch.autograd.gradgradcheck(layer.eval(), (x,), fast_mode=True)
    assert torch.equal(layer.num_batches_tracked, tracked)


@pytest.mark.parametrize("semantics", [None, "authors"])
def test_switch_norm_of_constant_channels_has_finite_gradients(semantics: str | None) -> None:
    layer = SwitchNorm(8, semantics=semantics)
    x = torch.full((2, 8, 3, 3), 7.0, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("spec", ["bn", "gn", "ln", "in", "sn", "sn@authors", "frozenbn"])
@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 8)])
def test_an_activation_in_place_may_follow(spec: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    layer = build(spec)
    expected = torch.autograd.grad(layer(x).relu().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(layer(x).relu_().sum(), x), expected)


def test_switch_norm_frozen_and_partly_frozen() -> None:
    layer = SwitchNorm(8).requires_grad_(False)
    x = torch.randn(2, 8, 3, 3, requires_grad=True)
    layer(x).sum().backward()
    layer.var_weight.requires_grad_(True)
    layer(x.detach()).square().sum().backward()
    assert layer.var_weight.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize(("spec", "most"), [("gn", 2), ("ln", 2), ("in", 2), ("sn", 10), ("sn@authors", 10)])
def test_saves_its_input_and_statistics_only(spec: str, most: int) -> None:
    """At most ``most`` values a channel of a sample, of the 400 that there are."""
    layer = build(spec, 8).float()
    x = torch.randn(4, 8, 20, 20, requires_grad=True)
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.state_dict().values())}
    saved: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in known:
            saved[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    assert out.requires_grad
    assert sum(saved.values()) <= most * 4 * 8


def test_switch_norm_evaluation_before_training_is_sound() -> None:
    layer = build("sn").eval()
    x = torch.randn(2, 8, 5, 4, dtype=torch.double) * 50 + 20
    torch.testing.assert_close(layer(x), reference_switch_norm(x, layer, [True, True, False]))


def test_switch_norm_trained_at_one_image_evaluates_without_bn() -> None:
    layer = build("sn")
    x = torch.randn(1, 8, 5, 4, dtype=torch.double)
    trained = layer(x)
    assert layer.num_batches_tracked == 0
    torch.testing.assert_close(layer.eval()(x), trained)


def test_switch_norm_running_statistics() -> None:
    layer = build("sn")
    x = torch.randn(4, 8, 5, 4, dtype=torch.double)
    for _ in range(300):
        layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, x.var((0, 2, 3), correction=0))
    torch.testing.assert_close(layer.eval()(x), layer.train()(x))


Running = tuple[Tensor, Tensor]


def authors_statistics(x: Tensor) -> list[Running]:
    """Mean and variance of IN, LN and BN as the authors derive them: IN's variance unbiased, the others' from it.

    One value has no unbiased variance; it is 0 here, and IN is not used.
    """
    flat = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    mean = flat.mean(2, keepdim=True)
    squares = (flat - mean).square().sum(2, keepdim=True)
    var = squares / (flat.shape[2] - 1) if flat.shape[2] > 1 else torch.zeros_like(squares)
    found = [(mean, var)]
    for dim in (1, 0):
        mu = mean.mean(dim, keepdim=True)
        found.append((mu, (var + mean.square()).mean(dim, keepdim=True) - mu.square()))
    return found


def authors_switch_norm(x: Tensor, layer: SwitchNorm, use: list[bool], running: Running | None = None) -> Tensor:
    """sn@authors written out; ``running`` mean and variance (C,) in BN's place."""
    statistics = authors_statistics(x)
    if running is not None:
        statistics[2] = (running[0][None, :, None], running[1][None, :, None])
    used = [i for i in range(3) if use[i]]
    m, v = layer.mean_weight[used].softmax(0), layer.var_weight[used].softmax(0)
    mean = sum(w * statistics[i][0] for w, i in zip(m, used, strict=True))
    var = sum(w * statistics[i][1] for w, i in zip(v, used, strict=True))
    flat = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    out: Tensor = (flat - mean) / (var + 1e-5).sqrt() * layer.weight[None, :, None] + layer.bias[None, :, None]
    return out.view(x.shape)


AUTHORS_CELLS = [
    ((3, 8, 5, 4), [True, True, True]),
    ((2, 8, 2), [True, True, True]),
    ((3, 8, 2, 3, 2), [True, True, True]),
    ((1, 8, 5, 4), [True, True, False]),
    ((1, 8, 2), [True, True, False]),
    ((3, 8, 1, 1), [False, True, True]),
    ((3, 8), [False, True, True]),
    ((1, 8, 1, 1), [False, True, False]),
]


@pytest.mark.parametrize(("shape", "use"), AUTHORS_CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_switch_norm_of_the_authors(shape: tuple[int, ...], use: list[bool], training: bool) -> None:
    """Outputs and all gradients by the formula; in evaluation with the running statistics of earlier batches."""
    layer = build("sn@authors")
    assert isinstance(layer, SwitchNorm)
    running = (torch.zeros(8, dtype=torch.double), torch.zeros(8, dtype=torch.double))
    for _ in range(3):
        batch = torch.randn(4, 8, 3, dtype=torch.double) * 2 + 1
        layer(batch)
        mean, var = (statistic.flatten() for statistic in authors_statistics(batch)[2])
        running = (0.9 * running[0] + 0.1 * mean, 0.9 * running[1] + 0.1 * var)
    torch.testing.assert_close((layer.running_mean, layer.running_var), running)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    layer.train(training)
    parameters = list(layer.parameters())
    ours = layer(x)
    if training:
        theirs = authors_switch_norm(x, layer, use)
    else:
        theirs = authors_switch_norm(x, layer, [use[0], True, True], running)
    torch.testing.assert_close(ours, theirs)
    g = torch.randn_like(x)
    found = torch.autograd.grad(ours, (x, *parameters), g)
    expected = torch.autograd.grad(theirs, (x, *parameters), g)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    torch.autograd.gradcheck(layer, (x,))


def test_switch_norm_of_the_authors_differs_by_what_it_says() -> None:
    """At 2x2 IN's variance is 4/3 of the biased one; with a large map nothing is left of it."""
    small, large = (torch.randn(2, 8, n, n, dtype=torch.double) for n in (2, 200))
    paper, authors = SwitchNorm(8).double(), SwitchNorm(8, semantics="authors").double()
    with torch.no_grad():
        for layer in (paper, authors):
            layer.var_weight.copy_(torch.tensor([1e3, 0.0, 0.0]))  # IN's variance alone
    zero_mean = small - small.mean((2, 3), keepdim=True)
    ratio = paper(zero_mean) / authors(zero_mean)
    torch.testing.assert_close(ratio, torch.full_like(ratio, (4 / 3) ** 0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(paper(large), authors(large), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 8, 1, 1), (3, 8), (1, 8, 1), (1, 8)])
def test_switch_norm_of_the_authors_at_one_value_a_channel(shape: tuple[int, ...]) -> None:
    """There is no unbiased variance (torch: nan), so IN takes no part: exactly ``sn``, with finite gradients."""
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    layer, paper = build("sn@authors"), build("sn")
    paper.load_state_dict(layer.state_dict())
    for training in (True, False):
        out = layer.train(training)(x)
        assert torch.equal(out, paper.train(training)(x))
        grads = torch.autograd.grad(out.square().sum(), (x, *layer.parameters()))
        assert all(bool(g.isfinite().all()) for g in grads)


def test_switch_norm_of_the_authors_before_and_after_one_image() -> None:
    """Its running statistics are 0, and are not used while no batch was seen; one image is none."""
    layer = build("sn@authors")
    assert isinstance(layer, SwitchNorm)
    assert not layer.running_mean.any()
    assert not layer.running_var.any()
    x = torch.randn(1, 8, 5, 4, dtype=torch.double) * 5 + 2
    trained = layer(x)
    assert int(layer.num_batches_tracked) == 0
    torch.testing.assert_close(layer.eval()(x), trained)
    torch.testing.assert_close(trained, authors_switch_norm(x, layer, [True, True, False]))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("spec", ["sn", "sn@authors"])
def test_a_traced_switch_norm_takes_pictures_of_other_sizes(spec: str) -> None:
    """The number of values a channel is no constant of the graph (detectors are exported by tracing)."""
    layer = build(spec)
    layer(torch.randn(4, 8, 3, 3, dtype=torch.double))
    layer.eval()
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(1, 8, 2, 2, dtype=torch.double))  # type: ignore[no-untyped-call]
        x = torch.randn(2, 8, 5, 4, dtype=torch.double)
        torch.testing.assert_close(traced(x), layer(x))


def test_semantics_reach_the_layers_that_have_them() -> None:
    """sn+ws@authors is both; @timm is ws's alone; the report says which; a checkpoint of another spec is refused."""

    def network(spec: str) -> tuple[nn.Sequential, NormReport]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        return model, normalize(model, spec, torch.zeros(2, 3, 8, 8))

    for spec, semantics in [
        ("sn", None), ("sn@authors", "authors"), ("sn+ws", None), ("sn+ws@authors", "authors"), ("sn+ws@timm", None),
        ("sn+wn@authors", "authors"), ("sn@paper", None),
    ]:  # fmt: skip
        model, report = network(spec)
        assert isinstance(model[1], SwitchNorm)
        assert model[1].semantics == semantics
        told = {change.after for change in report.layers if change.kind == "activation"}
        assert told == {"SwitchNorm" if semantics is None else "SwitchNorm(authors)"}
        assert (f"semantics={semantics!r}" in repr(model[1])) == (semantics is not None)
    weights = [effective_weight(network(spec)[0][0]) for spec in ("sn+ws", "sn+ws@authors", "gn+ws@authors", "sn+wn")]
    assert torch.equal(weights[1], weights[2])
    torch.testing.assert_close(weights[1] * (27 / 26) ** 0.5, weights[0], rtol=1e-3, atol=0)
    assert torch.equal(weights[3], effective_weight(network("sn+wn@authors")[0][0]))
    turned, _ = network("sn")
    report = normalize(turned, "sn@authors")
    assert [(c.before, c.after) for c in report.layers if c.kind == "activation"] == [
        ("SwitchNorm", "SwitchNorm(authors)")
    ]
    states = [network(spec)[0].state_dict() for spec in ("sn", "sn@authors")]
    assert list(states[0]) == list(states[1]), "only the specification tells them apart"
    for trained, wanted in [("sn", "sn@authors"), ("sn@authors", "sn"), ("sn+ws", "sn+ws@authors")]:
        checkpoint: dict[str, object] = {}
        stamp_spec(checkpoint, trained)
        require_spec(checkpoint, trained)
        with pytest.raises(NormMismatchError, match=re.escape(f"trained with '{trained}', the model is '{wanted}'")):
            require_spec(checkpoint, wanted)


def test_unknown_semantics_are_refused() -> None:
    with pytest.raises(ValueError, match="no semantics 'timm'; choose from authors or None"):
        SwitchNorm(8, semantics="timm")


@pytest.mark.parametrize("semantics", [None, "authors"])
def test_switch_norm_in_half_precision_has_no_negative_variance(semantics: str | None) -> None:
    layer = SwitchNorm(8, semantics=semantics)
    x = (torch.randn(2, 8, 16, 16) * 0.01 + 100).to(torch.bfloat16)
    out = layer(x)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(x.float())
    assert torch.equal(inside, layer(x.float()))


@pytest.mark.parametrize("spec", ["bn", "frozenbn", "gn4", "ln", "in", "sn", "sn@authors", "none"])
@pytest.mark.parametrize("shape", [(3, 8, 5, 4), (1, 8, 6), (2, 8, 1, 1), (1, 8, 1)])
def test_from_moments_is_forward(spec: str, shape: tuple[int, ...]) -> None:
    """Scale and shift from mean and variance of each channel: outputs, gradients and running statistics."""
    layer, other = build(spec), build(spec)
    with torch.no_grad():
        for (name, value), copy in zip(layer.state_dict().items(), other.state_dict().values(), strict=True):
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5)
            copy.copy_(value), name
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    flat = x.flatten(2)
    var, mean = torch.var_mean(flat, dim=2, correction=0)
    for training in (True, False):
        layer.train(training), other.train(training)
        scale, shift = layer.from_moments(mean, var, flat.shape[2])
        ours, expected = (flat * scale[..., None] + shift[..., None]).view(shape), other(x)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        weights = torch.randn_like(ours)
        grads = [torch.autograd.grad((y * weights).sum(), x, retain_graph=True)[0] for y in (ours, expected)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(layer.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-9)


def test_frozen_bn_is_torchvisions_and_holds_still() -> None:
    layer = build("frozenbn")
    theirs = FrozenBatchNorm2d(8).double()
    for name, value in theirs.state_dict().items():
        value.copy_(torch.rand_like(value) + 0.5)
        layer.state_dict()[name].copy_(value)
    x = torch.randn(2, 8, 3, 3, dtype=torch.double)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    torch.testing.assert_close(layer.train()(x), theirs(x))
    torch.testing.assert_close(layer.state_dict(), before)
    assert not list(layer.parameters())
    torch.testing.assert_close(build("frozenbn")(x), x)
