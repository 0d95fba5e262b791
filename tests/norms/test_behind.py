"""Norms that bring their activation: the one behind stands aside, wherever it is used, and comes back."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, resnet18, resnet50

from wsbench.norms import ACTIVATIONS, ConversionError, normalize
from wsbench.norms.behind import Passing

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ACTIVATING = [name for name, method in ACTIVATIONS.items() if method.facts.brings_activation]


def by_hand(model: Any, x: Tensor) -> Tensor:
    """torchvision's ResNet with no ReLU behind norms, those behind additions kept."""
    x = model.maxpool(model.bn1(model.conv1(x)))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            out = block.bn1(block.conv1(x))
            out = block.bn2(block.conv2(out))
            if hasattr(block, "conv3"):
                out = block.bn3(block.conv3(out))
            x = torch.relu(out + (x if block.downsample is None else block.downsample(x)))
    return model.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ACTIVATING)
@pytest.mark.parametrize("network", [resnet18, resnet50])
def test_resnets(name: str, network: Any) -> None:
    torch.manual_seed(0)
    model = network(num_classes=5)
    normalize(model, name, IMAGE)
    norms = {n: m.nonlinearity for n, m in model.named_modules() if hasattr(m, "nonlinearity")}
    last = "bn3" if network is resnet50 else "bn2"
    assert all(acts == (not n.endswith(last) and "downsample" not in n) for n, acts in norms.items())
    for training in (True, False):
        model.train(training)
        state = copy.deepcopy(model.state_dict())
        out = model(IMAGE)
        model.load_state_dict(state)
        told = [m for m in model.modules() if isinstance(m, Passing)]
        assert not any(m._told for m in told)
        torch.testing.assert_close(out, by_hand(model, IMAGE))
        for m in told:
            m._told = False  # by hand nobody was called


@pytest.mark.parametrize("name", ACTIVATING)
def test_there_and_back(name: str) -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=5)
    relu, keys = model.relu, set(model.state_dict())
    normalize(model, name, IMAGE)
    assert model.relu is relu
    normalize(model, "frn" if name != "frn" else "evos", IMAGE)
    normalize(model, "gn", IMAGE)
    assert type(relu) is nn.ReLU
    assert not any(isinstance(m, Passing) for m in model.modules())
    plain = resnet18(num_classes=5)
    normalize(plain, "gn", IMAGE)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(IMAGE), plain(IMAGE))
    assert {k for k in keys if "running" not in k and "tracked" not in k} == set(model.state_dict())


def test_copies_compilers_and_hooks_see_the_same() -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=5).eval()
    normalize(model, "evos", IMAGE)
    expected = model(IMAGE)
    assert torch.equal(copy.deepcopy(model)(IMAGE), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(IMAGE), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(IMAGE), expected)
    torch.testing.assert_close(torch.export.export(model, (IMAGE,)).module()(IMAGE), expected)
    torch.testing.assert_close(torch.jit.trace(model, (IMAGE,))(IMAGE), expected)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGE), expected)
    for module in (m for m in model.modules() if getattr(m, "nonlinearity", False)):
        # wraps outputs: what is told must not hang on the tensor
        module.register_full_backward_hook(lambda *_: None)
    torch.testing.assert_close(model(IMAGE.clone().requires_grad_()), expected)


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), how
        self.relu = nn.ReLU(inplace="inplace" in how)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if "functional" in self.how:
            return self.head(F.relu(y))  # type: ignore[no-any-return]
        if self.how == "elsewhere":
            return self.head(self.relu(y) + y)  # type: ignore[no-any-return]
        if self.how == "between":
            other = self.relu(x)
            return self.head(self.relu(y) + other.mean())  # type: ignore[no-any-return]
        if self.how == "twice":
            return self.head(self.relu(y) + self.relu(-self.norm(self.conv(x + 1)).mean((2, 3), keepdim=True)))  # type: ignore[no-any-return]
        return self.head(self.relu(y.flatten(1).view_as(y)))  # type: ignore[no-any-return]


def test_a_view_in_between_does_not_matter() -> None:
    for how in ("view", "view inplace"):
        model = Net(how)
        normalize(model, "frn", IMAGE)
        assert isinstance(model.relu, Passing)
        torch.testing.assert_close(model(IMAGE), model.head(model.norm(model.conv(IMAGE))))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("functional", "'relu', an operation"),
        ("elsewhere", "an activation and elsewhere"),
        ("between", "used for something else in between"),
        ("twice", "different things in different calls"),
    ],
)
def test_what_cannot_stand_aside_is_an_error_and_changes_nothing(how: str, words: str) -> None:
    model = Net(how)
    before = copy.deepcopy(model)
    with pytest.raises(ConversionError, match=f"'norm'.*{words}.*exclude"):
        normalize(model, "evos", IMAGE)
    assert type(model.norm) is nn.BatchNorm2d
    assert type(model.relu) is nn.ReLU
    assert torch.equal(model.eval()(IMAGE), before.eval()(IMAGE))
    normalize(model, "evos", IMAGE, exclude=["norm"])
    assert torch.equal(model(IMAGE), before(IMAGE))


class Two(nn.Module):
    """Two norms and one activation, which follows both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kept", ["norm1", "norm2"])
def test_behind_a_norm_that_is_kept_the_activation_stays(kept: str) -> None:
    model = Two().eval()
    normalize(model, "frn", IMAGE, exclude=[kept])
    first = torch.relu if kept == "norm1" else nn.Identity()
    second = torch.relu if kept == "norm2" else nn.Identity()
    expected = second(model.norm2(model.conv2(first(model.norm1(model.conv1(IMAGE))))))
    model.relu._told = False  # by hand nobody was called
    torch.testing.assert_close(model(IMAGE), expected)


@pytest.mark.parametrize("to", ["gn", "evos", "frn"])
def test_what_is_behind_a_norm_that_stays_goes_on_standing_aside(to: str) -> None:
    model = Two().eval()
    normalize(model, "frn", IMAGE)
    with pytest.raises(ConversionError, match="'norm1' stays"):
        normalize(model, "gn", exclude=["norm1"])
    normalize(model, to, IMAGE, exclude=["norm1"])
    second = torch.relu if to == "gn" else nn.Identity()
    expected = second(model.norm2(model.conv2(model.norm1(model.conv1(IMAGE)))))
    if isinstance(model.relu, Passing):
        model.relu._told = False  # by hand nobody was called
    torch.testing.assert_close(model(IMAGE), expected)


def test_without_an_example_nobody_knows_what_is_behind() -> None:
    with pytest.raises(ConversionError, match="example"):
        normalize(resnet18(), "evos")


def test_fused_activations_of_timm_are_taken_out() -> None:
    model = create_model("efficientnet_b0", num_classes=4)
    normalize(model, "evos", IMAGE)
    norms = [m for m in model.modules() if hasattr(m, "nonlinearity")]
    assert any(m.nonlinearity for m in norms)
    assert any(not m.nonlinearity for m in norms)  # behind projections
    assert model.eval()(IMAGE).isfinite().all()


def test_other_activations_stand_aside_too() -> None:
    model = mobilenet_v3_small(num_classes=4)
    normalize(model, "frn", IMAGE)
    kinds = {type(m).__name__ for m in model.modules() if isinstance(m, Passing)}
    assert kinds == {"PassingReLU", "PassingHardswish"}
    assert model.eval()(IMAGE).isfinite().all()


@pytest.mark.parametrize("name", ACTIVATING)
def test_fused_activations_come_back(name: str) -> None:
    torch.manual_seed(0)
    model = create_model("efficientnet_lite0", num_classes=4).eval()
    original = copy.deepcopy(model)
    normalize(model, name, IMAGE)
    acting = sum(getattr(m, "nonlinearity", False) for m in model.modules())
    assert acting > 20
    once = copy.deepcopy(model)
    normalize(model, name, IMAGE)
    assert sum(getattr(m, "nonlinearity", False) for m in model.modules()) == acting
    torch.testing.assert_close(model(IMAGE), once(IMAGE))
    normalize(model, "gn", IMAGE)
    normalize(original, "gn", IMAGE)
    torch.testing.assert_close(model(IMAGE), original(IMAGE))


def test_a_norm_that_ran_alone_leaves_no_word_behind() -> None:
    """Called by itself, or traced: the activation's next call is for something else."""

    class First(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.norm1(self.conv1(self.relu(x))))  # type: ignore[no-any-return]

    model = First().eval()
    normalize(model, "frn", IMAGE, exclude=["norm2"])
    expected = model.norm1(model.conv1(torch.relu(IMAGE)))
    torch.testing.assert_close(model(IMAGE), expected)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(model(IMAGE), expected)
    torch.testing.assert_close(graph(IMAGE), expected)
    model.norm1(torch.randn(2, 8, 4, 4))
    torch.testing.assert_close(model(IMAGE), expected)


class Also(Two):
    """The first norm's output goes to the activation and also somewhere else."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.silu = how, nn.SiLU()
        self.relu = nn.ReLU(inplace=how == "part")

    def forward(self, x: Tensor) -> Any:
        y = self.norm1(self.conv1(x))
        if self.how == "other activation":
            return self.relu(y) + self.silu(y)
        if self.how == "same activation":
            return self.relu(y) + self.relu(y)
        if self.how == "returned":
            return self.relu(y), y
        if self.how == "read first":
            return self.conv2(y) + self.relu(y)[..., 2:, 2:]
        if self.how == "functional behind":
            return self.conv2(y) + F.relu(y)[..., 2:, 2:]
        a, b = y.chunk(2, 1)
        return self.relu(a) * b


@pytest.mark.parametrize(
    "how", ["other activation", "same activation", "returned", "read first", "functional behind", "part"]
)
@pytest.mark.parametrize("name", ACTIVATING)
def test_an_output_that_also_goes_elsewhere_is_an_error(how: str, name: str) -> None:
    with pytest.raises(ConversionError, match=r"'norm1'.*an activation and elsewhere"):
        normalize(Also(how), name, IMAGE, exclude=["norm2"])


def test_what_has_no_activation_behind_it_is_in_the_report() -> None:
    report = normalize(resnet18(), "evos", IMAGE)
    assert len([n for n in report.notes if "normalizes nothing" in n]) == 11  # 8 blocks, 3 projections
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Softplus())
    with pytest.raises(ConversionError, match="nothing would be normalized"):
        normalize(model, "evob", IMAGE)
    assert type(model[1]) is nn.BatchNorm2d
    assert "no threshold" in normalize(model, "frn", IMAGE).notes[0]
