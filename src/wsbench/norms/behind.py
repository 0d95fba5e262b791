"""Normalizations whose formula is the activation's, too: who is behind them, and how that one stands aside.

An activation module that only ever follows such norms passes everything through. One that a network uses in several
places (torchvision's ResNets have one ReLU a block) is told by the norm before each of its calls.
"""

from typing import Any, cast

from torch import Tensor, nn

from wsbench.norms.base import ChannelNorm
from wsbench.norms.tracing import as_leaf, traced

#: what may stand behind a normalization and is nothing but the network's activation
ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
)  # fmt: skip
#: the same as operations: aten's names, without the underscore of those that work in place
ACTIVATION_OPERATIONS = frozenset(
    f"aten::{name}" for name in ("relu", "hardtanh", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu",
                                 "mish", "hardswish")
)  # fmt: skip


class ActivatingNorm(ChannelNorm):
    """A :class:`ChannelNorm` whose class says ``brings_activation``.

    :attr:`nonlinearity` is whether it acts as the activation, which :func:`wsbench.norms.normalize` decides by what is
    behind the layer; where it does not, :meth:`compute` leaves the activation out.
    """

    #: the activation that is told in each forward pass that its next input is activated, if it has to be (in a tuple:
    #: it is no child)
    _behind: tuple["Passing", ...] = ()
    #: the activation that was part of the layer before, for the way back
    _replaced: tuple[nn.Module, ...] = ()
    #: what the report says where there is no activation behind the layer
    without_activation = "no activation follows it, so it is none"
    #: whether without one it still normalizes
    normalizes_without = True
    nonlinearity = True

    def drop_activation(self) -> None:
        """Nothing behind the layer is an activation, so it is none either; drop the parameters of it."""
        self.nonlinearity = False

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) to the same shape."""
        out = super().forward(input)
        if isinstance(out, Tensor):  # torch.fx passes through without running anything
            for activation in self._behind:
                activation._told = True if traced() else memory_of(out)
        return out

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return super().extra_repr() + ("" if self.nonlinearity else ", nonlinearity=False")


class Passing(nn.Module):
    """Mixed in before an activation: returns what is activated already as it is."""

    _always = True
    #: whether the next input is activated already; where it can be told, by what it lies in
    _told: bool | int = False

    def forward(self, input: Tensor) -> Tensor:
        """``input`` (any shape), activated if nothing before it has done so."""
        if (leaf := as_leaf(self, input)) is not None:
            return cast(Tensor, leaf)
        if self._always:
            return input
        told, self._told = self._told, False
        if told is True or (told is not False and told == memory_of(input)):
            return input
        return cast(Tensor, super().forward(input))

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (activation_class(self),), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


def memory_of(tensor: Tensor) -> int:
    """The identity of what a tensor lies in, for as long as it lives; on the meta device every address is 0.

    That of a view is the same.
    """
    return int(tensor.untyped_storage()._cdata)


_MADE: dict[type[nn.Module], type[Passing]] = {}


def _passing_class(cls: type[nn.Module]) -> type[Passing]:
    if cls not in _MADE:
        body = {"__module__": __name__, "__doc__": Passing.__doc__}
        _MADE[cls] = type(f"Passing{cls.__name__}", (Passing, cls), body)
    return _MADE[cls]


def _empty(cls: type[nn.Module]) -> Passing:
    made = _passing_class(cls)
    return made.__new__(made)


def activation_class(module: nn.Module) -> type[nn.Module]:
    """The class of an activation, without :class:`Passing`."""
    return type(module).__mro__[2] if isinstance(module, Passing) else type(module)


def passing(activation: nn.Module, always: bool) -> Passing:
    """A module of ``activation``'s class and attributes that stands aside, always or when told."""
    new = _empty(activation_class(activation))
    new.__dict__ = {**activation.__dict__, "_always": always, "_told": False}
    return new


def plain_activation(activation: Passing) -> nn.Module:
    """The activation module that ``activation`` stands in for, with its settings."""
    cls = activation_class(activation)
    new = cls.__new__(cls)
    new.__dict__ = {k: v for k, v in activation.__dict__.items() if k not in ("_always", "_told")}
    return new
