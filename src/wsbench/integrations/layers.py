"""A layer of a specification, for builders that take one: torchvision's and timm's ``norm_layer``."""

from collections.abc import Callable
from typing import Any

from torch import nn

from wsbench.norms import ACTIVATIONS, NormSpec, SpecError

#: of torch's norms; what a builder says by default, and every layer of wsbench has
EPS = 1e-5


def activation_norm(channels: int, spec: str | NormSpec, eps: float = EPS) -> nn.Module:
    """The activation normalization of a specification.

    Args:
        channels: C of its input (N, C, ...).
        spec: for instance ``gn+ws``, of which this is ``gn``; convolutions are standardized by their own layers.
        eps: must be 1e-5, which all layers here have.

    Raises:
        SpecError: the specification has no layer that stands by itself, or another eps is asked for.
        GroupsError: its groups do not divide the channels.
    """
    parsed = NormSpec.parse(spec)
    method = ACTIVATIONS[parsed.act]
    if eps != EPS:
        raise SpecError(f"'{spec}' with eps {eps}: the layers have eps {EPS:g}; leave it out")
    if method.facts.brings_activation:
        raise SpecError(
            f"'{spec}' replaces the activation after it, too, which a builder of norms cannot hand over; build the "
            "network with BN and convert it by wsbench.norms.normalize"
        )
    return method.build(channels, parsed.groups, parsed.semantics)


def norm_layer(spec: str | NormSpec) -> Callable[..., nn.Module]:
    """What torchvision's and timm's builders take as ``norm_layer``.

    >>> from torchvision.models import resnet50
    >>> model = resnet50(norm_layer=norm_layer("gn"))

    Weights are standardized by the convolutions: with ``gn+ws`` use :func:`wsbench.norms.normalize` on the network.

    Args:
        spec: without a weight normalization.

    Raises:
        SpecError: it has one, which a norm layer cannot apply.
    """
    parsed = NormSpec.parse(spec)
    if parsed.weight is not None:
        raise SpecError(
            f"'{spec}': a norm_layer builds the activation normalization only, and '{parsed.weight}' is of the "
            "convolutions; convert the whole network by wsbench.norms.normalize"
        )

    def build(channels: int, eps: float = EPS, device: Any = None, dtype: Any = None) -> nn.Module:
        return activation_norm(channels, parsed, eps).to(device=device, dtype=dtype)  # which timm's builders pass

    return build
