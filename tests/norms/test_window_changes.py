"""The accumulation window when weights change, optimizers step or gradients are zeroed in its middle."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from tests.norms.nets import Net, batches, both, difference, net, step
from wsbench.norms import AccumulationWindow, NormalizedLayer, WindowError

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
    if not last:
        window.begin(last)
        assert torch.equal(model(batches(1)[0][0]), fresh_output(model, batches(1)[0][0])), "each use by what is there"
    with pytest.raises(WindowError, match=r"'stem' changed inside .* call flush\(\)"):
        window.begin(last=True)
    x = batches(1)[0][0]
    assert torch.equal(model(x), fresh_output(model, x)), "and the window is closed"


def fail_after_changing(model: Net) -> None:
    with torch.no_grad():
        model.stem.weight.mul_(2)
    raise ArithmeticError


def test_failed_after_gradients_had_gathered() -> None:
    """What cannot be put right is said; an error of the user's own stays the one that is raised."""
    model, window = middle_of_a_window()
    with pytest.raises(ArithmeticError) as caught, window.micro_step(last=False):
        fail_after_changing(model)
    assert "the gradients of this accumulation window are lost: the weight of 'stem'" in caught.value.__notes__[0]
    assert not window.layers[0].is_open


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
        assert "window" in model.stem.attached
        if not forgotten:
            window.close()
        del window
        gc.collect()
        assert len(hooks) == count
        assert not any("window" in m.attached for m in model.modules() if isinstance(m, NormalizedLayer))
