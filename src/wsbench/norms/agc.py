"""Adaptive gradient clipping, which networks without normalizers need (Brock et al., ICML 2021, Eq. 3)."""

import torch
from torch import Tensor, nn

from wsbench.norms.layers import rows_of, torch_class


@torch.no_grad()
def adaptive_clip_grad_(
    model: nn.Module, clipping: float = 0.01, eps: float = 1e-3, exclude: tuple[nn.Module, ...] = ()
) -> None:
    """Clip the gradient of each output channel to ``clipping`` times the norm of its weights, in place.

    G_i becomes clipping max(||W_i||, eps) / ||G_i|| G_i where that is smaller; W_i is one filter of a convolution or
    linear layer. Any other parameter (a bias, gains, what a norm has) is one unit, as vectors are in the authors' code.

    Args:
        model: its gradients are whole: call it before the optimizer's step.
        clipping: the paper's lambda.
        eps: norms of weights count as this at least, so that zeros can leave it.
        exclude: modules left out with all inside; the paper leaves the last layer out.

    Raises:
        ValueError: ``clipping`` is not above 0.
    """
    if not clipping > 0:
        raise ValueError(f"clipping must be above 0, got {clipping}")
    left_out = {id(p) for module in exclude for p in module.parameters()}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.grad is None or id(parameter) in left_out or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            filters = name == "weight" and torch_class(type(module)) is not None and parameter.dim() > 1
            _clip(parameter, module if filters else None, clipping, eps)


def _clip(parameter: nn.Parameter, layer: nn.Module | None, clipping: float, eps: float) -> None:
    grad = parameter.grad
    assert grad is not None
    if layer is None:
        limit = torch.linalg.vector_norm(parameter).clamp_(min=eps).mul_(clipping)
        size = torch.linalg.vector_norm(grad)
        grad.mul_(torch.where(size > limit, limit / size, 1.0))
        return
    weight, gradient = rows_of(layer, parameter), rows_of(layer, grad)
    limit = torch.linalg.vector_norm(weight, dim=1).clamp_(min=eps).mul_(clipping)
    size = torch.linalg.vector_norm(gradient, dim=1)
    factor: Tensor = torch.where(size > limit, limit / size, 1.0)
    grad.mul_(_per_filter(factor, layer, grad))


def _per_filter(factor: Tensor, layer: nn.Module, like: Tensor) -> Tensor:
    """(O,), so that it broadcasts over a weight."""
    ends = (1,) * (like.dim() - 2)
    if like.shape[0] == len(factor) and not getattr(layer, "transposed", False):
        return factor.view(-1, 1, *ends)
    groups = int(getattr(layer, "groups", 1))  # (C_in, C_out / groups, *)
    return factor.view(groups, 1, -1).expand(-1, like.shape[0] // groups, -1).reshape(like.shape[0], -1, *ends)
