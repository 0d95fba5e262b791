"""The accumulation window is exact: every case against the same loop without it."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torchvision.models import resnet50

from benchmarks.timing import Kernels
from tests.norms.nets import SPECS, Net, accumulate, batches, both, difference, gradients, net, step
from wsbench.norms import AccumulationWindow, NormalizedLayer, NormSpec, fold, normalize

# -- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n", [2, 5])
def test_gradients(spec: str, n: int) -> None:
    assert both(lambda model, window: accumulate(model, batches(n), window), spec) < 1e-12


def test_the_comparison_can_fail() -> None:
    found = []
    for n in (4, 3):
        model = net()
        accumulate(model, batches(4)[:n], AccumulationWindow(model))
        found.append(gradients(model))
    assert difference(*found) > 1e-2


@pytest.mark.slow
def test_gradients_of_a_resnet50() -> None:
    found = []
    for on in (True, False):
        torch.manual_seed(0)
        model = resnet50(num_classes=5).double()
        normalize(model, "gn+ws", example=torch.zeros(1, 3, 64, 64, dtype=torch.double))
        data = [(torch.randn(1, 3, 64, 64, dtype=torch.double), torch.tensor([i])) for i in range(4)]
        accumulate(model, data, AccumulationWindow(model) if on else None)
        found.append(gradients(model))
    assert len(found[0]) == 161
    assert difference(*found) < 1e-12


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "fused sgd", "fused adam"])
def test_weights_after_several_steps(optimizer: str) -> None:
    """Momentum, weight decay, clipping; the third window is short. Fused steps do not move a weight's version."""
    results = []
    for on in (True, False):
        model = net()
        window = AccumulationWindow(model) if on else None
        fused = {"fused": True} if optimizer.startswith("fused") else {}
        parameters = model.parameters()
        optimize: torch.optim.Optimizer = {
            "sgd": lambda p=parameters, f=fused: SGD(p, 0.1, momentum=0.9, weight_decay=1e-2, **f),
            # an eps that does not blow up the rounding of gradients that are zero
            "adam": lambda p=parameters, f=fused: Adam(p, 0.01, eps=1e-3, weight_decay=1e-2, **f),
            "adamw": lambda p=parameters, f=fused: AdamW(p, 0.01, eps=1e-3, **f),
        }[optimizer.split()[-1]]()
        for s, n in enumerate((4, 4, 2, 1, 4)):
            accumulate(model, batches(n, seed=s), window)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimize.step()
            optimize.zero_grad()
        results.append(dict(model.named_parameters()))
    assert difference(*[{k: v.detach() for k, v in r.items()} for r in results]) < 1e-11


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_added_to_those_that_are_there(set_to_none: bool) -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        accumulate(model, batches(2, 1), window)
        if not set_to_none:
            model.zero_grad(set_to_none=False)
        accumulate(model, batches(3, 2), window)

    assert both(run) < 1e-12


def test_a_layer_that_the_last_micro_step_leaves_out() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        data = batches(4)
        for i, (x, y) in enumerate(data):
            model.use_maybe = i < 2
            with step(window, i == 3):
                loss = F.cross_entropy(model(x), y)
                loss.backward()

    assert both(run) < 1e-12


@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_a_micro_step_without_a_backward(skipped: int) -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(4)):
            with step(window, i == 3):
                if i != skipped:
                    F.cross_entropy(model(x), y).backward()

    assert both(run) < 1e-12


def explode(grad: Tensor) -> Tensor:
    raise ArithmeticError


@pytest.mark.parametrize("where", ["forward", "backward", "last forward", "last backward"])
@pytest.mark.parametrize("zero", [True, False])
def test_an_exception_half_way(where: str, zero: bool) -> None:
    """A micro-step that fails leaves the others' gradients in .grad, as without a window; go on, or start anew.

    (How much a backward that failed had added to .grad is left open by autograd, so its own part is taken out.)
    """

    def run(model: Net, window: AccumulationWindow | None) -> None:
        data = batches(4)
        failing = 3 if where.startswith("last") else 2
        for i, (x, y) in enumerate(data[: failing + 1]):
            with pytest.raises(ArithmeticError) if i == failing else nullcontext(), step(window, i == 3):
                out = model(x)
                if i == failing and where.endswith("forward"):
                    raise ArithmeticError
                if i == failing:
                    out.register_hook(explode)
                F.cross_entropy(out, y).backward()
        if zero:
            model.zero_grad()
        accumulate(model, data[:3], window)

    assert both(run) < 1e-12


def test_evaluation_in_the_middle_sees_averaged_weights() -> None:
    """As Lightning's WeightAveraging: weights are swapped through .data, which moves no version, and swapped back."""

    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(4)):
            with step(window, i == 3):
                (F.cross_entropy(model(x), y) / 4).backward()
            if i == 1:
                average = {k: torch.randn_like(v) for k, v in model.named_parameters()}
                kept = {k: v.data.clone() for k, v in model.named_parameters()}
                for k, v in model.named_parameters():
                    v.data.copy_(average[k])
                model.eval()
                fresh = net()
                fresh.load_state_dict(model.state_dict())
                with torch.no_grad():
                    assert torch.equal(model(x), fresh.eval()(x))
                model.train()
                for k, v in model.named_parameters():
                    v.data.copy_(kept[k])

    assert both(run) < 1e-12


def test_swapped_and_swapped_back_in_ways_that_move_the_version() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        state = copy.deepcopy(model.state_dict())
        for i, (x, y) in enumerate(batches(4)):
            with step(window, i == 3):
                F.cross_entropy(model(x), y).backward()
            model.load_state_dict({k: v + 1 for k, v in state.items()})
            model.load_state_dict(state)

    assert both(run) < 1e-12


def test_no_gradient_mode_sees_the_weights_as_they_are() -> None:
    model = net()
    window = AccumulationWindow(model)
    (x, _), *_ = batches(1)
    with window.micro_step(last=False):
        before = model(x).detach()
        assert torch.equal(fold(model)(x), before)
        with torch.no_grad():
            model.stem.weight.data.mul_(-1)
            assert not torch.equal(model(x), before)
            assert torch.equal(model(x), fold(model)(x))


def test_saved_and_copied_in_the_middle() -> None:
    model = net()
    keys = list(model.state_dict())
    window = AccumulationWindow(model)
    data = batches(3)
    for i in range(2):
        with window.micro_step(last=False):
            F.cross_entropy(model(data[i][0]), data[i][1]).backward()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(other.state_dict()) == keys
        assert not any("window" in m.attached for m in other.modules() if isinstance(m, NormalizedLayer))
        with torch.no_grad():
            other.stem.weight.mul_(-1)
            assert not torch.equal(other(data[0][0]), model(data[0][0]))
    assert copy.deepcopy({"window": window}) == {"window": None}


def test_copied_in_the_last_micro_step() -> None:
    """The live graph is no leaf, which torch refuses to copy."""
    model = net()
    window = AccumulationWindow(model)
    for last in (False, True):
        window.begin(last)
        F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
    copy.deepcopy(model)
    pickle.dumps(model)
    window.end()


@pytest.mark.parametrize("frozen", ["stem.weight", "twice.weight", "hidden.weight"])
@pytest.mark.parametrize("spec", ["gn+ws", "gn+ws-af"])
def test_frozen_parameters(frozen: str, spec: str) -> None:
    """Under af the gain of a frozen weight is still trained."""

    def run(model: Net, window: AccumulationWindow | None) -> None:
        model.get_parameter(frozen).requires_grad_(False)
        accumulate(model, batches(3), window)
        model.zero_grad()
        accumulate(model, batches(3, seed=5), window)
        assert model.get_parameter(frozen).grad is None

    assert both(run, spec) < 1e-12


def test_a_part_in_evaluation_mode() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        model.stem.eval()
        accumulate(model, batches(3), window)

    assert both(run) < 1e-12


def test_gradient_checkpointing() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        model.checkpointing = True
        accumulate(model, batches(3), window)

    assert both(run) < 1e-12


def test_a_gradient_penalty() -> None:
    """A backward through a backward, in every micro-step."""

    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                x.requires_grad_()
                loss = F.cross_entropy(model(x), y)
                (slope,) = torch.autograd.grad(loss, x, create_graph=True)
                (loss + slope.square().sum()).backward()

    assert both(run) < 1e-11


def test_two_backwards_of_the_last_micro_step_add_what_gathered_once() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                out = model(x)
                F.cross_entropy(out, y).backward(retain_graph=True)
                out.square().sum().backward()

    assert both(run) < 1e-12


def test_parameter_hooks() -> None:
    """As without a window they fire in every micro-step; in a simple loop once, with the whole gradient."""
    found = []
    for on in (True, False):
        model, seen = net(), []
        model.stem.weight.register_hook(lambda g, seen=seen: seen.append(g.clone()) or 2 * g)
        model.twice.weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        accumulate(model, batches(4), AccumulationWindow(model) if on else None)
        found.append({str(i): g for i, g in enumerate(seen)} | gradients(model))
    assert len(found[0]) == len(found[1])
    assert difference(*found) < 1e-12
    model, seen = net(), []
    model.stem.weight.register_hook(seen.append)
    accumulate(model, batches(4), AccumulationWindow(model, simple_loop=True))
    assert len(seen) == 1
    assert torch.equal(seen[0], model.stem.weight.grad)


def test_channels_last() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        model.to(memory_format=torch.channels_last)
        accumulate(model, batches(3), window)

    assert both(run) < 1e-12


# -- precision ------------------------------------------------------------------------------------------------------


def test_bfloat16_autocast() -> None:
    """As far from the exact gradient as autocast is without a window, not farther; the cast is done once."""
    exact = net()
    accumulate(exact, batches(8), None)
    truth = gradients(exact)

    def error(on: bool) -> float:
        model = net(dtype=torch.float32)
        window = AccumulationWindow(model) if on else None
        data = batches(8)
        for i, (x, y) in enumerate(data):
            with torch.autocast("cpu", torch.bfloat16), step(window, i == 7):
                if window is not None and i < 7:
                    assert {s.leaf.dtype for s in window.layers if s.leaf is not None} == {torch.bfloat16}
                (F.cross_entropy(model(x.float()).float(), y) / 8).backward()
        found = gradients(model)
        assert {g.dtype for g in found.values()} == {torch.float32}
        squares = torch.stack([(found[k].double() - g).square().sum() for k, g in truth.items()]).sum()
        return float((squares / torch.stack([g.square().sum() for g in truth.values()]).sum()).sqrt())

    ours, plain = error(True), error(False)
    assert 1e-3 < plain < 0.5
    assert ours < 1.25 * plain


def test_small_gradients_are_summed_in_float32() -> None:
    """In bfloat16, whose neighbours of 1 are 2^-8 apart, 1,000 times 2^-9 added to 1 is 1."""
    layer = nn.Conv2d(2, 1, 1, bias=False)
    model = nn.Sequential(layer, nn.GroupNorm(1, 1))
    normalize(model, "none+ws-mo", example=torch.zeros(1, 2, 2, 2))
    window = AccumulationWindow(model)
    x = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    for i in range(1001):
        with torch.autocast("cpu", torch.bfloat16), window.micro_step(last=i == 1000):
            (model(x).float().sum() * (1.0 if i == 0 else 2.0**-9)).backward()
    expected = (1 + 1000 * 2.0**-9) / 2
    torch.testing.assert_close(model[0].weight.grad.flatten(), torch.tensor([expected, -expected]))


def test_autocast_entered_inside_only_costs_a_cast() -> None:
    model = net(dtype=torch.float32)
    window = AccumulationWindow(model)
    x = batches(1, dtype=torch.float32)[0][0]
    with window.micro_step(last=False):
        inside = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        assert inside.dtype == torch.float32


def test_a_part_without_autocast() -> None:
    """The window's weights are bfloat16, this part's input is float32."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(dtype=torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                out: Tensor = self.net(x)
            return out

    found = []
    for on in (True, False):
        model = Mixed()
        window = AccumulationWindow(model) if on else None
        for i, (x, y) in enumerate(batches(3, dtype=torch.float32)):
            with torch.autocast("cpu", torch.bfloat16), step(window, i == 2):
                F.cross_entropy(model(x), y).backward()
        found.append(gradients(model))
    assert difference(*found) < 1e-4


def test_float16_and_a_gradient_scaler() -> None:
    """Scaled gradients gather, and are unscaled once, behind the window's end."""
    found = []
    for on in (True, False):
        model = net(dtype=torch.float32)
        window = AccumulationWindow(model) if on else None
        optimizer, scaler = SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for i, (x, y) in enumerate(batches(4)):
            with step(window, i == 3):
                scaler.scale(F.cross_entropy(model(x.float()), y) / 4).backward()
        scaler.unscale_(optimizer)
        found.append(gradients(model))
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        assert norm > 0.1
        scaler.step(optimizer)
        scaler.update()
    assert difference(*found) < 1e-4
    exact = net()
    accumulate(exact, batches(4), None)
    reference = {k: v.float() for k, v in gradients(exact).items() if v.norm() > 1e-8}
    assert difference({k: found[0][k] for k in reference}, reference) < 1e-3


# -- cost -----------------------------------------------------------------------------------------------------------


def kernels(spec: str, on: bool, n: int = 4) -> list[int]:
    torch.manual_seed(0)
    model = resnet50(num_classes=5)
    normalize(model, spec)
    window = AccumulationWindow(model, simple_loop=True) if on else None
    counts = []
    for i in range(n):
        with step(window, i == n - 1), Kernels() as counted:
            model(torch.zeros(1, 3, 32, 32)).sum().backward()
        counts.append(counted.count)
    return counts


@pytest.mark.slow
def test_a_micro_step_has_the_kernels_of_a_plain_network() -> None:
    plain, window, every = kernels("gn", False), kernels("gn+ws", True), kernels("gn+ws", False)
    assert window[:-1] == plain[:-1]
    assert every[1] > plain[1] + 53 * 4


def test_the_definition_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    window = AccumulationWindow(model)
    calls = []
    method = type(model.stem.method)
    original = method.effective
    monkeypatch.setattr(method, "effective", lambda self, rows, **extra: calls.append(1) or original(self, rows))
    accumulate(model, batches(6), window)
    assert len(calls) == len(window) == 5


def test_layers_are_those_of_the_spec() -> None:
    assert len(AccumulationWindow(net("gn"))) == 0
    assert NormSpec.parse("gn+ws").weight == "ws"
