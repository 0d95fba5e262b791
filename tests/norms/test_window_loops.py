"""The accumulation window in loops that people write: each against the same loop without a window, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim import SGD

from tests.norms.nets import SPECS, Net, batches, both, difference, gradients, net, step
from wsbench.norms import AccumulationWindow, WindowError

# -- two networks: a discriminator that is frozen while the generator's loss passes through it -----------------------


class Generator(nn.Module):
    """From (N, 3, 8, 8) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.out = nn.Linear(4, 3 * 64).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.body(x)).view(-1, 3, 8, 8).tanh()
        return out


def discriminate(d: nn.Module, x: Tensor, target: int) -> Tensor:
    return F.cross_entropy(d(x), torch.full((len(x),), target))


def discriminator_first(d: nn.Module, g: nn.Module, x: Tensor, noise: Tensor) -> None:
    fake = g(noise)
    (discriminate(d, x, 0) + discriminate(d, fake.detach(), 1)).backward()
    d.requires_grad_(False)
    discriminate(d, fake, 0).backward()
    d.requires_grad_(True)


def frozen_first(d: nn.Module, g: nn.Module, x: Tensor, noise: Tensor) -> None:
    d.requires_grad_(False)
    fake = g(noise)
    discriminate(d, fake, 0).backward()
    d.requires_grad_(True)
    (discriminate(d, x, 0) + discriminate(d, fake.detach(), 1)).backward()


def left_frozen(d: nn.Module, g: nn.Module, x: Tensor, noise: Tensor) -> None:
    """The next micro-step begins with a frozen discriminator."""
    d.requires_grad_(True)
    fake = g(noise)
    discriminate(d, x, 0).backward()
    discriminate(d, fake.detach(), 1).backward()  # two backward passes, in the last micro-step as well
    d.requires_grad_(False)
    discriminate(d, fake, 0).backward()


def both_forwards_first(d: nn.Module, g: nn.Module, x: Tensor, noise: Tensor) -> None:
    fake = g(noise)
    real_loss, fake_loss = discriminate(d, x, 0), discriminate(d, fake.detach(), 1)
    d.requires_grad_(False)
    through = discriminate(d, fake, 0)
    d.requires_grad_(True)
    through.backward()
    fake_loss.backward()
    real_loss.backward()


@pytest.mark.parametrize("order", [discriminator_first, frozen_first, left_frozen, both_forwards_first])
def test_a_gan(order: Callable[..., None]) -> None:
    found = []
    for on in (True, False):
        torch.manual_seed(5)
        pair = nn.ModuleDict({"d": net(), "g": Generator()})
        optimizers = [SGD(m.parameters(), 0.01) for m in pair.values()]
        window = AccumulationWindow(pair) if on else None
        norms = {}
        for s in range(2):
            for i, (x, _) in enumerate(batches(4, seed=10 + s)):
                with step(window, i == 3):
                    order(pair["d"], pair["g"], x, torch.flip(x, (0,)))
            norms |= {f"{s} {k}": v for k, v in gradients(pair).items()}
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        pair.requires_grad_(True)
        found.append(norms)
    assert difference(*found) < 1e-11
    assert float(found[0]["0 d.stem.weight"].norm()) > 1e-6


def test_a_window_and_an_optimizer_for_each_network() -> None:
    """The discriminator steps inside the generator's window."""
    found = []
    for on in (True, False):
        torch.manual_seed(5)
        d, g = net(), Generator()
        windows = [AccumulationWindow(m) for m in (d, g)] if on else [None, None]
        optimizers = [SGD(m.parameters(), 0.05) for m in (d, g)]
        for i, (x, _) in enumerate(batches(4)):
            last = i % 2 == 1
            with step(windows[0], last):
                fake = g(x)
                (discriminate(d, x, 0) + discriminate(d, fake.detach(), 1)).backward()
            if last:
                optimizers[0].step()
                optimizers[0].zero_grad()
            with step(windows[1], i == 3):
                d.requires_grad_(False)
                discriminate(d, fake, 0).backward()
                d.requires_grad_(True)
        found.append(gradients(g) | {k: v.detach() for k, v in d.named_parameters()})
    assert difference(*found) < 1e-11


# -- weights that are perturbed, looked through and restored ---------------------------------------------------------


def add(p: Tensor, by: Tensor) -> None:
    with torch.no_grad():
        p.add_(by)


def add_through_data(p: Tensor, by: Tensor) -> None:
    p.data.add_(by)


def assign_data(p: Tensor, by: Tensor) -> None:
    p.data = p.data + by


def copy_back(p: Tensor, kept: Tensor) -> None:
    with torch.no_grad():
        p.copy_(kept)


def copy_back_through_data(p: Tensor, kept: Tensor) -> None:
    p.data.copy_(kept)


def assign_back(p: Tensor, kept: Tensor) -> None:
    p.data = kept


@pytest.mark.parametrize("restore", [copy_back, copy_back_through_data, assign_back])
@pytest.mark.parametrize("perturb", [add, add_through_data, assign_data])
@pytest.mark.parametrize("clean_first", [True, False])
@pytest.mark.parametrize("spec", ["gn+ws", "gn+ws-af"])
def test_adversarial_weights(perturb: Any, restore: Any, clean_first: bool, spec: str) -> None:
    """AWP and FGM: perturb, forward and backward, restore; in every micro-step, before or behind the clean pass."""

    def run(model: Net, window: AccumulationWindow | None) -> None:
        generator = torch.Generator().manual_seed(7)
        for i, (x, y) in enumerate(batches(4)):
            with step(window, i == 3):
                if clean_first:
                    F.cross_entropy(model(x), y).backward()
                kept = {k: v.detach().clone() for k, v in model.named_parameters()}
                for v in model.parameters():
                    perturb(v, torch.randn(v.shape, generator=generator, dtype=v.dtype))
                F.cross_entropy(model(x), y).backward()
                for k, v in model.named_parameters():
                    restore(v, kept[k])
                if not clean_first:
                    F.cross_entropy(model(x), y).backward()

    assert both(run, spec) < 1e-11


def test_perturbed_around_a_whole_micro_step() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        data = batches(4)
        for i, (x, y) in enumerate(data):
            kept = {k: v.detach().clone() for k, v in model.named_parameters()}
            if i == 1:
                for v in model.parameters():
                    add(v, torch.full_like(v, 0.1))
            with step(window, i == 3):
                F.cross_entropy(model(x), y).backward()
            if i == 1:
                for k, v in model.named_parameters():
                    copy_back(v, kept[k])

    assert both(run) < 1e-12


def test_restored_only_roughly() -> None:
    """w + e - e is another weight; what has gathered for the first one has nowhere to go, and that is said."""
    model = net()
    window = AccumulationWindow(model)
    (x, y), *_ = batches(1)
    with window.micro_step(last=False):
        F.cross_entropy(model(x), y).backward()
        add(model.stem.weight, torch.full_like(model.stem.weight, 0.1))
        add(model.stem.weight, torch.full_like(model.stem.weight, -0.1))
    with pytest.raises(WindowError, match=r"'stem' changed inside an accumulation window"):
        window.begin(last=True)


def test_changed_between_a_forward_and_its_backward() -> None:
    """In the last micro-step, as autograd itself says it without a window."""
    for on in (True, False):
        model = net()
        window = AccumulationWindow(model) if on else None
        data = batches(2)
        with step(window, False):
            F.cross_entropy(model(data[0][0]), data[0][1]).backward()
        out = None

        def fail(model: Net = model, window: AccumulationWindow | None = window, data: Any = data) -> None:
            with step(window, True):
                out = F.cross_entropy(model(data[1][0]), data[1][1])
                add(model.stem.weight, torch.ones_like(model.stem.weight))
                out.backward()

        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            fail()
        assert out is None


# -- other weights for a call ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_functional_call(spec: str) -> None:
    """MAML: a step on the weights in a graph, and the loss behind it; both in every micro-step."""

    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                weights = dict(model.named_parameters())
                inner = F.cross_entropy(functional_call(model, weights, (x,)), y)
                slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True, allow_unused=True) if (
                    window is None or i == 2
                ) else None  # fmt: skip
                if slopes is None:  # the gradient of a held weight is not the weight's: the window says nothing of it
                    copied = {k: v.clone() for k, v in weights.items()}
                    inner = F.cross_entropy(functional_call(model, copied, (x,)), y)
                    slopes = torch.autograd.grad(inner, list(copied.values()), create_graph=True, allow_unused=True)
                fast = {k: w if s is None else w - 0.01 * s for (k, w), s in zip(weights.items(), slopes, strict=True)}
                F.cross_entropy(functional_call(model, fast, (x,)), y).backward()

    assert both(run, spec) < 1e-9


def test_swapped_weights_are_those_that_are_computed_with() -> None:
    model = net("none+ws-mo")
    window = AccumulationWindow(model)
    x = batches(1)[0][0]
    zeros = {k: torch.zeros_like(v) for k, v in model.named_parameters()}
    for last in (False, True):
        with window.micro_step(last):
            own = model(x)
            assert float(functional_call(model, zeros, (x,)).abs().max()) == 0
            own.sum().backward()


def test_function_transforms_inside_a_micro_step() -> None:
    """Per-sample gradients beside the ordinary backward."""
    model = net()
    window = AccumulationWindow(model)
    (x, y), *_ = batches(1)

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    detached = {k: v.detach() for k, v in model.named_parameters()}
    outside = vmap(grad(loss), (None, 0, 0))(detached, x, y)
    for last in (False, True):
        with window.micro_step(last):
            F.cross_entropy(model(x), y).backward()
            inside = vmap(grad(loss), (None, 0, 0))(detached, x, y)
        assert difference(inside, outside) < 1e-14
    assert difference({k: v.mean(0) * 2 for k, v in inside.items()}, gradients(model)) < 1e-9


# -- writes that leave no trace -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["between", "in the last micro-step"])
def test_one_bit_of_one_value_written_through_data(where: str) -> None:
    """Outside the sample that every use looks at."""
    model = net()
    window = AccumulationWindow(model)
    (x, y), *_ = batches(1)
    index = (5, 2, 1, 1)
    stamp_sample = model.stem.weight.detach().view(-1)[:: model.stem.weight.numel() // 64][:64]
    assert not bool((stamp_sample == model.stem.weight[index]).any())

    def run() -> None:
        with window.micro_step(last=False):
            F.cross_entropy(model(x), y).backward()
        if where == "between":
            write()
        with window.micro_step(last=True):
            if where != "between":
                write()
            F.cross_entropy(model(x), y).backward()

    def write() -> None:
        value = model.stem.weight.data[index]
        model.stem.weight.data[index] = torch.nextafter(value, torch.tensor(torch.inf, dtype=value.dtype))

    with pytest.raises(WindowError, match=r"'stem' was written .* leaves no trace \(through .data\)"):
        run()
    assert window.gathered == ()
    F.cross_entropy(model(x), y).backward()  # and nothing is held


@pytest.mark.parametrize("often", [True, False])
def test_a_momentum_teacher_in_the_same_module(often: bool) -> None:
    """MoCo, BYOL: a frozen copy that moves in every step, or micro-step, and is looked through with gradients on."""
    found = []
    for on in (True, False):
        student = net()
        pair = nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student).requires_grad_(False)})
        window = AccumulationWindow(pair) if on else None
        optimizer = SGD(student.parameters(), 0.05)
        for i, (x, _) in enumerate(batches(6)):
            last = i % 2 == 1
            with step(window, last):
                F.mse_loss(pair["student"](x), pair["teacher"](x.flip(-1))).backward()
            if last:
                optimizer.step()
                optimizer.zero_grad()
            for a, b in zip(pair["teacher"].parameters(), student.parameters(), strict=True):
                if often:
                    with torch.no_grad():
                        a.mul_(0.9).add_(b, alpha=0.1)
                elif last:  # which leaves no trace, but no window is open either
                    a.data.mul_(0.9).add_(b.data, alpha=0.1)
        found.append({k: v.detach() for k, v in pair.named_parameters()})
    assert difference(*found) < 1e-11


@pytest.mark.parametrize("frozen", ["weight", "weight_gain"])
def test_a_part_of_the_parameters_frozen_in_the_middle(frozen: str) -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(5)):
            getattr(model.stem, frozen).requires_grad_(i not in (1, 4))
            with step(window, i == 4):
                F.cross_entropy(model(x), y).backward()
        getattr(model.stem, frozen).requires_grad_(True)

    assert both(run, "gn+ws-af") < 1e-12


def test_a_loss_for_each_task() -> None:
    """GradNorm and its like: the last micro-step gives gradients of single losses with respect to shared weights."""
    found = []
    for on in (True, False):
        model = net()
        window = AccumulationWindow(model) if on else None
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                out = model(x)
                losses = [F.cross_entropy(out, y), out.square().mean()]
                if i == 2:
                    model.zero_grad()
                    if window is not None:
                        window.forget()
                    for loss in losses:
                        found.append(torch.autograd.grad(loss, model.stem.weight, retain_graph=True)[0])
                sum(losses).backward()
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])
