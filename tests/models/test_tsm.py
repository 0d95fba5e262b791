"""The shift against its published form, where it is placed, and what the network is without it."""

import pytest
import torch
from torch import Tensor

from wsbench.models.resnet import resnet_features
from wsbench.models.tsm import TSM, TemporalShift, add_temporal_shift, temporal_shift
from wsbench.norms import NormalizedConv2d, normalize


def published(x: Tensor, segments: int, divisor: int = 8) -> Tensor:
    """The formula of the reference, by concatenation."""
    clips = x.view(-1, segments, *x.shape[1:])
    fold = x.shape[1] // divisor
    zero = torch.zeros_like(clips[:, :1])
    ahead = torch.cat([clips[:, 1:], zero], 1)
    back = torch.cat([zero, clips[:, :-1]], 1)
    return torch.cat([ahead[:, :, :fold], back[:, :, fold : 2 * fold], clips[:, :, 2 * fold :]], 2).view_as(x)


def test_by_hand() -> None:
    x = torch.arange(24.0).view(3, 8, 1, 1)
    rows = temporal_shift(x, 3).flatten(1).tolist()
    assert [row[:2] for row in rows] == [[8, 0], [16, 1], [0, 9]]
    assert [row[2:] for row in rows] == [list(range(2, 8)), list(range(10, 16)), list(range(18, 24))]


@pytest.mark.parametrize(("segments", "channels", "divisor"), [(8, 64, 8), (3, 20, 8), (1, 16, 4), (4, 6, 8)])
def test_forward_and_backward_are_the_published_ones(segments: int, channels: int, divisor: int) -> None:
    x = torch.randn(2 * segments, channels, 3, 5, requires_grad=True)
    weights = torch.randn_like(x)
    ours, theirs = temporal_shift(x, segments, divisor), published(x, segments, divisor)
    assert torch.equal(ours, theirs)
    grads = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs)]
    assert torch.equal(*grads)


def test_adjoint_and_second_derivative() -> None:
    x = torch.randn(6, 16, 2, 2, dtype=torch.double, requires_grad=True)
    y = torch.randn_like(x)
    (adjoint,) = torch.autograd.grad((temporal_shift(x, 3) * y).sum(), x)
    assert float((temporal_shift(x, 3) * y).sum()) == pytest.approx(float((x * adjoint).sum()))
    assert torch.autograd.gradgradcheck(lambda t: temporal_shift(t, 3).square(), x)


def test_parts_of_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="7 frames are no whole clips of 8"):
        temporal_shift(torch.zeros(7, 8, 1, 1), 8)


@pytest.mark.parametrize(("name", "count"), [("resnet50", 16), ("resnet101", 18), ("resnet_mini", 4)])
def test_placement(name: str, count: int) -> None:
    """Before conv1 of every block; of every second one where layer3 has 23."""
    with torch.device("meta"):
        network = resnet_features(name)
        names = add_temporal_shift(network, 8)
    assert len(names) == count
    modules = dict(network.named_modules())
    assert all(isinstance(modules[n], TemporalShift) for n in names)
    assert names[0] == "layer1.0.conv1"
    if name == "resnet101":
        assert [n for n in names if n.startswith("layer1")] == ["layer1.0.conv1", "layer1.2.conv1"]


def test_the_standardized_convolution_sits_inside() -> None:
    network = TSM("resnet_mini", 5, segments=2)
    report = normalize(network, "gn+ws", torch.zeros(1, 2, 3, 32, 32))
    assert "backbone.layer1.0.conv1.net" in report.weight_normalized
    assert isinstance(network.backbone.layer1[0].conv1.net, NormalizedConv2d)
    assert report.plain == ("classifier",)
    assert float(network.classifier.weight.std()) == pytest.approx(0.001, rel=0.2)


def test_without_the_shift_it_is_the_mean_over_frames() -> None:
    network = TSM("resnet_mini", 5, segments=4, shift=False, dropout=0.0).double()
    clips = torch.randn(2, 4, 3, 32, 32, dtype=torch.double)
    network.eval()
    frames = torch.stack([network.classifier(network.backbone(clips[:, t]).mean((2, 3))) for t in range(4)])
    torch.testing.assert_close(network(clips), frames.mean(0))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(network(clips[:, order]), network(clips))
    shifted = TSM("resnet_mini", 5, segments=4, dropout=0.0).double().eval()
    assert float((shifted(clips[:, order]) - shifted(clips)).detach().abs().max()) > 1e-6
