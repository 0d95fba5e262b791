"""Graph operations on point clouds that never hold what lives on edges.

A 1x1 convolution of the edge feature [x_i, x_j - x_i] is e_ij = a_j + b_i, with a = W_d x and b = (W_c - W_d) x + bias:
two linear maps of *points*. Its mean and variance over edges follow from the neighbours' sums of a, and behind an
affine normalization and a monotone activation the maximum over neighbours is that of a (the minimum where the
channel's scale is negative). So no tensor of N x k edges is needed, forward or backward.

Points are rows here: (B, N, C). ``graph`` is (B, N, k), the numbers of each point's neighbours.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsbench.norms.tracing import traced


def nearest_neighbours(points: Tensor, k: int) -> Tensor:
    """The k nearest points of each point, itself included, by Euclidean distance; in no particular order.

    Args:
        points: (B, N, C).
        k: at most N.

    Returns:
        (B, N, k) int64.

    Raises:
        ValueError: there are fewer than k points, or k is above 256.
    """
    if k > 256:
        raise ValueError(f"at most 256 neighbours, got {k}: their numbers are kept in a byte")
    if points.shape[1] < k:
        raise ValueError(f"{points.shape[1]} points have no {k} nearest neighbours; use more points or a smaller k")
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        points = points.detach().to(torch.promote_types(points.dtype, torch.float32))
        if traced():  # for any number of clouds
            nearness = 2 * points @ points.transpose(1, 2) - points.square().sum(2)[:, None]
            return nearness.topk(k, dim=2, sorted=False).indices
        graph = points.new_empty((*points.shape[:2], k), dtype=torch.int64)
        for cloud, out in zip(points, graph, strict=True):  # one N x N matrix at a time
            # |x_i|^2 is the same for all candidates of a point
            nearness = torch.addmm(cloud.square().sum(1)[None], cloud, cloud.T, beta=-1, alpha=2)
            out.copy_(_largest(nearness, k))
    return graph


def _largest(values: Tensor, k: int, chunk: int = 8) -> Tensor:
    """The places of the k largest values of each row.

    They lie in the k chunks of a row whose maxima are largest, so on a CPU two small selections replace a large one.
    """
    rows, columns = values.shape
    chunks = columns // chunk
    if values.device.type != "cpu" or columns % chunk or chunks < k:
        return values.topk(k, dim=1, sorted=False).indices
    # chunk c of a row is every column that is c modulo the number of chunks
    best = values.view(rows, chunk, chunks).amax(1).topk(k, dim=1, sorted=False).indices
    places = best[:, None, :] + torch.arange(0, columns, chunks, device=values.device)[None, :, None]
    places = places.view(rows, -1)
    return places.gather(1, values.gather(1, places).topk(k, dim=1, sorted=False).indices)


def _running_maximum(slices: Any) -> tuple[Tensor, Tensor]:
    """Maximum over equally shaped tensors that come one after the other, and the number (uint8) of the first one."""
    best: Tensor | None = None
    for number, values in enumerate(slices):
        if best is None:
            best, which = values.clone(), torch.zeros_like(values, dtype=torch.uint8)
            continue
        # the numbers grow, so their maximum is the last improvement; three byte-wide passes instead of a masked fill
        which = torch.maximum(which, torch.gt(values, best).to(torch.uint8).mul_(number))
        torch.maximum(best, values, out=best)
    assert best is not None
    return best, which


class _Reduce(torch.autograd.Function):
    """Maximum and sum over the neighbours of every row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        maximum, which = _running_maximum(rows.index_select(0, column) for column in graph.T)
        ctx.save_for_backward(graph, which)
        return maximum, F.embedding_bag(graph, rows, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_maximum: Tensor, grad_sum: Tensor) -> tuple[Tensor, None]:
        graph, which = ctx.saved_tensors
        grad = torch.zeros_like(grad_maximum).scatter_add_(0, graph.gather(1, which.long()), grad_maximum)
        for column in graph.T:
            grad.index_add_(0, column, grad_sum)
        return grad, None


def neighbour_maximum_and_sum(values: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and sum of the neighbours' values.

    Args:
        values: (B, N, C).
        graph: (B, N, k), k at most 256.

    Returns:
        Both (B, N, C). Of equal neighbours the first takes the maximum's gradient.
    """
    batch, count, channels = values.shape
    offset = torch.arange(batch, device=graph.device).view(-1, 1, 1) * count
    flat = (graph + offset).view(batch * count, -1)
    maximum, total = _Reduce.apply(values.reshape(batch * count, channels), flat)
    return maximum.view_as(values), total.view_as(values)


def edge_moments(a: Tensor, b: Tensor, graph: Tensor, neighbour_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of e_ij = a_j + b_i over the edges of each cloud.

    Args:
        a: (B, N, C).
        b: (B, N, C).
        graph: (B, N, k).
        neighbour_sum: (B, N, C), the sum of a over each point's neighbours.

    Returns:
        Mean and variance, both (B, C). Values are centred before they are squared, so that nothing cancels.
    """
    batch, count, k = graph.shape
    ones = a.new_ones((), dtype=a.dtype).expand(batch, count * k)
    degree = a.new_zeros(batch, count).scatter_add_(1, graph.flatten(1), ones)[..., None]
    mean_a = neighbour_sum.sum(1, keepdim=True) / (count * k)
    mean_b = b.mean(1, keepdim=True)
    a, b, total = a - mean_a, b - mean_b, neighbour_sum - k * mean_a
    squares = (degree * a.square() + b * (2 * total + k * b)).sum(1)
    return (mean_a + mean_b).squeeze(1), squares / (count * k)


class _EdgeLayer(torch.autograd.Function):
    """A linear layer on edges h_ij = relu(u_j + v_i), cloud by cloud: maximum over neighbours, moments of h."""

    @staticmethod
    def _edges(u: Tensor, v: Tensor, columns: Tensor) -> Tensor:
        """(k, N, C) edge values of one cloud, neighbour by neighbour."""
        edges = u.index_select(0, columns.flatten()).view(*columns.shape, -1)
        return edges.add_(v).relu_()

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, graph: Tensor, weight: Tensor, sign: Tensor) -> tuple[Tensor, ...]:
        columns = graph.transpose(1, 2).contiguous()
        signed = weight * sign[:, None]
        maxima, numbers, means, covariances = [], [], [], []
        for cloud in range(len(u)):
            h = _EdgeLayer._edges(u[cloud], v[cloud], columns[cloud])
            maximum, number = _running_maximum(F.linear(h, signed))
            flat = h.flatten(0, 1)
            mean = flat.mean(0)
            flat -= mean
            maxima.append(maximum * sign)
            numbers.append(number)
            means.append(mean)
            covariances.append(flat.T @ flat / len(flat))
        number, mean = torch.stack(numbers), torch.stack(means)
        ctx.save_for_backward(u, v, columns, weight, number, mean)
        return torch.stack(maxima), mean, torch.stack(covariances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_maximum: Tensor, grad_mean: Tensor, grad_cov: Tensor) -> tuple[Tensor | None, ...]:
        u, v, columns, weight, number, mean = ctx.saved_tensors
        grad_u, grad_v = torch.zeros_like(u), torch.empty_like(v)
        grad_weight = torch.zeros_like(weight)
        for cloud in range(len(u)):
            h = _EdgeLayer._edges(u[cloud], v[cloud], columns[cloud])
            k, count, width = h.shape
            edges = k * count
            flat = h.view(edges, width)
            active = flat > 0
            chosen = flat.new_zeros(k, count, len(weight))
            chosen.scatter_(0, number[cloud].long()[None], grad_maximum[cloud][None])
            chosen = chosen.view(edges, -1)
            grad_weight += chosen.T @ flat
            grad = torch.addmm(grad_mean[cloud] / edges, chosen, weight)
            symmetric = (grad_cov[cloud] + grad_cov[cloud].T) / edges
            grad.addmm_(flat - mean[cloud], symmetric).mul_(active)
            grad_v[cloud] = grad.view(k, count, width).sum(0)
            grad_u[cloud].index_add_(0, columns[cloud].flatten(), grad)
        return grad_u, grad_v, None, grad_weight, None


def linear_on_edges(u: Tensor, v: Tensor, graph: Tensor, weight: Tensor, sign: Tensor) -> tuple[Tensor, ...]:
    """The layer W relu(u_j + v_i) on edges, reduced at once.

    Args:
        u: (B, N, C).
        v: (B, N, C).
        graph: (B, N, k), k at most 256.
        weight: (O, C).
        sign: (O,) of 1 and -1; where -1 the minimum is taken instead of the maximum.

    Returns:
        The maximum over neighbours (B, N, O), and mean (B, O) and biased variance (B, O) over the edges of each cloud.
        One cloud's edges are held at a time, in the backward pass too.
    """
    maximum, mean, covariance = cast(tuple[Tensor, ...], _EdgeLayer.apply(u, v, graph, weight, sign))
    return maximum, mean @ weight.T, torch.einsum("oc,bcd,od->bo", weight, covariance, weight)
