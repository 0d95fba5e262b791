"""The accumulation window is exact: every case against the same loop without it."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet50

from benchmarks.timing import Kernels
from wsbench.norms import AccumulationWindow, NormalizedLayer, NormSpec, WindowError, fold, normalize

SPECS = ["gn+ws", "gn+wn", "bn+ws-mo", "ln+ws-do", "gn+ws-af", "gn+ws@authors", "sn+ws@timm", "in+ws@bit"]


class Net(nn.Module):
    """Plain, grouped and transposed convolutions and a linear layer, all in front of a norm; one is used twice."""

    def __init__(self, spec: str = "gn+ws", dtype: torch.dtype = torch.double) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, bias=False)
        self.maybe = nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, 8) for _ in range(5))
        self.hidden, self.hidden_norm = nn.Linear(8, 16), nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 4)
        self.use_maybe, self.checkpointing = True, False
        normalize(self, spec, example=torch.zeros(1, 3, 8, 8))
        self.to(dtype)

    def body(self, x: Tensor) -> Tensor:
        x = self.norms[1](self.twice(x)).relu()
        return self.norms[2](self.twice(x)).relu()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.stem(x)).relu()
        x = checkpoint(self.body, x, use_reentrant=False) if self.checkpointing else self.body(x)
        x = self.norms[3](self.up(x)).relu()
        if self.use_maybe:
            x = x + self.norms[4](self.maybe(x)).relu()
        x = self.hidden_norm(self.hidden(x.mean((2, 3)))).relu()
        out: Tensor = self.head(x)
        return out


def net(spec: str = "gn+ws", dtype: torch.dtype = torch.double) -> Net:
    torch.manual_seed(1)
    return Net(spec, dtype)


def batches(n: int, seed: int = 2, dtype: torch.dtype = torch.double) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(2, 3, 8, 8, generator=generator, dtype=dtype), torch.randint(4, (2,), generator=generator))
        for _ in range(n)
    ]


@contextmanager
def step(window: AccumulationWindow | None, last: bool) -> Iterator[None]:
    with nullcontext() if window is None else window.micro_step(last):
        yield


def accumulate(model: nn.Module, data: list[tuple[Tensor, Tensor]], window: AccumulationWindow | None) -> None:
    for i, (x, y) in enumerate(data):
        with step(window, i == len(data) - 1):
            (F.cross_entropy(model(x), y) / len(data)).backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of a parameter's gradient, relative to it, or to a thousandth of the largest."""
    assert ours.keys() == theirs.keys()
    least = 1e-3 * max(float(g.norm()) for g in theirs.values())
    return max(float((ours[k] - g).norm()) / max(float(g.norm()), least) for k, g in theirs.items())


def both(run: Callable[[Net, AccumulationWindow | None], None], spec: str = "gn+ws") -> float:
    """The difference of the gradients that ``run`` leaves, with a window and without."""
    found = []
    for on in (True, False):
        model = net(spec)
        run(model, AccumulationWindow(model) if on else None)
        found.append(gradients(model))
    return difference(*found)


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
        assert all(m._held is None for m in other.modules() if isinstance(m, NormalizedLayer))
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


def test_parameter_hooks_fire_once_with_the_whole_gradient() -> None:
    model = net()
    seen: list[Tensor] = []
    model.stem.weight.register_hook(seen.append)
    accumulate(model, batches(4), AccumulationWindow(model))
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
                    assert {s.leaf.dtype for s in window._shares if s.leaf is not None} == {torch.bfloat16}
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


# -- stale weights --------------------------------------------------------------------------------------------------


def middle_of_a_window() -> tuple[Net, AccumulationWindow]:
    model = net()
    window = AccumulationWindow(model)
    with window.micro_step(last=False):
        F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
    return model, window


def fresh_output(model: Net, x: Tensor) -> Tensor:
    other = net()
    other.load_state_dict(model.state_dict())
    out: Tensor = other(x)
    return out


@pytest.mark.parametrize(
    "change", ["optimizer", "fused optimizer", "load_state_dict", "assign", "in place", ".data =", ".data in place"]
)
@pytest.mark.parametrize("last", [True, False])
def test_changed_weights_are_never_computed_with(change: str, last: bool) -> None:
    """Nothing has gathered, so the window takes the new weights."""
    model = net()
    window = AccumulationWindow(model)
    x = batches(1)[0][0]
    with window.micro_step(last=False):
        before = model(x)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    if "optimizer" in change:
        SGD(model.parameters(), 0.1, fused=change.startswith("fused")).step()
    elif change == "load_state_dict":
        model.load_state_dict({k: v + torch.randn_like(v) for k, v in model.state_dict().items()})
    elif change == "assign":
        model.load_state_dict({k: v + torch.randn_like(v) for k, v in model.state_dict().items()}, assign=True)
    elif change == "in place":
        with torch.no_grad():
            torch._foreach_mul_(list(model.parameters()), -1.0)
    elif change == ".data in place":
        for p in model.parameters():
            p.data.mul_(torch.randn_like(p))
    else:
        for p in model.parameters():
            p.data = torch.randn_like(p.data)
    with window.micro_step(last):
        out = model(x)
    assert not torch.equal(out, before)
    assert torch.equal(out, fresh_output(model, x))


def test_a_fused_step_does_not_move_the_version() -> None:
    """The trap itself, so that it is noticed when torch mends it."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    before = p._version
    SGD([p], 0.1, fused=True).step()
    assert p._version == before
    SGD([p], 0.1).step()
    assert p._version > before


@pytest.mark.parametrize("last", [True, False])
def test_changed_after_gradients_had_gathered(last: bool) -> None:
    model, window = middle_of_a_window()
    model.load_state_dict({k: v + torch.randn_like(v) for k, v in model.state_dict().items()})
    with pytest.raises(WindowError, match=r"'stem' changed inside .* call flush\(\)"):
        window.begin(last)
    x = batches(1)[0][0]
    assert torch.equal(model(x), fresh_output(model, x)), "and the window is closed"


def fail_after_changing(model: Net) -> None:
    with torch.no_grad():
        model.stem.weight.mul_(2)
    raise ArithmeticError


def test_frozen_or_failed_after_gradients_had_gathered() -> None:
    """What cannot be put right is said; an error of the user's own stays the one that is raised."""
    model, window = middle_of_a_window()
    model.stem.weight.requires_grad_(False)
    with pytest.raises(WindowError, match=r"'stem' changed .* frozen"):
        window.begin(last=True)
    model, window = middle_of_a_window()
    with pytest.raises(ArithmeticError) as caught, window.micro_step(last=False):
        fail_after_changing(model)
    assert "the gradients of this accumulation window are lost: the weight of 'stem'" in caught.value.__notes__[0]
    assert model.stem._held is None


def test_changed_through_data_after_gradients_had_gathered() -> None:
    """Such a write moves no version; it is found at the end of the window, before any gradient gets out."""
    model, window = middle_of_a_window()
    with torch.no_grad():
        model.twice.weight.data.mul_(1.5)
    window.begin(last=False)
    with pytest.raises(WindowError, match="'twice' changed inside"):
        window.begin(last=True)
    assert model.twice.weight.grad is None


def test_weights_that_are_nan_have_not_changed() -> None:
    """A run that diverged says so by its loss, not by a window that takes NaN for another NaN."""
    model = net()
    with torch.no_grad():
        model.stem.weight.fill_(torch.nan)
    window = AccumulationWindow(model)
    for last in (False, False, True):
        with window.micro_step(last):
            model(batches(1)[0][0]).sum().backward()
        with torch.no_grad():
            model.stem.weight.add_(0)
    assert bool(model.stem.weight.grad.isnan().all())


def test_an_optimizer_that_steps_too_early() -> None:
    model, window = middle_of_a_window()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WindowError, match=r"gradients of 'stem' wait .* last=True, or call flush\(\)"):
        SGD(model.parameters(), 0.1).step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    window.flush()
    SGD(model.parameters(), 0.1).step()
    assert not torch.equal(model.stem.weight, before["stem.weight"])


def test_a_closure_that_forgets_the_last_micro_step() -> None:
    model, _ = middle_of_a_window()
    with pytest.raises(WindowError, match="stepped without the gradients of 'stem'"):
        SGD(model.parameters(), 0.1).step(lambda: 0.0)


def test_a_closure_that_runs_the_last_micro_step() -> None:
    found = []
    for on in (True, False):
        model = net()
        window = AccumulationWindow(model) if on else None
        data = batches(3)
        for x, y in data[:2]:
            with step(window, False):
                F.cross_entropy(model(x), y).backward()

        def closure(model: Net = model, window: AccumulationWindow | None = window, data: Any = data) -> float:
            with step(window, True):
                F.cross_entropy(model(data[2][0]), data[2][1]).backward()
            return 0.0

        SGD(model.parameters(), 0.1).step(closure)
        found.append({k: v.detach() for k, v in model.named_parameters()})
    assert difference(*found) < 1e-12


def test_an_optimizer_of_other_weights_does_not_disturb() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        other = SGD(model.head.parameters(), 0.1)
        for i, (x, y) in enumerate(batches(4)):
            with step(window, i == 3):
                F.cross_entropy(model(x), y).backward()
            other.step()

    assert both(run) < 1e-12


def test_zeroed_in_the_middle() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(5)):
            with step(window, i == 4):
                F.cross_entropy(model(x), y).backward()
            if i == 2:
                model.zero_grad()
                if window is not None:
                    window.forget()

    assert both(run) < 1e-12


def test_flush_in_the_middle() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        data = batches(5)
        for i, (x, y) in enumerate(data):
            with step(window, i == 4):
                F.cross_entropy(model(x), y).backward()
            if i == 2 and window is not None:
                assert window.gathered
                window.flush()
                assert not window.gathered
            if i == 2:
                with torch.no_grad():
                    for p in model.parameters():
                        p.add_(torch.full_like(p, 0.01))

    assert both(run) < 1e-12


def test_a_closed_or_forgotten_window_leaves_nothing() -> None:
    import gc

    from torch.optim import optimizer as module

    gc.collect()
    hooks = module._global_optimizer_pre_hooks
    count = len(hooks)
    for forgotten in (False, True):
        model, window = middle_of_a_window()
        assert len(hooks) == count + 1
        assert model.stem._held is not None
        if not forgotten:
            window.close()
        del window
        gc.collect()
        assert len(hooks) == count
        assert all(m._held is None for m in model.modules() if isinstance(m, NormalizedLayer))


# -- cost -----------------------------------------------------------------------------------------------------------


def kernels(spec: str, on: bool, n: int = 4) -> list[int]:
    torch.manual_seed(0)
    model = resnet50(num_classes=5)
    normalize(model, spec)
    window = AccumulationWindow(model) if on else None
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
