"""Layers of one fan-in as one matrix: every case against the same loop without a window."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.timing import Kernels
from tests.norms.nets import SPECS, Net, accumulate, batches, difference, gradients, net, step
from wsbench.norms import AccumulationWindow, NormalizedLayer, WindowError, normalize
from wsbench.norms.layers import normalized
from wsbench.norms.stamp import Stamp, row_sums
from wsbench.norms.weight import WeightStandardization


def together(model: nn.Module) -> AccumulationWindow:
    return AccumulationWindow(model, simple_loop=True, together=True)


def compare(change: Callable[[Net], object], spec: str = "gn+ws", n: int = 3) -> float:
    """The difference of gradients with and without, in a network that was changed before."""
    found = []
    for on in (True, False):
        model = net(spec)
        change(model)
        accumulate(model, batches(n), together(model) if on else None)
        found.append(gradients(model))
    return difference(*found)


@pytest.mark.parametrize("spec", [*SPECS, "gn+cwn", "gn+sws", "gn+sws@timm"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_gradients(spec: str, n: int) -> None:
    assert compare(lambda model: None, spec, n) < 1e-12


def frozen(model: Net) -> None:
    model.stem.weight.requires_grad_(False)


def unused(model: Net) -> None:
    model.use_maybe = False


def channels_last(model: Net) -> None:
    model.to(memory_format=torch.channels_last)


def tied(model: Net) -> None:
    model.maybe = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False).double()
    normalize(model, "gn+ws", example=torch.zeros(1, 3, 8, 8, dtype=torch.double))
    model.maybe.weight = model.twice.weight


def checkpointing(model: Net) -> None:
    model.checkpointing = True


@pytest.mark.parametrize("change", [frozen, unused, channels_last, tied, checkpointing])
def test_gradients_of_a_network_that_is(change: Callable[[Net], object]) -> None:
    assert compare(change) < 1e-12
    model = net()
    change(model)
    accumulate(model, batches(2), together(model))
    assert (model.stem.weight.grad is None) == (change is frozen)
    assert (model.maybe.weight.grad is None) == (change is unused)


def test_weights_after_several_steps() -> None:
    results = []
    for on in (True, False):
        model = net()
        window = together(model) if on else None
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
        for number in range(3):
            accumulate(model, batches(2 + number, seed=number), window)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.detach().clone() for p in model.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_half_precision_gathers_in_float32() -> None:
    found = []
    for on in (True, False):
        model = net(dtype=torch.float32)
        window = together(model) if on else None
        for i, (x, y) in enumerate(batches(4, dtype=torch.float32)):
            with torch.autocast("cpu", torch.bfloat16):
                if window is not None:
                    window.begin(i == 3)
                loss = F.cross_entropy(model(x), y) / 4
            loss.backward()
            if window is not None:
                window.end()
        found.append(gradients(model))
    assert difference(*found) < 0.05


def test_a_weight_that_is_loaded_between_two_windows_is_seen() -> None:
    other = {name: value + 0.1 for name, value in net().state_dict().items() if value.is_floating_point()}
    found = []
    for on in (True, False):
        model = net()
        window = together(model) if on else None
        accumulate(model, batches(2), window)
        model.zero_grad()
        model.load_state_dict(other, strict=False)
        accumulate(model, batches(2), window)
        found.append(gradients(model))
    assert difference(*found) < 1e-12


def swapped(weight: Tensor) -> None:
    weight.data[0, 0, 0, 0], weight.data[0, 0, 0, 1] = weight[0, 0, 0, 1].item(), weight[0, 0, 0, 0].item()


def two_signs(weight: Tensor) -> None:
    weight.data[1, 0, 0, :2] *= -1


def last_bit(weight: Tensor) -> None:
    weight.data[2, 0, 2, 2] = torch.nextafter(weight[2, 0, 2, 2].detach(), torch.tensor(9.0, dtype=weight.dtype))


@pytest.mark.parametrize("write", [swapped, two_signs, last_bit])
@pytest.mark.parametrize("layer", ["stem", "twice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_write_without_a_trace_is_refused_by_name(
    write: Callable[[Tensor], None], layer: str, dtype: torch.dtype
) -> None:
    model = net(dtype=dtype)
    window = together(model)
    (x, y), (x2, y2) = batches(2, dtype=dtype)
    with window.micro_step(last=False):
        F.cross_entropy(model(x), y).backward()
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    for stamp in (stamp for one in window.layers for stamp in one.stamps):
        stamp.probe = None  # as on a GPU, where no use looks at values
    write(weight)
    with (
        pytest.raises(WindowError, match=f"the weight of '{layer}' was written inside an accumulation window"),
        window.micro_step(last=True),
    ):
        F.cross_entropy(model(x2), y2).backward()
    assert all(p.grad is None or not layer.startswith(n) for n, p in model.named_parameters())


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("signs", [[1, -1, -1, 1], [1, -1, -1, 1, -1, 1, 1, -1]])
def test_values_exchanged_in_a_pattern_are_seen(joined: bool, signs: list[int]) -> None:
    model = nn.Sequential(normalized(nn.Conv2d(16, 8, 3), "none+ws"))
    row = torch.tensor([-0.2 + 0.5 * sign for sign in signs])
    other = torch.tensor([-0.2 - 0.5 * sign for sign in signs])
    weight = model[0].weight
    with torch.no_grad():
        weight.view(8, -1)[0, : len(signs)] = row
    window = AccumulationWindow(model, simple_loop=True, together=joined)
    with window.micro_step(last=False):
        model(torch.randn(1, 16, 4, 4)).sum().backward()
    for stamp in (stamp for one in window.layers for stamp in one.stamps):
        stamp.probe = None
    weight.data.view(8, -1)[0, : len(signs)] = other
    with pytest.raises(WindowError, match="written inside"), window.micro_step(last=True):
        model(torch.randn(1, 16, 4, 4)).sum().backward()


def test_a_memory_format_that_changes_is_no_change() -> None:
    found = []
    for on in (True, False):
        model = net()
        window = together(model) if on else None
        for i, (x, y) in enumerate(batches(3)):
            if i == 1:
                model.to(memory_format=torch.channels_last)
            if i == 2:
                model.to(memory_format=torch.contiguous_format)
            with step(window, i == 2):
                F.cross_entropy(model(x), y).backward()
        found.append(gradients(model))
    assert difference(*found) < 1e-12


def test_a_weight_that_something_else_computes_by_now_is_named() -> None:
    model = nn.Sequential(normalized(nn.Conv2d(3, 8, 3), "none+ws"))
    window = together(model)
    prune.random_unstructured(model[0], "weight", 0.5)
    with pytest.raises(WindowError, match="the weight of '0' is computed by"):
        window.begin(last=False)


def test_spectral_normalization_without_accumulation_moves_as_without_a_window() -> None:
    assert compare(lambda model: None, "gn+spectral", 1) < 1e-12


def test_sums_do_not_depend_on_what_stands_beside() -> None:
    rows = torch.randn(7, 144)
    alone, beside = torch.empty(2, 7, dtype=torch.int64), torch.empty(2, 12, dtype=torch.int64)
    row_sums(rows, alone)
    row_sums(torch.cat((torch.randn(5, 144), rows)), beside)
    assert torch.equal(alone, beside[:, 5:])


class OfAllRows(WeightStandardization):
    """Not row by row: what it inherits says nothing about it."""

    def effective(self, rows: Tensor, **extra: Tensor) -> Tensor:
        return rows / rows.norm()


def test_a_method_that_says_nothing_of_rows_is_computed_by_itself() -> None:
    def change(model: Net) -> None:
        for layer in model.modules():
            if isinstance(layer, NormalizedLayer):
                layer.method = OfAllRows(layer.spec)

    assert compare(change) < 1e-12


def test_it_takes_a_simple_loop() -> None:
    with pytest.raises(WindowError, match="simple_loop=True"):
        AccumulationWindow(net(), together=True)


def test_on_a_cpu_layers_are_computed_one_by_one() -> None:
    model = net()
    window = AccumulationWindow(model, simple_loop=True)
    window.begin(last=False)
    assert all(type(one.stamps[0]) is Stamp for one in window.layers)
    window.close()


def test_kernels_do_not_grow_with_layers() -> None:
    counts = []
    for layers in (4, 4, 12):  # the first makes constants
        model = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(layers)))
        for i in range(layers):
            model[i] = nn.Sequential(model[i], nn.GroupNorm(2, 8))
        normalize(model, "gn+ws", example=torch.zeros(1, 8, 32, 32))
        window = together(model)
        with Kernels() as opening:
            window.begin(last=False)
        model(torch.randn(1, 8, 32, 32)).sum().backward()
        window.end()
        window.begin(last=True)
        model(torch.randn(1, 8, 32, 32)).sum().backward()
        with Kernels() as ending:
            window.end(look_later=True)
        counts.append((opening.count, ending.count))
    assert counts[1] == counts[2]
    assert counts[1][0] <= 10
    assert counts[1][1] <= 17
