"""Bake effective weights, and on request BN, into plain layers, for export and inference."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from wsbench.norms.activation import FrozenBatchNorm
from wsbench.norms.become import Changes
from wsbench.norms.layers import NormalizedLayer
from wsbench.norms.reparametrized import reparametrization
from wsbench.norms.watch import watch

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def fold(model: nn.Module, example: Any = None) -> nn.Module:
    """A copy of ``model`` whose weight-normalized layers are plain ones holding the effective weight.

    With an ``example`` BN is fused too, into the convolution or linear layer whose output it alone consumes; that is
    seen by running the example, so a network that takes other ways for other inputs is not for this. The copy is then
    in evaluation mode and has ``nn.Identity`` where BN was.

    The outputs agree; ``model`` stays as it was, and is the one to go on training with (a folded weight has lost the
    mean and scale that the optimizer moved).

    Args:
        model: any module.
        example: what to call the model with: a tensor or list, a tuple of positional or a mapping of keyword arguments.

    Raises:
        TypeError: a layer's weight is computed by something else besides (pruning, a parametrization); names it.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, NormalizedLayer) and (owner := reparametrization(layer)) is not None:
            raise TypeError(f"the weight of '{name}' is computed by {owner.by}; {owner.remedy} before the network is "
                            "folded")  # fmt: skip
    folded, changes = copy.deepcopy(model), Changes()
    for layer in folded.modules():
        if isinstance(layer, NormalizedLayer):
            changes.become(layer, layer.to_plain(layer.effective_weight()))
    if example is not None:
        _fuse(folded.eval(), example)
    return folded


def _fuse(model: nn.Module, example: Any) -> None:
    """Fuse BN with fixed statistics into what is in front of it, in place."""
    layers = [m for m in model.modules() if type(m) in (*_CONVOLUTIONS, nn.Linear)]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm | FrozenBatchNorm)]
    seen = watch(model, example, layers, norms)
    gone: list[nn.Module] = []
    for layer, norm in seen.consumers.items():
        module: Any = norm
        if layer in seen.shared or norm in seen.shared or module.running_mean is None:
            continue
        if layer._forward_hooks or norm._forward_pre_hooks or norm._forward_hooks:  # they see what passes
            continue
        if isinstance(layer, nn.Linear) and len(seen.inputs[norm]) != 2:  # BN's channels are not its outputs there
            continue
        fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        statistics = (module.running_mean, module.running_var, module.eps, module.weight, module.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
        gone.append(norm)
    for norm in gone:
        Changes().become(norm, nn.Identity())
