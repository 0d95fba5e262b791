"""Turn any torch model over to a specification."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from wsbench.norms.activation import DEFAULT_GROUPS, FrozenBatchNorm, GroupNorm, GroupsError
from wsbench.norms.fold import replace_modules
from wsbench.norms.layers import NORMALIZED, FanInError, NormalizedLayer, normalized
from wsbench.norms.registry import ACTIVATIONS
from wsbench.norms.spec import NormSpec
from wsbench.norms.watch import Watched, watch

#: Normalization layers by class name, of libraries that norms/ does not import: channels in dimension 1, affine.
_FOREIGN_NORMS = ("FrozenBatchNorm2d", "LayerNorm2d")


class PatternError(ValueError):
    """An include or exclude pattern that names nothing."""


@dataclass(frozen=True)
class LayerChange:
    """One layer of a :class:`NormReport`."""

    name: str
    kind: str
    """``activation`` (a normalization layer) or ``weight`` (a convolution or linear layer)."""
    before: str
    after: str
    changed: bool
    reason: str
    eligible: bool = False
    """Of a convolution or linear layer: whether a weight normalization applies to it, where the spec has one."""


@dataclass(frozen=True)
class NormReport:
    """Every convolution, linear and normalization layer: what it was, what it is, and why."""

    spec: NormSpec
    layers: tuple[LayerChange, ...]

    @property
    def weight_normalized(self) -> tuple[str, ...]:
        """Names of the layers that have the weight normalization now."""
        return tuple(c.name for c in self.layers if c.kind == "weight" and c.after.startswith("Normalized"))

    @property
    def plain(self) -> tuple[str, ...]:
        """Names of the convolutions and linear layers that have none."""
        return tuple(c.name for c in self.layers if c.kind == "weight" and not c.after.startswith("Normalized"))

    @property
    def eligible(self) -> tuple[str, ...]:
        """Names of the layers that have, or would have under a spec with one, the weight normalization."""
        return tuple(c.name for c in self.layers if c.eligible)

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the normalization layers that follow the spec now."""
        return tuple(c.name for c in self.layers if c.kind == "activation" and c.changed)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the normalization layers that were left as they were."""
        return tuple(c.name for c in self.layers if c.kind == "activation" and not c.changed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: fitted group numbers, degenerate cells, layers that were passed over."""
        return tuple(f"{c.name}: {c.reason}" for c in self.layers if c.reason.startswith("note: "))

    def counts(self) -> dict[str, int]:
        """How many layers of each kind, for a record."""
        return {
            "activation": len(self.activations),
            "weight": len(self.weight_normalized),
            "kept": len(self.kept),
            "plain": len(self.plain),
        }

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.spec}: {len(self.activations)} normalization layers turned over, {len(self.kept)} kept; "
            f"{len(self.weight_normalized)} layers weight-normalized, {len(self.plain)} plain"
        )

    def __str__(self) -> str:
        rows = [("layer", "was", "is", "why")]
        rows += [(c.name, c.before, c.after, c.reason) for c in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        table = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)) for row in rows)
        return f"{self.summary()}\n{table}"


def _registered() -> tuple[type, ...]:
    return tuple(method.factory for method in ACTIVATIONS.values() if isinstance(method.factory, type))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer."""
    known = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, *_registered())
    return isinstance(module, known) or type(module).__name__ in _FOREIGN_NORMS


def _channels(norm: nn.Module) -> int | None:
    """Channels of a normalization layer that works on dimension 1; None for any other."""
    if type(norm).__name__ in _FOREIGN_NORMS:
        return int(norm.weight.numel()) if isinstance(norm.weight, torch.Tensor) else None
    if isinstance(norm, nn.LayerNorm):
        return None
    channels: Any = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    return int(channels)


def _fused_activation(norm: nn.Module) -> list[nn.Module]:
    """What a timm NormAct layer does after normalizing."""
    return [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(m, nn.Module)]


def _only_normalizes(norm: nn.Module) -> bool:
    """Whether a layer's forward is torch's or a registered one, and not that of a subclass which does more."""
    registered = _registered()
    known = (cls for cls in type(norm).__mro__ if cls in registered or cls.__module__.startswith("torch.nn."))
    return any(type(norm).forward is cls.forward for cls in known if hasattr(cls, "forward"))


def _replacement(norm: nn.Module, spec: NormSpec, name: str) -> tuple[nn.Module | None, str]:
    """The layer that takes the place of ``norm``, or None, and the reason."""
    channels = _channels(norm)
    if channels is None:
        return None, f"note: {type(norm).__name__} normalizes the last dimension, not channels in dimension 1"
    after = _fused_activation(norm)
    if not (_only_normalizes(norm) or after or type(norm).__name__ in _FOREIGN_NORMS):
        return None, f"note: {type(norm).__name__} is a subclass with a forward of its own"
    try:
        new = ACTIVATIONS[spec.act].build(channels, spec.groups, spec.act_semantics)
    except GroupsError as error:
        raise GroupsError(f"layer '{name}': {error}") from None
    _take_over(new, norm)
    remarks = []
    if isinstance(new, GroupNorm) and spec.act == "gn" and spec.groups is None and channels % DEFAULT_GROUPS:
        remarks.append(f"{DEFAULT_GROUPS} does not divide {channels} channels, {new.num_groups} groups")
    if (old_eps := getattr(norm, "eps", None)) is not None and getattr(new, "eps", old_eps) != old_eps:
        remarks.append(f"eps {old_eps:g} becomes {new.eps:g}")
    reason = f"note: {'; '.join(remarks)}" if remarks else "follows the spec"
    return (nn.Sequential(new, *after) if after else new), reason


def _take_over(new: nn.Module, old: nn.Module) -> None:
    """Keep the affine parameters (a zero-initialized gamma stays zero), BN's statistics, the mode and the device."""
    tensor = next((t for t in (*old.parameters(recurse=False), *old.buffers(recurse=False))), None)
    if tensor is not None:
        new.to(tensor.device, tensor.dtype)
    if isinstance(new, _BatchNorm) and isinstance(old, _BatchNorm):
        new.eps, new.momentum = old.eps, old.momentum
        new.affine, new.track_running_stats = old.affine, old.track_running_stats
        if not old.affine:
            new.register_parameter("weight", None)
            new.register_parameter("bias", None)
        if not old.track_running_stats:
            new.running_mean = new.running_var = new.num_batches_tracked = None
    shared = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for name in shared if isinstance(new, _BatchNorm | FrozenBatchNorm) else shared[:2]:
        value = getattr(old, name, None)
        current = getattr(new, name, None)
        if isinstance(value, torch.Tensor) and isinstance(current, torch.Tensor):
            with torch.no_grad():
                current.copy_(value)
            if isinstance(value, nn.Parameter):
                current.requires_grad_(value.requires_grad)
    new.train(old.training)


def _degenerate(norm: nn.Module, shape: torch.Size | None) -> str | None:
    inner = norm[0] if isinstance(norm, nn.Sequential) else norm
    count = getattr(inner, "values_per_statistic", None)
    if shape is None or count is None or count(shape) > 1:
        return None
    instead = "running statistics in training" if isinstance(inner, _BatchNorm) else "affine map only"
    return f"one value a statistic at {tuple(shape)}, so {instead}"


def _match(name: str, patterns: Sequence[str]) -> str | None:
    return next((p for p in patterns if fnmatchcase(name, p)), None)


def _names(model: nn.Module, wanted: Sequence[nn.Module]) -> dict[nn.Module, str]:
    names = {module: name for name, module in model.named_modules()}
    return {module: names[module] for module in wanted}


def _decide(
    layer: nn.Module, name: str, seen: Watched | None, norms: dict[nn.Module, str], include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[bool, str]:  # fmt: skip
    """Whether a convolution or linear layer gets the weight normalization, and why."""
    if pattern := _match(name, exclude):
        return False, f"excluded by '{pattern}'"
    if pattern := _match(name, include):
        return True, f"included by '{pattern}'"
    if seen is not None:
        if layer in seen.consumers:
            return True, f"normalized by '{norms[seen.consumers[layer]]}'"
        if layer not in seen.reached:
            return False, "note: the example does not reach it"
        return False, "no normalization layer consumes its output"
    if isinstance(layer, nn.Linear):
        return False, "linear: without an example only convolutions are turned over"
    if layer.bias is None:
        return True, "convolution without a bias (no example given)"
    return False, "convolution with a bias (no example given)"


def normalize(
    model: nn.Module,
    spec: str | NormSpec,
    example: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> NormReport:
    """Turn ``model`` over to ``spec``, in place.

    Every BN, GN, IN, SN, frozen BN and LayerNorm2d becomes the activation normalization of the spec, with its affine
    parameters kept. A convolution or linear layer gets the weight normalization **iff a normalization layer consumes
    its output**, so classifiers, predictors and RPNs stay plain. Turning over again, to any spec, is fine.

    Args:
        model: any module; it is changed only if nothing raises.
        spec: for instance ``"gn+ws"``.
        example: what to call the model with, to see which outputs are consumed: a tensor or list, a tuple of
            positional or a mapping of keyword arguments. Run once in evaluation mode. None: convolutions without a bias
            are taken to be the ones that a normalization follows.
        include: shell patterns of layer names that get the weight normalization whatever follows them.
        exclude: shell patterns of layer names, of both kinds, that stay as they are.

    Returns:
        A report of every layer; print it.

    Raises:
        SpecError: for a spec that does not exist.
        GroupsError: an explicit number of groups does not divide a layer's channels.
        FanInError: a layer with filters of one value would be standardized.
        PatternError: a pattern matches no layer.
    """
    spec = NormSpec.parse(spec)
    plain_types = tuple(NORMALIZED)
    weighted = [m for m in model.modules() if isinstance(m, plain_types)]
    norm_list = [m for m in model.modules() if is_norm(m)]
    layers, norms = _names(model, weighted), _names(model, norm_list)
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in (*layers.values(), *norms.values())):
            raise PatternError(f"pattern '{pattern}' matches no convolution, linear or normalization layer")
    if "" in layers.values() or "" in norms.values():
        raise TypeError(
            f"{type(model).__name__} is itself the layer; wrap it in a module, or use normalized(layer, spec)"
        )
    seen = None if example is None else watch(model, example, weighted, norm_list)

    new: dict[nn.Module, nn.Module] = {}
    changes: dict[str, LayerChange] = {}
    for norm, name in norms.items():
        replacement: nn.Module | None = None
        if excluded := _match(name, exclude):
            reason = f"excluded by '{excluded}'"
        else:
            replacement, reason = _replacement(norm, spec, name)
        if replacement is not None:
            new[norm] = replacement
            shape = None if seen is None else seen.inputs.get(norm)
            degenerate = _degenerate(replacement, shape)
            if degenerate:
                reason = f"{reason}; {degenerate}" if reason.startswith("note: ") else f"note: {degenerate}"
        after = _describe(norm if replacement is None else replacement)
        changes[name] = LayerChange(name, "activation", _describe(norm), after, replacement is not None, reason)
    for layer, name in layers.items():
        wanted, reason = _decide(layer, name, seen, norms, include, exclude)
        before, eligible = type(layer).__name__, wanted and type(layer) in (*NORMALIZED, *NORMALIZED.values())
        if not _match(name, exclude) and (type(layer) in NORMALIZED or isinstance(layer, NormalizedLayer)):
            wanted = wanted and spec.weight is not None
            if wanted or isinstance(layer, NormalizedLayer):
                try:
                    new[layer] = normalized(layer, spec if wanted else NormSpec(spec.act))
                except FanInError as error:
                    raise FanInError(f"layer '{name}': {error} (exclude=['{name}'])") from None
        elif wanted:
            reason = f"note: {before} is a subclass, not exactly a torch layer"
        after = type(new.get(layer, layer)).__name__
        changes[name] = LayerChange(name, "weight", before, after, after != before, reason, eligible)
    replace_modules(model, new)
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return NormReport(spec, tuple(sorted(changes.values(), key=lambda c: order.get(c.name, -1))))


def _describe(norm: nn.Module) -> str:
    if isinstance(norm, nn.Sequential):
        return " + ".join(_describe(m) for m in norm)
    told = norm.num_groups if type(norm) is GroupNorm else getattr(norm, "semantics", None)
    return type(norm).__name__ if told is None else f"{type(norm).__name__}({told})"
