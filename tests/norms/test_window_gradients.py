"""An accumulation window where a network is compiled, or gradients are asked for in other ways than one backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from tests.norms.nets import OLD, Net, batches, both, difference, gradients, net, step
from tests.norms.test_window_loops import Generator, add, copy_back, discriminate
from wsbench.norms import AccumulationWindow, WindowError

# -- compiled -------------------------------------------------------------------------------------------------------


def compiled(spec: str = "gn+ws") -> Net:
    torch._dynamo.reset()
    model = net(spec)
    model.compile()
    return model


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="compiled by torch 2.8 a layer standardizes by itself, so there is nothing to see")
def test_a_change_that_a_compiled_network_cannot_see_is_an_error() -> None:
    model = compiled()
    window = AccumulationWindow(model, simple_loop=True)
    (x, y), *_ = batches(1)

    def perturbed() -> None:
        with window.micro_step(last=False):
            F.cross_entropy(model(x), y).backward()
            kept = model.stem.weight.detach().clone()
            add(model.stem.weight, torch.ones_like(kept))
            F.cross_entropy(model(x), y).backward()
            copy_back(model.stem.weight, kept)

    with pytest.raises(WindowError, match=r"'stem' changed inside a micro-step in which it ran compiled"):
        perturbed()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["perturbed", "swapped"])
def test_by_default_a_compiled_network_is_right_in_any_loop(change: str) -> None:
    found = []
    for model, on in ((compiled(), True), (net(), False)):
        window = AccumulationWindow(model) if on else None
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                F.cross_entropy(model(x), y).backward()
                if change == "swapped":
                    other = {k: v * 1.5 + 0.1 for k, v in model.named_parameters()}
                    F.cross_entropy(functional_call(model, other, (x,)), y).backward()
                    continue
                kept = {k: v.data for k, v in model.named_parameters()}
                for v in model.parameters():
                    v.data = v.data + 0.1 * v.data.flip(0)
                F.cross_entropy(model(x), y).backward()
                for k, v in model.named_parameters():
                    v.data = kept[k]
        found.append(gradients(model))
    assert difference(*found) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["everything", "weight", "weight_gain"])
def test_frozen_for_a_pass_when_compiled(frozen: str) -> None:
    """requires_grad is looked at in compiled code as well."""
    found = []
    for model in (compiled("gn+ws-af"), net("gn+ws-af")):
        window = AccumulationWindow(model, simple_loop=True)
        parts = [p for n, p in model.named_parameters() if frozen == "everything" or n.endswith(f".{frozen}")]
        for i, (x, y) in enumerate(batches(3)):
            with window.micro_step(last=i == 2):
                F.cross_entropy(model(x), y).backward()
                for p in parts:
                    p.requires_grad_(False)
                F.cross_entropy(model(x.requires_grad_()), y).backward()
                for p in parts:
                    p.requires_grad_(True)
        found.append(gradients(model))
    assert difference(*found) < 1e-8


# -- gradients that are asked for in other ways ----------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["gn+ws", "gn+wn", "gn+ws-af"])
@pytest.mark.parametrize("when", [0, 1, 2])
def test_gradients_of_weights_by_autograd_grad(when: int, spec: str) -> None:
    """In any micro-step, beside the backward; a penalty on them, too. They hold what this loss gives, and no more."""
    logged: list[dict[str, Tensor]] = []

    def run(model: Net, window: AccumulationWindow | None) -> None:
        names, parameters = zip(*model.named_parameters(), strict=True)
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                loss = F.cross_entropy(model(x), y)
                if i == when:
                    found = torch.autograd.grad(loss, parameters, create_graph=True)
                    logged.append({n: g.detach() for n, g in zip(names, found, strict=True)})
                    loss = loss + sum(g.square().sum() for g in found)
                loss.backward()

    assert both(run, spec) < 1e-10
    assert difference(*logged) < 1e-11


@pytest.mark.parametrize("when", [0, 2])
def test_a_backward_with_inputs(when: int) -> None:
    """The usual form of a generator's step, without freezing the discriminator."""
    found = []
    for on in (True, False):
        torch.manual_seed(5)
        pair = nn.ModuleDict({"d": net(), "g": Generator()})
        window = AccumulationWindow(pair) if on else None
        for i, (x, _) in enumerate(batches(3)):
            with step(window, i == 2):
                fake = pair["g"](x)
                discriminate(pair["d"], fake, 0).backward(inputs=list(pair["g"].parameters()), retain_graph=i == when)
                if i == when:
                    discriminate(pair["d"], fake.detach(), 1).backward(inputs=list(pair["d"].parameters()))
        found.append(gradients(pair))
    assert difference(*found) < 1e-11


def test_frozen_between_a_forward_and_its_backward() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                loss = F.cross_entropy(model(x), y)
                model.stem.requires_grad_(i != 1)
                loss.backward()
                model.requires_grad_(True)

    assert both(run) < 1e-12


def test_backwards_that_come_later() -> None:
    """One for several micro-steps, behind the window's end; and one in the next micro-step."""

    def summed(model: Net, window: AccumulationWindow | None) -> None:
        losses = []
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                losses.append(F.cross_entropy(model(x), y))
        torch.stack(losses).sum().backward()

    def next_one(model: Net, window: AccumulationWindow | None) -> None:
        waiting = None
        for i, (x, y) in enumerate(batches(4)):
            with step(window, i == 3):
                loss = F.cross_entropy(model(x), y)
                if waiting is not None:
                    waiting.backward()
                waiting = loss
        waiting.backward()

    assert both(summed) < 1e-12
    assert both(next_one) < 1e-12


def test_flushed_while_a_graph_is_in_flight() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        for i, (x, y) in enumerate(batches(4)):
            with step(window, i == 3):
                first, second = F.cross_entropy(model(x), y), model(x).square().mean()
                first.backward()
                if window is not None:
                    window.flush()
                second.backward()

    assert both(run) < 1e-12


@pytest.mark.parametrize("every", [True, False])
def test_hessian_vector_products_of_the_gradients(every: bool) -> None:
    """AdaHessian: .grad with a graph, of the last micro-step or of all, and its product with a vector."""
    found = []
    for on in (True, False):
        model = net()
        window = AccumulationWindow(model) if on else None
        for i, (x, y) in enumerate(batches(3)):
            with step(window, i == 2):
                F.cross_entropy(model(x), y).backward(create_graph=every or i == 2)
        names, parameters = zip(*((n, p) for n, p in model.named_parameters()), strict=True)
        torch.manual_seed(2)
        vectors = [torch.randint(0, 2, p.shape).double() * 2 - 1 for p in parameters]
        products = torch.autograd.grad([p.grad for p in parameters], parameters, vectors)
        found.append(dict(zip(names, (p.detach() for p in products), strict=True)))
    assert difference(*found) < 1e-9


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_that_steps_inside_the_last_micro_step(fused: bool) -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        optimizer = SGD(model.parameters(), 0.05, fused=fused)
        for s in range(3):
            for i, (x, y) in enumerate(batches(3, seed=s)):
                with step(window, i == 2):
                    F.cross_entropy(model(x), y).backward()
                    if i == 2:
                        optimizer.step()
            if s < 2:
                optimizer.zero_grad()

    assert both(run) < 1e-10


def test_a_window_that_is_replaced_while_it_is_open() -> None:
    """One for each epoch, whose length is no multiple of a window's: gradients go on accumulating."""

    def run(model: Net, window: AccumulationWindow | None) -> None:
        count = 0
        for epoch in range(3):
            window = None if window is None else AccumulationWindow(model)
            for x, y in batches(2, seed=epoch):
                count += 1
                with step(window, count % 3 == 0):
                    F.cross_entropy(model(x), y).backward()

    assert both(run) < 1e-12


def test_written_in_ways_that_keep_sums() -> None:
    """Signs that flip and channels that change places."""

    def flip(w: Tensor) -> None:
        w.data[:, 1:3].neg_()

    def swap(w: Tensor) -> None:
        w.data[:, [1, 2]] = w.data[:, [2, 1]]

    for write in (flip, swap):
        model = net()
        window = AccumulationWindow(model)
        one = next(s for s in window.layers if s.name == "stem")
        (x, y), *_ = batches(1)
        window.begin(last=False)
        F.cross_entropy(model(x), y).backward()
        assert not bool(one.differs())
        write(model.stem.weight)
        assert bool(one.differs())
        with pytest.raises(WindowError, match="'stem'"):
            finish(window, model, x, y)


def finish(window: AccumulationWindow, model: Net, x: Tensor, y: Tensor) -> None:
    with window.micro_step(last=True):
        F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize("when", ["flush", "step", "end"])
def test_autocast_that_ends_before_the_window(when: str) -> None:
    """The comparison of weights does not depend on where it runs."""
    model = net(dtype=torch.float32)
    window = AccumulationWindow(model)
    optimizer = SGD(model.parameters(), 0.1)
    for last in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            window.begin(last)
            loss = F.cross_entropy(model(batches(1)[0][0].float()).float(), batches(1)[0][1])
        loss.backward()
        if when == "flush":
            window.flush()
    if when == "step":
        optimizer.step()
    window.end()
    assert not any(one.is_open for one in window.layers)


def test_a_micro_step_in_inference_mode() -> None:
    def run(model: Net, window: AccumulationWindow | None) -> None:
        data = batches(3)
        with torch.inference_mode(), step(window, False):
            model(data[0][0])
        for i, (x, y) in enumerate(data):
            with step(window, i == 2):
                F.cross_entropy(model(x), y).backward()

    assert both(run) < 1e-12
