"""Converted networks under the transforms that people use; docs/norms.md has the same table."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, linearize, stack_module_state, vmap
from torch.fx import symbolic_trace
from torch.optim.swa_utils import AveragedModel, update_bn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from tests.norms.nets import difference
from wsbench.norms import NormalizedLayer, fold, normalize

SPECS = [
    "bn+ws", "gn+ws", "in+ws", "sn+ws", "sn@authors", "ln+wn", "frozenbn+ws-af", "none+ws-do", "gn+ws-mo",
    "gn8+ws@timm",
]  # fmt: skip


class Net(nn.Module):
    """Maps of 1 x 1 at its end, where IN has one value a statistic."""

    def __init__(self, spec: str, dtype: torch.dtype = torch.double) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 16, 2, groups=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.hidden, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)
        normalize(self, spec, torch.zeros(2, 3, 8, 8))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.hidden(self.body(x).mean((2, 3)))).relu())
        return out


def net(spec: str, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net(spec)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def images(n: int = 4, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=torch.double)


Y = torch.tensor([0, 1, 2, 3])


def loss(model: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model, weights, (x,)), y)


def by_autograd(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in model.named_parameters()}


# -- torch.func -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_grad(spec: str) -> None:
    model = net(spec).eval()
    found = grad(lambda w: loss(model, w, images(), Y))(weights_of(model))
    assert difference(found, by_autograd(model, images(), Y)) < 1e-11


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_of_each_sample(spec: str) -> None:
    """vmap of grad, in training for the norms that know no batch."""
    model = net(spec)
    if spec.startswith(("bn", "sn")):
        model.eval()
    found = vmap(grad(lambda w, x, y: loss(model, w, x[None], y[None])), (None, 0, 0))(weights_of(model), images(), Y)
    for i in range(4):
        alone = by_autograd(model, images()[i : i + 1], Y[i : i + 1])
        assert difference({k: v[i] for k, v in found.items()}, alone) < 1e-10


@pytest.mark.parametrize("spec", SPECS)
def test_an_ensemble(spec: str) -> None:
    """vmap over stacked weights and buffers."""
    models = [net(spec, seed).eval() for seed in range(3)]
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    out = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), (0, 0, None))(parameters, buffers, images())
    for i, model in enumerate(models):
        torch.testing.assert_close(out[i], model(images()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS)
def test_jvp_and_forward_mode(spec: str) -> None:
    model = net(spec).eval()
    w = weights_of(model)
    torch.manual_seed(1)
    direction = {k: torch.randn_like(v) for k, v in w.items()}
    _, slope = jvp(lambda w: loss(model, w, images(), Y), (w,), (direction,))
    expected = sum((g * direction[k]).sum() for k, g in by_autograd(model, images(), Y).items())
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_forward_mode(spec: str) -> None:
    """torch.func.linearize, and dual numbers without a transform."""
    model, x = net(spec).eval(), images()
    t = torch.randn_like(x)
    expected = jvp(model, (x,), (t,))[1]
    torch.testing.assert_close(linearize(model, x)[1](t), expected, rtol=1e-9, atol=1e-11)
    with forward_ad.dual_level():
        out = model(forward_ad.make_dual(x, t))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spec", ["gn+ws", "sn+ws", "in+wn", "gn+ws-af"])
def test_second_derivatives(spec: str) -> None:
    """hessian is forward over reverse; against reverse over reverse of a slice of one weight."""
    model = net(spec).eval()
    w = weights_of(model)
    name, x = "body.0.weight", images()

    def of(part: Tensor) -> Tensor:
        whole = torch.cat([part, w[name].flatten()[6:]]).view_as(w[name])
        return loss(model, {**w, name: whole}, x, Y)

    part = w[name].flatten()[:6]
    found = hessian(of)(part)
    torch.testing.assert_close(found, jacrev(grad(of))(part), rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(found, torch.autograd.functional.hessian(of, part), rtol=1e-8, atol=1e-11)


# -- graphs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_symbolic_trace(spec: str, training: bool) -> None:
    """The graph trains: outputs, gradients and statistics are the network's, at other sizes too."""
    model = net(spec).train(training)
    graph = symbolic_trace(copy.deepcopy(model))
    for size in (8, 3):  # at 3 the first map is 1 x 1
        x = images(4, size)
        torch.testing.assert_close(graph(x), model(x), rtol=1e-12, atol=1e-12)
        assert difference(by_autograd(graph, x, Y), by_autograd(model, x, Y)) < 1e-11
    for name, buffer in graph.named_buffers():
        torch.testing.assert_close(buffer, model.get_buffer(name))
    assert isinstance(graph.get_submodule("body.0"), NormalizedLayer) == ("+" in spec)
    graph.train(not training), model.train(not training)  # a graph runs in its modules' mode
    torch.testing.assert_close(graph(images()), model(images()), rtol=1e-11, atol=1e-11)
    again = copy.deepcopy(graph)
    torch.testing.assert_close(again(images()), graph(images()))


@pytest.mark.parametrize("spec", ["bn+ws", "gn+ws", "in+ws", "sn+ws", "ln+wn"])
def test_torchvisions_feature_extractor(spec: str) -> None:
    model = resnet18()
    normalize(model, spec, torch.zeros(1, 3, 64, 64))
    features = create_feature_extractor(model, {"layer2": "middle", "layer4": "top"})
    x = torch.randn(2, 3, 32, 32)  # layer4 is 1 x 1
    for training in (True, False):
        model.train(training)
        features.train(training)
        y = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        middle = model.layer2(model.layer1(y))
        found = features(x)
        torch.testing.assert_close(found["middle"], middle, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["top"], model.layer4(model.layer3(middle)), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("spec", SPECS)
def test_jit_script_of_a_folded_network(spec: str) -> None:
    """A network that is not folded says so, and stays what it is (torch would put plain layers into it)."""
    model = net(spec).eval()
    kinds = [type(m) for m in model.modules()]
    if "+" in spec:
        with pytest.raises(TypeError, match=r"cannot read NormalizedConv2d.*script wsbench.norms.fold\(model\)"):
            torch.jit.script(model)
    assert [type(m) for m in model.modules()] == kinds
    if spec.startswith("sn"):
        with pytest.raises(TypeError, match=r"cannot read SwitchNorm; use torch.jit.trace"):
            torch.jit.script(fold(model))
        return
    scripted = torch.jit.script(fold(model))
    for size in (8, 3):
        torch.testing.assert_close(scripted(images(4, size)), model(images(4, size)), rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("spec", SPECS)
def test_jit_trace(spec: str) -> None:
    model = net(spec).eval()
    traced = torch.jit.trace(model, images())
    torch.testing.assert_close(traced(2 * images()), model(2 * images()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_export(spec: str, folded: bool) -> None:
    model = net(spec).eval()
    plain = fold(model) if folded else model
    program = torch.export.export(plain, (images(),), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}}).module()
    torch.testing.assert_close(program(images(7)), model(images(7)), rtol=1e-10, atol=1e-10)


# -- copies, averages, adapters, quantization -----------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_deepcopy_and_averaged_model(spec: str) -> None:
    """The average is one of weights; its effective weights are those of the average."""
    model = net(spec)
    averaged = AveragedModel(model)
    states = []
    for seed in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(seed)))
        averaged.update_parameters(model)
        states.append({k: v.detach().clone() for k, v in model.named_parameters()})
    mean = {k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]}
    by_hand = copy.deepcopy(model)
    by_hand.load_state_dict(mean, strict=False)
    update_bn([images(), images()], averaged)
    update_bn([images(), images()], by_hand)
    torch.testing.assert_close(averaged.eval()(images()), by_hand.eval()(images()), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("spec", ["bn+ws", "gn+ws"])
def test_fx_quantization_of_a_folded_network(spec: str) -> None:
    model = resnet18(num_classes=8).eval()
    example = torch.randn(1, 3, 64, 64)
    normalize(model, spec, example)
    update_bn([torch.randn(8, 3, 64, 64) for _ in range(3)], model)
    model.eval()
    folded = fold(model, example)
    prepared = prepare_fx(folded, get_default_qconfig_mapping("x86"), (example,))
    x = torch.randn(8, 3, 64, 64)
    prepared(x)
    quantized = convert_fx(prepared)
    error = (quantized(x) - model(x)).norm() / model(x).norm()
    assert float(error) < 0.35
    assert type(quantized.get_submodule("layer1.0.conv1")).__module__.startswith("torch.ao.nn")
