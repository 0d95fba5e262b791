"""Convolutions and linear layers that compute with an effective weight, and their conversion from and to plain ones.

They are subclasses, not parametrizations: the key of the weight stays ``*.weight``, modules pickle, ``nn.init`` works
on ``.weight``, and checkpoints of plain networks load.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsbench.errors import UserError
from wsbench.norms.registry import WEIGHTS
from wsbench.norms.reparametrized import reparametrization
from wsbench.norms.spec import NormSpec
from wsbench.norms.tracing import as_leaf, compiling, traced, without_autocast

if TYPE_CHECKING:
    from wsbench.norms.layer_window import LayerWindow
    from wsbench.norms.weight import WeightNorm


def to_rows(weight: Tensor, transposed: bool, groups: int, contiguous: bool | None = None) -> Tensor:
    """View a weight as (O, I): one row of fan-in values for each output channel.

    The order within a row is that of memory where it can be, so contiguous and channels_last weights are not copied.
    A transposed weight is (C_in, C_out / groups, *): its rows run over dimension 0 within a group. ``contiguous`` says
    whose order is wanted where it is not the weight's own: that of contiguous memory, or of channels_last.
    """
    if transposed:
        split = weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return split.transpose(1, 2).reshape(groups * weight.shape[1], -1)
    if weight.dim() > 2 and not (weight.is_contiguous() if contiguous is None else contiguous):
        return weight.movedim(1, -1).flatten(1)
    return weight.flatten(1)


def from_rows(rows: Tensor, like: Tensor, transposed: bool, groups: int) -> Tensor:
    """Undo :func:`to_rows`, with the shape and memory format of ``like``."""
    if transposed:
        split = rows.view(groups, like.shape[1], like.shape[0] // groups, -1)
        return split.transpose(1, 2).reshape(like.shape)
    if like.dim() > 2 and not like.is_contiguous():
        return rows.view(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)
    return rows.view(like.shape)


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def rows_of(layer: nn.Module, weight: Tensor, contiguous: bool | None = None) -> Tensor:
    """:func:`to_rows` of a tensor in the shape of a convolution's or linear layer's weight, standardized or plain."""
    return to_rows(weight, isinstance(layer, _TRANSPOSED), int(getattr(layer, "groups", 1)), contiguous)


def shaped_as_weight(layer: nn.Module, rows: Tensor) -> Tensor:
    """Undo :func:`rows_of`."""
    like = cast(Tensor, layer.weight)
    return from_rows(rows, like, isinstance(layer, _TRANSPOSED), int(getattr(layer, "groups", 1)))


class FanInError(UserError, ValueError):
    """A layer whose filters have too few values to normalize."""


def widened(rows: Tensor) -> Tensor:
    """Rows in the precision that a method computes in: float32 or wider."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if rows.dtype == torch.float16 and wide.requires_grad:
        # 1 / eps of a constant filter is beyond what a float16 gradient can hold
        limit = torch.finfo(torch.float16).max
        wide.register_hook(lambda grad: grad.clamp(-limit, limit))  # type: ignore[no-untyped-call]
    return wide


def _compute(
    method: "WeightNorm", weight: Tensor, extra: Mapping[str, Tensor], transposed: bool, groups: int
) -> Tensor:
    with without_autocast(weight):
        rows = widened(to_rows(weight, transposed, groups))
        out = method.effective(rows, **{name: value.to(rows.dtype).flatten() for name, value in extra.items()})
        return from_rows(out.to(weight.dtype), weight, transposed, groups)


class Attachments:
    """What stands between a layer's weight and its operation for a while; the layer has one slot for all of it.

    A use of the weight asks ``window``, its part of an accumulation window, for what to compute with, and computes the
    effective weight itself where that has nothing (norms/layer_window.py). What results is handed through ``tap``,
    which looks at it or puts another in its place (norms/tap.py). Copies, pickles and the plain layer have no part in
    either.
    """

    def __init__(self) -> None:
        self.window: LayerWindow | None = None
        self.tap: Callable[[Tensor], Tensor] | None = None


class NormalizedLayer(nn.Module):
    """What all layers with a weight normalization share; mixed in before a plain torch layer.

    Build one from a plain layer with :func:`normalized`, or like the plain layer with the spec as a keyword:
    ``NormalizedConv2d(3, 64, 7, spec="gn+ws")``.
    """

    plain: ClassVar[type[nn.Module]]
    transposed_weight: ClassVar[bool] = False
    weight: Tensor
    bias: Tensor | None
    spec: NormSpec
    _attachments: Attachments | None = None

    def __init__(self, *args: Any, spec: str | NormSpec | None = None, **kwargs: Any) -> None:
        if spec is None:
            raise TypeError(
                f"{type(self).__name__} needs spec=..., for instance 'gn+ws'; a library that makes layers of the class "
                "that it finds (LoRA adapters do) is for wsbench.norms.fold(model)"
            )
        super().__init__(*args, **kwargs)
        self._set_spec(NormSpec.parse(spec))

    def _set_spec(self, spec: NormSpec) -> None:
        if spec.weight is None:
            raise ValueError(f"{type(self).__name__} needs a spec with a weight normalization, got '{spec}'")
        method = WEIGHTS[spec.weight].factory(spec)
        rows = self._rows()
        if rows.shape[1] < method.min_fan_in:
            raise FanInError(
                f"'{spec}' is undefined on filters of {rows.shape[1]} value (weight {tuple(self.weight.shape)}); "
                "exclude this layer"
            )
        self.spec, self.method = spec, method
        self._extra: tuple[str, ...] = ()
        for name, value in self.initial_extra_parameters().items():
            self.register_parameter(name, nn.Parameter(value, self.weight.requires_grad))
            self._extra += (name,)
        self._remembered: tuple[str, ...] = ()
        for name, value in self.initial_extra_buffers().items():
            self.register_buffer(name, value)
            self._remembered += (name,)

    @torch.no_grad()
    def initial_extra_parameters(self) -> dict[str, Tensor]:
        """What the method's added parameters start from, given the weight as it is now; in their shape and dtype."""
        shape = (-1, *(1 for _ in range(self.weight.dim() - 1)))
        values = self.method.extra_parameters(self._rows())
        return {name: value.to(self.weight.dtype).reshape(shape) for name, value in values.items()}

    @torch.no_grad()
    def initial_extra_buffers(self) -> dict[str, Tensor]:
        """What the method remembers at first, given the weight as it is now; (O,), float32 or wider."""
        return self.method.extra_buffers(self._rows())

    @torch.no_grad()
    def refresh(self) -> None:
        """Let the method remember another training pass, where it remembers anything."""
        if not self._remembered:
            return
        with without_autocast(self.weight):
            rows = self._rows()
            now = {name: getattr(self, name).to(rows.dtype) for name in self._remembered}
            for name, value in self.method.moved(rows, **now).items():
                getattr(self, name).copy_(value)

    @property
    def filters(self) -> int:
        """How many rows the weight has: one for each output channel."""
        return self._groups * self.weight.shape[1] if self.transposed_weight else self.weight.shape[0]

    @property
    def _groups(self) -> int:
        return int(getattr(self, "groups", 1))

    def _rows(self) -> Tensor:
        return widened(to_rows(self.weight.detach(), self.transposed_weight, self._groups))

    def effective_weight(self) -> Tensor:
        """The weight that the layer computes with: shape and dtype of ``.weight``, computed in float32 or wider."""
        if self._remembered and self.training and torch.is_grad_enabled() and (compiling() or not traced()):
            self.refresh()
        return self.effective_weight_of(self.weight, *(getattr(self, name) for name in self._extra))

    def effective_weight_of(self, weight: Tensor, *extra: Tensor) -> Tensor:
        """:meth:`effective_weight` for other values of :attr:`normalized_parameters`, in their order and shapes."""
        values = dict(zip(self._extra, extra, strict=True))
        # another pass moves them before the backward of this one
        values |= {name: cast(Tensor, getattr(self, name)).clone() for name in self._remembered}
        return _compute(self.method, weight, values, self.transposed_weight, self._groups)

    def weight_in_use(self) -> Tensor:
        """What forward computes with: the effective weight that an open accumulation window holds, else a fresh one.

        Without gradients and in evaluation it is always fresh, and wherever the weight is not what the window saw.
        """
        weight, attached = self._weight_in_use(), self._attachments
        return weight if attached is None or attached.tap is None or traced() else attached.tap(weight)

    def _weight_in_use(self) -> Tensor:
        window, held = None if self._attachments is None else self._attachments.window, None
        if window is not None and self.training and torch.is_grad_enabled():
            if compiling():
                needs = [getattr(self, name).requires_grad for name in ("weight", *self._extra)]
                held = window.in_compiled_use(tuple(needs))
                if held is not None and held.dtype != self.weight.dtype:
                    autocast = torch.is_autocast_enabled(held.device.type)
                    held = held if autocast else None  # a part that autocast is switched off for
            elif not traced():
                weight = self.weight
                held = window.in_use((weight, *(getattr(self, n) for n in self._extra)) if self._extra else (weight,))
        return self.effective_weight() if held is None else held

    @property
    def normalized_parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that the effective weight is a function of: the weight and what the method added."""
        parameters = cast(dict[str, nn.Parameter], self._parameters)
        if not self._extra:
            return (parameters["weight"],)
        return (parameters["weight"], *[parameters[name] for name in self._extra])

    @property
    def attachments(self) -> Attachments:
        """The layer's slot for windows and taps, to put one in."""
        if self._attachments is None:
            self._attachments = Attachments()
        return self._attachments

    @property
    def attached(self) -> tuple[str, ...]:
        """What sets the weight in use for a while: ``window``, ``tap``; see :class:`Attachments`."""
        now = {} if self._attachments is None else vars(self._attachments)
        return tuple(name for name, value in now.items() if value is not None)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_attachments"}

    def extra_repr(self) -> str:
        """Arguments, for print."""
        return f"{super().extra_repr()}, spec={self.spec}"

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script asks before it reads a layer (and would put in its place, in the network itself)."""
        raise TypeError(
            f"torch.jit.script cannot read {type(self).__name__}, whose weight is computed; script "
            "wsbench.norms.fold(model) instead, which holds the effective weights"
        )

    @classmethod
    def from_plain(cls, layer: nn.Module, spec: NormSpec) -> Self:
        """A layer of this class that has a plain one's parameters (the same objects), hooks and mode."""
        new = cast(Self, _reclass(layer, cls))
        new._set_spec(spec)
        return new

    def to_plain(self, weight: Tensor | None = None) -> nn.Module:
        """The plain layer again, with the raw weight, or with ``weight`` baked in."""
        new = _reclass(self, self.plain)
        for name in ("spec", "method", "_extra", "_remembered"):
            del new.__dict__[name]
        for name in self._remembered:
            del new._buffers[name]
        new.__dict__.pop("_attachments", None)
        for name in self._extra:
            del new._parameters[name]
        if weight is not None:
            new.register_parameter("weight", nn.Parameter(weight.detach().clone(), self.weight.requires_grad))
        return new


def effective_weight(layer: nn.Module) -> Tensor:
    """The weight that a convolution or linear layer computes with, whether it has a weight normalization or not."""
    return layer.weight_in_use() if isinstance(layer, NormalizedLayer) else cast(Tensor, layer.weight)


def _reclass(layer: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """A module of class ``cls`` with the attributes of ``layer``; tables such as ``_parameters`` are copied."""
    new = cls.__new__(cls)
    new.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in layer.__dict__.items()}
    return new


class _NormalizedConv(NormalizedLayer):
    _conv_forward: Any

    def forward(self, input: Tensor) -> Tensor:
        """As the plain convolution."""
        if (leaf := as_leaf(self, input)) is not None:
            return cast(Tensor, leaf)
        return cast(Tensor, self._conv_forward(input, self.weight_in_use(), self.bias))


class NormalizedConv1d(_NormalizedConv, nn.Conv1d):
    """nn.Conv1d with a weight normalization."""

    plain = nn.Conv1d


class NormalizedConv2d(_NormalizedConv, nn.Conv2d):
    """nn.Conv2d with a weight normalization."""

    plain = nn.Conv2d


class NormalizedConv3d(_NormalizedConv, nn.Conv3d):
    """nn.Conv3d with a weight normalization."""

    plain = nn.Conv3d


class _NormalizedConvTranspose(NormalizedLayer):
    transposed_weight = True
    _output_padding: Any

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As the plain transposed convolution."""
        if (leaf := as_leaf(self, input, output_size)) is not None:
            return cast(Tensor, leaf)
        layer: Any = self
        spatial = len(layer.kernel_size)
        output_padding = self._output_padding(
            input, output_size, layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation
        )
        function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        return cast(
            Tensor,
            function(
                input, self.weight_in_use(), self.bias, layer.stride, layer.padding, output_padding, layer.groups,
                layer.dilation,
            ),
        )  # fmt: skip


class NormalizedConvTranspose1d(_NormalizedConvTranspose, nn.ConvTranspose1d):
    """nn.ConvTranspose1d with a weight normalization."""

    plain = nn.ConvTranspose1d


class NormalizedConvTranspose2d(_NormalizedConvTranspose, nn.ConvTranspose2d):
    """nn.ConvTranspose2d with a weight normalization."""

    plain = nn.ConvTranspose2d


class NormalizedConvTranspose3d(_NormalizedConvTranspose, nn.ConvTranspose3d):
    """nn.ConvTranspose3d with a weight normalization."""

    plain = nn.ConvTranspose3d


class _NormalizedLinear(NormalizedLayer):
    def forward(self, input: Tensor) -> Tensor:
        """As the plain linear layer."""
        if (leaf := as_leaf(self, input)) is not None:
            return cast(Tensor, leaf)
        return F.linear(input, self.weight_in_use(), self.bias)


class NormalizedLinear(_NormalizedLinear, nn.Linear):  # type: ignore[misc]  # bias is Tensor there, None or not
    """nn.Linear with a weight normalization."""

    plain = nn.Linear


_SWAP = threading.RLock()


class _NormalizedSubclass(NormalizedLayer):
    """A subclass with a forward of its own, which hands ``self.weight`` to torch's operation and to nothing else."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the plain layer."""
        if args and not kwargs and (leaf := as_leaf(self, *args)) is not None:
            return cast(Tensor, leaf)
        weight = self.weight_in_use()
        with nullcontext() if compiling() else _SWAP:  # threads share the layer's attributes
            self.__dict__["weight"] = weight  # found before the parameter of that name
            try:
                return cast(Tensor, super().forward(*args, **kwargs))
            finally:
                del self.__dict__["weight"]


#: Plain layer to its normalized subclass; those of subclasses are made by :func:`normalized_class`.
NORMALIZED: dict[type[nn.Module], type[NormalizedLayer]] = {
    cls.plain: cls
    for cls in (
        NormalizedConv1d, NormalizedConv2d, NormalizedConv3d, NormalizedConvTranspose1d, NormalizedConvTranspose2d,
        NormalizedConvTranspose3d, NormalizedLinear,
    )
}  # fmt: skip

_MADE: dict[type[nn.Module], type[NormalizedLayer]] = {}


def torch_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The convolution or linear layer of torch that a class is, or is a subclass of; None for any other."""
    return next((c for c in cls.__mro__ if c in NORMALIZED), None)


def computes_as_torch(cls: type[nn.Module]) -> bool:
    """Whether a class is one of torch's layers, or a subclass that leaves what runs to it."""
    base = torch_class(cls)
    names = ("forward", "_conv_forward", "_output_padding", "__call__")
    return base is not None and all(getattr(cls, n, None) is getattr(base, n, None) for n in names)


def normalized_class(cls: type[nn.Module]) -> type[NormalizedLayer]:
    """The class of a layer of class ``cls`` with a weight normalization.

    For a subclass of torch's layers it is made once; a forward of its own runs with the effective weight as
    ``self.weight``. Pickles find it by the class that it was made for.
    """
    if cls in NORMALIZED:
        return NORMALIZED[cls]
    if cls not in _MADE:
        base = torch_class(cls)
        assert base is not None
        mixin: type[NormalizedLayer] = _NormalizedSubclass
        if computes_as_torch(cls):
            mixin = NORMALIZED[base].__mro__[1]
        body = {"plain": cls, "transposed_weight": NORMALIZED[base].transposed_weight, "__reduce__": _reduce,
                "__module__": __name__, "__doc__": f"{cls.__name__} with a weight normalization."}  # fmt: skip
        _MADE[cls] = type(f"Normalized{cls.__name__}", (mixin, cls), body)
    return _MADE[cls]


def _reduce(layer: NormalizedLayer) -> tuple[Any, ...]:
    return _empty, (layer.plain,), layer.__getstate__()


def _empty(cls: type[nn.Module]) -> NormalizedLayer:
    made = normalized_class(cls)
    return made.__new__(made)


def normalized(layer: nn.Module, spec: str | NormSpec) -> nn.Module:
    """A layer with the weight normalization of ``spec`` that shares ``layer``'s parameters; plain if it has none.

    ``layer`` stays what it is; :func:`wsbench.norms.normalize` converts in place.

    Args:
        layer: nn.Conv1d/2d/3d, nn.ConvTranspose1d/2d/3d, nn.Linear, a subclass that leaves forward to them, or a layer
            made by this function.
        spec: the specification.

    Raises:
        TypeError: for any other layer, and for one whose weight is computed already (weight_norm, pruning, ...).
        FanInError: for filters of a single value under ``ws``.
    """
    spec = NormSpec.parse(spec)
    if isinstance(layer, NormalizedLayer):
        layer = layer.to_plain()
    if not computes_as_torch(type(layer)):
        names = ", ".join(cls.__name__ for cls in NORMALIZED)
        raise TypeError(f"cannot normalize the weight of {type(layer).__name__}; expected one of {names}, or a "
                        "subclass that leaves forward to them")  # fmt: skip
    if spec.weight is None:
        return layer
    if (owner := reparametrization(layer)) is not None:
        raise TypeError(f"the weight of this {type(layer).__name__} is computed by {owner.by}; {owner.remedy} first")
    return normalized_class(type(layer)).from_plain(layer, spec)
