"""DGCNN for point-cloud classification: the paper's TensorFlow form and the later PyTorch form.

Sources: WangYueFt/dgcnn @ 29948ad (TensorFlow; csrhddlam/dgcnn changes only its norms) and @ f765b46 (PyTorch).
Edge convolutions run on points (see ``edges.py``); ``direct=True`` holds every edge, as the published codes do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsbench.models.edges import edge_moments, linear_on_edges, nearest_neighbours, neighbour_maximum_and_sum
from wsbench.norms import effective_weight

DGCNN_FORMS = ("dgcnn_tf", "dgcnn")


def gather_neighbours(points: Tensor, graph: Tensor) -> Tensor:
    """(B, N, C) and (B, N, k) to (B, N, k, C)."""
    batch = torch.arange(points.shape[0], device=points.device).view(-1, 1, 1)
    return points[batch, graph]


def _on_points(norm: nn.Module, maximum: Tensor, mean: Tensor, var: Tensor, count: int) -> Tensor:
    """Normalize ``maximum`` (B, N, C), part of a feature of these moments (B, C) over ``count`` values a sample."""
    wide = torch.promote_types(mean.dtype, torch.float32)
    scale, shift = cast(Any, norm).from_moments(mean.to(wide), var.to(wide), count)
    return torch.addcmul(shift[:, None].to(maximum.dtype), maximum, scale[:, None].to(maximum.dtype))


def _sign(norm: nn.Module, channels: int, like: Tensor) -> Tensor:
    """1 where a normalization keeps the order of a channel's values, -1 where it turns it round."""
    gain = getattr(norm, "signed_gain", None)
    weight = getattr(norm, "weight", None) if gain is None else gain()
    if weight is None:
        return like.new_ones(channels)
    return torch.where(weight.detach() < 0, -1.0, 1.0).to(like.dtype)


def _without_edges(norm: nn.Module) -> bool:
    """Whether a normalization can be applied to a feature that is not at hand."""
    return hasattr(norm, "from_moments")


def maximum_over_points(norm: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """activation(norm(x)).amax(2) of x (B, C, N); norms that have ``from_moments`` keep or turn round the order."""
    if not _without_edges(norm):
        return cast(Tensor, activation(norm(x))).amax(2)
    sign = _sign(norm, x.shape[1], x)
    if x.device.type == "cpu" and not (sign < 0).any():  # on a GPU the host would have to wait for the answer
        maximum = x.amax(2)
    else:
        maximum = torch.where(sign > 0, x.amax(2), x.amin(2))
    var, mean = torch.var_mean(x, dim=2, correction=0)
    return cast(Tensor, activation(_on_points(norm, maximum[:, None], mean, var, x.shape[2]))).squeeze(1)


class EdgeConv(nn.Module):
    """1x1 convolution of edge features, normalization, activation, maximum over the k nearest neighbours.

    A normalization without ``from_moments`` makes it compute on edges.

    Args:
        inputs: channels in.
        outputs: channels out.
        k: neighbours, the point itself included.
        slope: of LeakyReLU below zero; 0 is ReLU.
        bias: of the convolution.
        difference_first: the edge feature is [x_j - x_i, x_i] (PyTorch form) instead of [x_i, x_j - x_i].
    """

    def __init__(self, inputs: int, outputs: int, k: int, slope: float, bias: bool, difference_first: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * inputs, outputs, 1, bias=bias)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.activation: nn.Module = nn.LeakyReLU(slope) if slope else nn.ReLU()
        self.k, self.difference_first, self.direct = k, difference_first, False

    def edge_features(self, points: Tensor, graph: Tensor) -> Tensor:
        """(B, 2 C, N, k)."""
        centre = points[:, :, None].expand(-1, -1, self.k, -1)
        difference = gather_neighbours(points, graph) - centre
        parts = (difference, centre) if self.difference_first else (centre, difference)
        return torch.cat(parts, -1).permute(0, 3, 1, 2)

    def split(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """A and b (B, N, O) with e_ij = a_j + b_i."""
        weight = effective_weight(self.conv).flatten(1)
        first, second = weight.chunk(2, dim=1)
        difference, centre = (first, second) if self.difference_first else (second, first)
        return F.linear(points, difference), F.linear(points, centre - difference, self.conv.bias)

    def forward(self, points: Tensor, graph: Tensor | None = None) -> Tensor:
        """(B, N, C) to (B, N, outputs); the graph is that of the points themselves unless one is given."""
        graph = nearest_neighbours(points, self.k) if graph is None else graph
        if self.direct or not _without_edges(self.norm):
            edges = self.norm(self.conv(self.edge_features(points, graph)))
            return cast(Tensor, self.activation(edges)).amax(3).transpose(1, 2)
        a, b = self.split(points)
        sign = _sign(self.norm, a.shape[2], a)
        maximum, total = neighbour_maximum_and_sum(a * sign, graph)
        mean, var = edge_moments(a, b, graph, total * sign)
        out = _on_points(self.norm, torch.addcmul(b, maximum, sign), mean, var, graph.shape[1] * self.k)
        return cast(Tensor, self.activation(out))


class TransformNet(nn.Module):
    """The T-Net: a 3x3 matrix for each cloud from its edges, the identity at first.

    Edge convolution 64, another convolution on edges 128, maximum over neighbours, 1024, maximum over points, 512, 256.

    Args:
        k: neighbours.
        width: factor on all channels.
    """

    def __init__(self, k: int, width: float = 1.0) -> None:
        super().__init__()
        edge1, edge2, wide, fc1, fc2 = (round(c * width) for c in (64, 128, 1024, 512, 256))
        self.edge = EdgeConv(3, edge1, k, 0.0, bias=True, difference_first=False)
        self.conv2, self.norm2 = nn.Conv2d(edge1, edge2, 1), cast(nn.Module, nn.BatchNorm2d(edge2))
        self.conv3, self.norm3 = nn.Conv1d(edge2, wide, 1), cast(nn.Module, nn.BatchNorm1d(wide))
        self.fc1, self.norm_fc1 = nn.Linear(wide, fc1), cast(nn.Module, nn.BatchNorm1d(fc1))
        self.fc2, self.norm_fc2 = nn.Linear(fc1, fc2), cast(nn.Module, nn.BatchNorm1d(fc2))
        self.transform = nn.Linear(fc2, 9)
        self.relu: nn.Module = nn.ReLU()
        self.k = k

    def _edges_direct(self, points: Tensor, graph: Tensor) -> Tensor:
        x = self.edge.activation(self.edge.norm(self.edge.conv(self.edge.edge_features(points, graph))))
        return cast(Tensor, self.relu(self.norm2(self.conv2(x)))).amax(3).transpose(1, 2)

    def _edges(self, points: Tensor, graph: Tensor) -> Tensor:
        edges = points.shape[1] * self.k
        a, b = self.edge.split(points)
        _, total = neighbour_maximum_and_sum(a, graph)
        mean, var = edge_moments(a, b, graph, total)
        wide = torch.promote_types(mean.dtype, torch.float32)
        scale, shift = cast(Any, self.edge.norm).from_moments(mean.to(wide), var.to(wide), edges)
        scale, shift = scale[:, None].to(a.dtype), shift[:, None].to(a.dtype)
        weight = effective_weight(self.conv2).flatten(1)
        sign = _sign(self.norm2, len(weight), a)
        maximum, mean, var = linear_on_edges(a * scale, torch.addcmul(shift, b, scale), graph, weight.to(a.dtype), sign)
        bias = self.conv2.bias
        if bias is not None:
            maximum, mean = maximum + bias, mean + bias
        return cast(Tensor, self.relu(_on_points(self.norm2, maximum, mean, var, edges)))

    def forward(self, points: Tensor, graph: Tensor) -> Tensor:
        """(B, N, 3) to (B, 3, 3)."""
        held = self.edge.direct or not (_without_edges(self.edge.norm) and _without_edges(self.norm2))
        x = self._edges_direct(points, graph) if held else self._edges(points, graph)
        x = self.conv3(x.transpose(1, 2))
        x = self.relu(self.norm3(x)).amax(2) if held else maximum_over_points(self.norm3, self.relu, x)
        x = self.relu(self.norm_fc1(self.fc1(x)))
        x = self.relu(self.norm_fc2(self.fc2(x)))
        return cast(Tensor, self.transform(x)).view(-1, 3, 3)


class DGCNN(nn.Module):
    """Dynamic graph CNN (Wang et al. 2018).

    Args:
        form: ``dgcnn_tf``, the paper's (1,836,081 parameters for 40 classes), or ``dgcnn``, the PyTorch release
            (1,809,576).
        num_classes: classes.
        k: neighbours of a point.
        dropout: behind each of the two hidden linear layers.
        width: factor on all channels, for small networks.
    """

    def __init__(
        self,
        form: Literal["dgcnn_tf", "dgcnn"] = "dgcnn_tf",
        num_classes: int = 40,
        k: int = 20,
        dropout: float = 0.5,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if form not in DGCNN_FORMS:
            raise ValueError(f"unknown form '{form}' of DGCNN; choose from {', '.join(DGCNN_FORMS)}")
        self.form, self.k = form, k
        tf = form == "dgcnn_tf"
        slope = 0.0 if tf else 0.2
        self.activation: nn.Module = nn.LeakyReLU(slope) if slope else nn.ReLU()
        outputs = [round(c * width) for c in ((64, 64, 64, 128) if tf else (64, 64, 128, 256))]
        wide, fc1, fc2 = (round(c * width) for c in (1024, 512, 256))
        self.transform = TransformNet(k, width) if tf else None
        inputs = [3, *outputs[:-1]]
        self.edges = nn.ModuleList(
            EdgeConv(i, o, k, slope, bias=tf, difference_first=not tf) for i, o in zip(inputs, outputs, strict=True)
        )
        self.conv, self.norm = nn.Conv1d(sum(outputs), wide, 1, bias=tf), cast(nn.Module, nn.BatchNorm1d(wide))
        self.fc1 = nn.Linear(wide if tf else 2 * wide, fc1, bias=tf)
        self.norm1 = cast(nn.Module, nn.BatchNorm1d(fc1))
        self.fc2, self.norm2 = nn.Linear(fc1, fc2), cast(nn.Module, nn.BatchNorm1d(fc2))
        self.classifier = nn.Linear(fc2, num_classes)
        self.dropout = nn.Dropout(dropout)
        if tf:
            self._initialize_as_tensorflow()

    def _initialize_as_tensorflow(self) -> None:
        """Xavier uniform, no bias; the T-Net starts at the identity; BN's eps is 1e-3."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eps = 1e-3
        assert self.transform is not None
        nn.init.zeros_(self.transform.transform.weight)
        with torch.no_grad():
            self.transform.transform.bias.copy_(torch.eye(3).flatten())

    @contextmanager
    def hold_edges(self) -> Iterator[None]:
        """Compute on edges, as the published codes do: each convolution's output then goes into its normalization."""
        layers = [m for m in self.modules() if isinstance(m, EdgeConv)]
        before = [m.direct for m in layers]
        try:
            for m in layers:
                m.direct = True
            yield
        finally:
            for m, value in zip(layers, before, strict=True):
                m.direct = value

    def _graph(self, points: Tensor) -> Tensor:
        return nearest_neighbours(points, self.k)

    def forward(self, clouds: Tensor) -> Tensor:
        """Clouds (B, N, 3) to logits (B, num_classes)."""
        x = clouds
        if self.transform is not None:
            x = x @ self.transform(x, self._graph(x))
        features = []
        for edge in self.edges:
            x = edge(x, self._graph(x))
            features.append(x)
        x = self.conv(torch.cat(features, 2).transpose(1, 2))
        if self.transform is None:
            x = self.activation(self.norm(x))
            x = torch.cat([x.amax(2), x.mean(2)], 1)
        else:
            held = self.edges[0].direct
            x = self.activation(self.norm(x)).amax(2) if held else maximum_over_points(self.norm, self.activation, x)
        x = self.dropout(self.activation(self.norm1(self.fc1(x))))
        x = self.dropout(self.activation(self.norm2(self.fc2(x))))
        return cast(Tensor, self.classifier(x))
