"""Reach the effective weights inside a running network: gather the gradients on them, or put others in their place."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wsbench.errors import UserError
from wsbench.norms.layers import NormalizedLayer


class TapError(UserError, RuntimeError):
    """A network whose effective weights cannot be reached, or are reached by another already."""


class GradientTap:
    """Gathers dL/dŴ of every layer with a weight normalization, over all uses and backward passes while it is open.

    It cannot be recovered from ``.weight.grad``, which is a projection of it (Eq. 8 and 9 of arXiv:1903.10520). The sum
    is over micro-steps of one process, in float32 or wider, of the loss as it was backpropagated: what DDP's average,
    a GradScaler or clipping do to ``.grad`` afterwards is not in it. ::

        with GradientTap(model) as tap:
            for x, y in micro_batches:
                (criterion(model(x), y) / n).backward()
        tap.gradients["layer1.0.conv1"]  # in the shape of .weight

    It looks at each use of a weight by itself, so it knows nothing of an accumulation window and works with and without
    one. Layers are those of the model when it is made; a compiled network passes by its taps.

    Args:
        model: any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: dict[str, NormalizedLayer] = {
            name: module for name, module in model.named_modules() if isinstance(module, NormalizedLayer)
        }
        #: name of a layer to the sum so far; layers that took no part, or whose weight is frozen, are missing
        self.gradients: dict[str, Tensor] = {}

    def __enter__(self) -> "GradientTap":
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether gradients are being gathered now."""
        return any(layer.attachments.tap is not None for layer in self.layers.values())

    def open(self) -> None:
        """Drop what was gathered and start gathering; TapError if a layer is tapped already."""
        taken = [name for name, layer in self.layers.items() if layer.attachments.tap is not None]
        if taken:
            raise TapError(f"the weight of '{taken[0]}' is tapped already; close that tap first")
        self.gradients = {}
        for name, layer in self.layers.items():
            layer.attachments.tap = self._use_of(name)

    def close(self) -> None:
        """Let go of the layers; what was gathered stays."""
        for layer in self.layers.values():
            layer.attachments.tap = None

    def _use_of(self, name: str) -> Callable[[Tensor], Tensor]:
        def add(grad: Tensor) -> None:
            wide = torch.promote_types(grad.dtype, torch.float32)
            if name in self.gradients:
                self.gradients[name] += grad.detach()
            else:
                self.gradients[name] = grad.detach().to(wide, copy=True)

        def use(weight: Tensor) -> Tensor:
            if not weight.requires_grad:
                return weight
            seen = weight.view_as(weight)  # a hook of the weight itself would see what a window adds
            seen.register_hook(add)  # type: ignore[no-untyped-call]
            return seen

        return use


@contextmanager
def substituted(weights: Mapping[NormalizedLayer, Callable[[], Tensor]]) -> Iterator[None]:
    """Let layers compute with other effective weights for a while.

    Args:
        weights: a layer to a function that returns what to compute with, of the shape of ``.weight``.

    Raises:
        TapError: a layer is tapped already.
    """
    if any(layer.attachments.tap is not None for layer in weights):
        raise TapError("a layer's weight is tapped already; close that tap first")
    try:
        for layer, value in weights.items():
            layer.attachments.tap = _instead(value)
        yield
    finally:
        for layer in weights:
            layer.attachments.tap = None


def _instead(value: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda weight: value()
