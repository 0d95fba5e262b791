"""Layers whose weight something else computes already: parametrizations, old-style hooks, pruning."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True)
class Reparametrization:
    """Who computes a layer's weight, and how to undo it."""

    by: str
    remedy: str


def reparametrization(layer: nn.Module, needs_weight: bool = True) -> Reparametrization | None:
    """Who computes the weight (or another parameter) of ``layer``, if it is not a plain parameter.

    Args:
        layer: any layer.
        needs_weight: whether a layer without a parameter of the name ``weight`` counts.
    """
    if parametrize.is_parametrized(layer):
        tensors: Any = layer.parametrizations
        names = ", ".join(f"{type(p).__name__} of '{name}'" for name, ps in tensors.items() for p in ps)
        first = next(iter(tensors))
        return Reparametrization(
            f"a parametrization ({names})",
            f"undo it with torch.nn.utils.parametrize.remove_parametrizations(layer, '{first}')",
        )
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            return Reparametrization(
                "torch.nn.utils.weight_norm", "undo it with torch.nn.utils.remove_weight_norm(layer)"
            )
        if isinstance(hook, SpectralNorm):
            return Reparametrization(
                "torch.nn.utils.spectral_norm", "undo it with torch.nn.utils.remove_spectral_norm(layer)"
            )
        if isinstance(hook, BasePruningMethod):
            return Reparametrization(
                f"pruning ({type(hook).__name__})",
                f"make it permanent with torch.nn.utils.prune.remove(layer, '{hook._tensor_name}')",
            )
    if needs_weight and "weight" not in layer._parameters:
        return Reparametrization(
            "something that took its parameter 'weight' away", "give the layer a parameter of that name again"
        )
    return None
