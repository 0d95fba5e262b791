"""Bake effective weights into plain layers, for export and inference."""

import copy

import torch
from torch import nn

from wsbench.norms.layers import NormalizedLayer


def replace_modules(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put ``new[m]`` wherever ``m`` stands below ``model``, shared modules included."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children would pass over a child that stands twice
            if child in new:
                parent._modules[name] = new[child]


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose weight-normalized layers are plain ones holding the effective weight.

    The outputs agree; ``model`` stays as it was, and is the one to go on training with (a folded weight has lost the
    mean and scale that the optimizer moved).
    """
    folded = copy.deepcopy(model)
    plain: dict[nn.Module, nn.Module] = {
        m: m.to_plain(m.effective_weight()) for m in folded.modules() if isinstance(m, NormalizedLayer)
    }
    if folded in plain:
        return plain[folded]
    replace_modules(folded, plain)
    return folded
