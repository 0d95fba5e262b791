"""A + B + R = ||g||^2 for every definition of standardization, and A, B, R against the paper's formulas."""

import pytest
import torch
from torch import Tensor, nn

from tests.norms.test_weight import LAYERS, filters
from wsbench.analysis import SharesError, aggregate, decompose
from wsbench.analysis.shares import ChannelShares
from wsbench.norms import NormalizedLayer, normalized

SPECS = ["gn+ws", "gn+ws-mo", "gn+ws-do", "gn+ws-af", "gn+ws@authors", "gn+ws@timm", "gn+ws@bit", "gn+ws-do@timm"]


def gradients(
    name: str, spec: str, scale: float = 1.0, dtype: torch.dtype = torch.double
) -> tuple[NormalizedLayer, Tensor, Tensor]:
    """A layer, and its gradients on Ŵ and on W of a random loss."""
    torch.manual_seed(0)
    layer = normalized(LAYERS[name]()[0].to(dtype), spec)
    assert isinstance(layer, NormalizedLayer)
    with torch.no_grad():
        layer.weight.mul_(scale)
        if layer.spec.variant == "af":
            layer.weight_gain.normal_()  # type: ignore[operator, union-attr]
    g = torch.randn_like(layer.weight)
    (gw,) = torch.autograd.grad(layer.effective_weight(), layer.weight, g)
    return layer, g, gw


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("spec", SPECS)
def test_the_parts_add_up_in_float64_also_where_eps_bites(spec: str, name: str, scale: float) -> None:
    shares = decompose(*gradients(name, spec, scale))
    assert shares.error < 1e-12
    assert bool((shares.parts >= 0).all())


@pytest.mark.parametrize("spec", SPECS)
def test_the_parts_add_up_in_float32(spec: str) -> None:
    assert 0 < decompose(*gradients("conv2d", spec, dtype=torch.float32)).error < 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_the_papers_formulas_at_eps_0(name: str) -> None:
    """A = <Ŵ, g>^2 / I, B = <1, g>^2 / I, R = sigma^2 ||dL/dW||^2, channel by channel."""
    torch.manual_seed(0)
    layer = normalized(LAYERS[name]()[0].double(), "gn+ws")
    assert isinstance(layer, NormalizedLayer)
    layer.method.eps = 0.0  # type: ignore[attr-defined]
    g = torch.randn_like(layer.weight)
    what = layer.effective_weight()
    (gw,) = torch.autograd.grad(what, layer.weight, g)
    shares = decompose(layer, g, gw)

    def rows(weight: Tensor) -> list[Tensor]:
        plain = layer.to_plain()
        plain.weight = nn.Parameter(weight.detach())
        return filters(plain)

    channels = zip(rows(layer.weight), rows(what), rows(g), rows(gw), strict=True)
    for o, (w, wh, go, gwo) in enumerate(channels):
        fan_in = len(w)
        expected = [(wh @ go) ** 2 / fan_in, go.sum() ** 2 / fan_in, w.var(correction=0) * (gwo @ gwo)]
        torch.testing.assert_close(shares.parts[:, o], torch.stack(expected).detach(), rtol=1e-10, atol=1e-13)
    assert shares.printed_error < 1e-12


def test_the_printed_formula_misses_for_the_unbiased_sigma() -> None:
    """||Ŵ||^2 is I - 1 there, so <Ŵ, g>^2 / I is too small by A / I."""
    layer, g, _ = gradients("conv2d", "gn+ws@authors")
    layer.method.eps = 0.0  # type: ignore[attr-defined]
    (gw,) = torch.autograd.grad(layer.effective_weight(), layer.weight, g)
    shares = decompose(layer, g, gw)
    missing = shares.parts[0] / layer.weight[0].numel()
    assert shares.printed_error > 1e-3 > 1e-12 > shares.error
    torch.testing.assert_close(shares.total - shares.printed, missing, rtol=1e-9, atol=1e-12)


def test_both_sigmas_take_out_the_same_shares() -> None:
    biased, unbiased = (decompose(*gradients("conv2d", spec)) for spec in ("gn+ws", "gn+ws@authors"))
    torch.testing.assert_close(biased.ratios, unbiased.ratios, rtol=1e-3, atol=1e-6)


def test_variants_take_out_what_they_are_named_for() -> None:
    mo, do, both = (decompose(*gradients("conv2d", spec)) for spec in ("gn+ws-mo", "gn+ws-do", "gn+ws"))
    assert bool((mo.parts[0] == 0).all() and (mo.parts[1] > 0).all())
    assert bool((do.parts[1] == 0).all() and (do.parts[0] > 0).all())
    torch.testing.assert_close(mo.parts[1], both.parts[1])


def test_a_gradient_that_lacks_a_micro_step_is_noticed() -> None:
    layer, g, gw = gradients("conv2d", "gn+ws")
    assert decompose(layer, 0.9 * g, gw).error > 0.1
    assert decompose(layer, g, 0.9 * gw).error > 0.1


def test_constant_filters_and_channels_without_gradient() -> None:
    torch.manual_seed(0)
    layer = normalized(nn.Conv2d(3, 4, 3).double(), "gn+ws")
    assert isinstance(layer, NormalizedLayer)
    with torch.no_grad():
        layer.weight[0] = 0.3
    g = torch.randn_like(layer.weight)
    g[1] = 0
    (gw,) = torch.autograd.grad(layer.effective_weight(), layer.weight, g)
    shares = decompose(layer, g, gw)
    assert shares.ratios.shape == (3, 3)
    assert shares.error < 1e-9
    assert float(shares.parts[0, 0]) < 1e-20


def _shares(parts: list[list[float]]) -> ChannelShares:
    values = torch.tensor(parts, dtype=torch.double).T
    one = torch.ones(values.shape[1], dtype=torch.double)
    return ChannelShares(values, values.sum(0), values.sum(0), one, one)


def test_both_aggregations_by_hand() -> None:
    """Two layers: channels (1, 2, 1) and (0, 0, 12); a single channel (0, 5, 5); and one without gradient."""
    layers = {"a": _shares([[1, 2, 1], [0, 0, 12]]), "b": _shares([[0, 5, 5]]), "c": _shares([[0, 0, 0]])}
    found = aggregate(layers)
    assert found.mean_of_ratios == pytest.approx(((0.25 / 2 + 0) / 2, (0.5 / 2 + 0.5) / 2, ((0.25 + 1) / 2 + 0.5) / 2))
    assert found.ratio_of_sums == pytest.approx((1 / 26, 7 / 26, 18 / 26))
    with pytest.raises(SharesError, match="no layer"):
        aggregate({"c": layers["c"]})


def test_what_is_refused() -> None:
    layer = normalized(nn.Conv2d(3, 4, 3), "gn+wn")
    assert isinstance(layer, NormalizedLayer)
    with pytest.raises(SharesError, match=r"'gn\+wn' is no weight standardization"):
        decompose(layer, layer.weight, layer.weight)
    layer = normalized(nn.Conv2d(3, 4, 3), "gn+ws")
    assert isinstance(layer, NormalizedLayer)
    with pytest.raises(SharesError, match=r"grad_weight is \(4, 3\), expected that of the weight \(4, 3, 3, 3\)"):
        decompose(layer, layer.weight, torch.zeros(4, 3))
