"""Turn a layer into another one in place, so that every reference to it sees the new one."""

from typing import Any, Self

from torch import nn

_MODULE = frozenset(nn.Module().__dict__)
#: what every module has, and what belongs to the object rather than to its class: hooks are found again by their dict
_HOOKS = frozenset(name for name in _MODULE if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")))

#: constructor arguments that normalization layers remember, and what a weight normalization adds: of the new layer only
_ARGUMENTS = frozenset({
    "num_features", "num_channels", "num_groups", "normalized_shape", "eps", "momentum", "affine", "elementwise_affine",
    "track_running_stats", "process_group", "semantics", "groups", "group_size", "channels_last", "data_format",
    "spec", "method",
})  # fmt: skip


class Changes:
    """Layers that have become others, and what they were: all of it or nothing."""

    def __init__(self) -> None:
        self._kept: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []

    def become(self, layer: nn.Module, new: nn.Module) -> None:
        """Let ``layer`` be what ``new`` is: class, parameters, buffers and children; hooks and mode stay its own.

        ``new`` is used up. Attributes that somebody has set on ``layer`` stay.
        """
        self._kept.append((layer, type(layer), dict(layer.__dict__)))
        old = layer.__dict__
        inside = {**old.get("_parameters", {}), **old.get("_buffers", {}), **old.get("_modules", {})}
        others = {
            k: v for k, v in old.items() if k not in _MODULE | _ARGUMENTS and k not in inside and not k.startswith("_")
        }
        hooks = {k: v for k, v in old.items() if k in _HOOKS}
        attributes = others | new.__dict__ | hooks | {"training": old["training"]}
        layer.__class__ = type(new)
        layer.__dict__.clear()
        layer.__dict__.update(attributes)

    def undo(self) -> None:
        """Everything as it was."""
        for layer, cls, attributes in reversed(self._kept):
            layer.__class__ = cls
            layer.__dict__.clear()
            layer.__dict__.update(attributes)
        self._kept.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.undo()
