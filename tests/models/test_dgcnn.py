"""DGCNN: without edges against with edges, neighbours against brute force, the published sizes."""

import copy

import pytest
import torch
from torch import nn

from wsbench.models.dgcnn import DGCNN, EdgeConv, gather_neighbours
from wsbench.models.edges import linear_on_edges, nearest_neighbours, neighbour_maximum_and_sum
from wsbench.norms import GroupNorm, normalize

SPECS = (
    "bn",
    "gn16",
    "gn8+ws",
    "ln",
    "in",
    "sn+ws",
    "none",
    "bn+wn",
    "gn16+ws-af",
    "brn",
    "bcn8+ws",
    "bcn8@estimate",
    "syncbn",
    "evos8",
    "frn",
)


def network(form: str, norm: str) -> DGCNN:
    """A small one in float64 without dropout, with affine parameters of both signs."""
    torch.manual_seed(1)
    net = DGCNN(form, num_classes=7, k=5, dropout=0.0, width=0.5).double()  # type: ignore[arg-type]
    if net.transform is not None:
        nn.init.normal_(net.transform.transform.weight, std=0.02)
    with net.hold_edges():
        normalize(net, norm, torch.randn(2, 16, 3, dtype=torch.double))
    for name, p in net.named_parameters():
        if "norm" in name and p.dim() == 1:
            nn.init.normal_(p)
    return net


@pytest.mark.parametrize("norm", SPECS)
@pytest.mark.parametrize("form", ["dgcnn_tf", "dgcnn"])
def test_without_edges_equals_with_edges(form: str, norm: str) -> None:
    """Logits, every gradient, and BN's running statistics, in training and then in evaluation."""
    ours = network(form, norm)
    direct = copy.deepcopy(ours)
    clouds = torch.randn(4, 40, 3, dtype=torch.double)
    target = torch.randn(4, 7, dtype=torch.double)
    for net in (ours, direct):
        net.zero_grad()
        if net is direct:
            with net.hold_edges():
                out = net(clouds)
        else:
            out = net(clouds)
        (out * target).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), direct.parameters(), strict=True):
        if q.grad is not None and float(q.grad.abs().max()) > 1e-9:
            error = float((p.grad - q.grad).abs().max() / q.grad.abs().max())  # type: ignore[operator]
            assert error < 1e-10, name
    for (name, b), c in zip(ours.named_buffers(), direct.buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-11, msg=name)
    ours.eval(), direct.eval()
    with direct.hold_edges():
        torch.testing.assert_close(ours(clouds), direct(clouds), rtol=1e-9, atol=1e-10)


def test_a_norm_without_moments_is_computed_on_edges() -> None:
    layer = EdgeConv(3, 8, 4, 0.0, False, False).double()
    layer.norm = nn.BatchNorm2d(8).double()
    points = torch.randn(2, 12, 3, dtype=torch.double)
    features = layer.edge_features(points, nearest_neighbours(points, 4))
    torch.testing.assert_close(layer(points), torch.relu(layer.norm(layer.conv(features))).amax(3).transpose(1, 2))


def test_edge_feature_order() -> None:
    """[x_i, x_j - x_i] in the TensorFlow form, [x_j - x_i, x_i] in the PyTorch form."""
    points = torch.randn(1, 6, 3)
    graph = nearest_neighbours(points, 2)
    tf, torch_form = (EdgeConv(3, 4, 2, 0.0, False, order).edge_features(points, graph) for order in (False, True))
    i, t = 4, 1
    x_i, x_j = points[0, i], points[0, graph[0, i, t]]
    torch.testing.assert_close(tf[0, :, i, t], torch.cat([x_i, x_j - x_i]))
    torch.testing.assert_close(torch_form[0, :, i, t], torch.cat([x_j - x_i, x_i]))


@pytest.mark.parametrize(("count", "k"), [(64, 5), (63, 5), (1024, 20), (160, 20), (20, 20)])
def test_nearest_neighbours_are_those_of_brute_force(count: int, k: int) -> None:
    points = torch.randn(2, count, 6, dtype=torch.double)
    expected = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False).indices
    graph = nearest_neighbours(points, k)
    torch.testing.assert_close(graph.sort(2).values, expected.sort(2).values)
    assert bool((graph == torch.arange(count)[None, :, None]).any(2).all()), "each point is its own neighbour"


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="4 points have no 5 nearest neighbours"):
        nearest_neighbours(torch.randn(1, 4, 3), 5)


def test_neighbour_reductions_against_gathering() -> None:
    values = torch.randn(3, 20, 4, dtype=torch.double, requires_grad=True)
    graph = torch.stack([torch.stack([torch.randperm(20)[:6] for _ in range(20)]) for _ in range(3)])
    maximum, total = neighbour_maximum_and_sum(values, graph)
    gathered = gather_neighbours(values, graph)
    weights = torch.randn(2, 3, 20, 4, dtype=torch.double)
    ours = torch.autograd.grad((maximum * weights[0] + total * weights[1]).sum(), values)[0]
    expected = torch.autograd.grad((gathered.amax(2) * weights[0] + gathered.sum(2) * weights[1]).sum(), values)[0]
    torch.testing.assert_close(maximum, gathered.amax(2))
    torch.testing.assert_close(total, gathered.sum(2))
    torch.testing.assert_close(ours, expected)


def test_equal_neighbours_give_the_maximum_one_gradient() -> None:
    values = torch.ones(1, 4, 1, requires_grad=True)
    maximum, _ = neighbour_maximum_and_sum(values, torch.tensor([[[0, 1], [0, 1], [2, 3], [2, 3]]]))
    assert torch.autograd.grad(maximum.sum(), values)[0].flatten().tolist() == [2, 0, 2, 0]


def test_linear_on_edges_gradcheck() -> None:
    torch.manual_seed(0)
    u, v = (torch.randn(2, 6, 3, dtype=torch.double, requires_grad=True) for _ in range(2))
    weight = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    graph, sign = torch.randint(0, 6, (2, 6, 3)), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda *x: linear_on_edges(*x[:2], graph, x[2], sign), (u, v, weight))


@pytest.mark.parametrize(("form", "parameters", "weight"), [("dgcnn_tf", 1_836_081, 12), ("dgcnn", 1_809_576, 7)])
def test_published_sizes_and_standardized_layers(form: str, parameters: int, weight: int) -> None:
    net = DGCNN(form)  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) == parameters
    if net.transform is not None:
        assert sum(p.numel() for p in net.transform.parameters()) == 803_273
    with net.hold_edges():
        report = normalize(net, "gn16+ws", torch.zeros(2, 32, 3))
    assert report.counts() == {"activation": weight, "weight": weight, "kept": 0, "plain": 1 + (form == "dgcnn_tf")}
    assert "classifier" in report.plain


def test_the_t_net_starts_at_the_identity() -> None:
    net = DGCNN("dgcnn_tf", k=4)
    assert net.transform is not None
    clouds = torch.randn(2, 16, 3)
    torch.testing.assert_close(net.transform(clouds, nearest_neighbours(clouds, 4)), torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize("form", ["dgcnn_tf", "dgcnn"])
def test_the_order_of_points_does_not_matter(form: str) -> None:
    net = network(form, "gn16+ws")
    clouds = torch.randn(2, 40, 3, dtype=torch.double)
    torch.testing.assert_close(net(clouds), net(clouds[:, torch.randperm(40)]))


def test_tensorflow_groups_are_interleaved() -> None:
    """The authors' GN has channel c in group c mod G: torch's after a permutation of channels, and not before."""
    channels, groups = 32, 8
    x = torch.randn(3, channels, 10, dtype=torch.double)
    split = x.view(3, channels // groups, groups, 10)
    mean, var = split.mean((1, 3), keepdim=True), split.var((1, 3), correction=0, keepdim=True)
    tensorflow = ((split - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
    norm = GroupNorm(groups, channels).double()
    order = torch.arange(channels).view(channels // groups, groups).T.flatten()
    torch.testing.assert_close(norm(x[:, order])[:, order.argsort()], tensorflow)
    assert float((norm(x) - tensorflow).detach().abs().max()) > 0.1


def test_unknown_form() -> None:
    with pytest.raises(ValueError, match="unknown form 'pointnet' of DGCNN; choose from dgcnn_tf, dgcnn"):
        DGCNN("pointnet")  # type: ignore[arg-type]
