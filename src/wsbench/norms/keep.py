"""What a normalization layer keeps when it becomes another: eps, momentum, affine parameters, statistics.

=============================  ====================================================================================
to the same method             all of it: eps, momentum, being affine, parameters, statistics, SN's mixing weights
within BN's family             eps, affine values and statistics; frozenbn holds the values as buffers, no momentum;
                               ``brn`` keeps its own eps and momentum
between any two others         the affine parameters, as the same objects; eps and momentum are those of the new method
to ``none``                    nothing
=============================  ====================================================================================

BN's family is ``bn`` and what says that it ``starts_from`` it. BN of a torch class or a subclass is ``bn``; torch's and
timm's GroupNorm of one group is ``ln``, of as many groups as channels ``in``, like torch's InstanceNorm; others are
``gn``.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from wsbench.norms.activation import FrozenBatchNorm, GroupNorm, NoNorm
from wsbench.norms.facts import facts_of
from wsbench.norms.registry import ACTIVATIONS

_AFFINE = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _family(method: str | None) -> str | None:
    """The method whose state a method has."""
    return None if method is None else ACTIVATIONS[method].facts.starts_from or method


def _has_bns_numbers(method: str | None) -> bool:
    facts = None if method is None else ACTIVATIONS[method].facts
    return facts is not None and (facts.bn_momentum or facts.fixed)


def _across_devices(norm: nn.Module) -> bool:
    return isinstance(norm, nn.SyncBatchNorm) or facts_of(norm).across_devices


def method_of(norm: nn.Module) -> str | None:
    """Name of the method that a layer computes by, whoever wrote it; None if no method of the grammar does."""
    factories: dict[Any, str] = {method.factory: name for name, method in ACTIVATIONS.items()}
    if type(norm) in factories:
        return factories[type(norm)]
    if isinstance(norm, FrozenBatchNorm) or type(norm).__name__ == "FrozenBatchNorm2d":
        return "frozenbn"
    if isinstance(norm, nn.SyncBatchNorm):
        return "syncbn"
    if isinstance(norm, _BatchNorm):
        return "bn"
    if isinstance(norm, _InstanceNorm):
        return None if norm.track_running_stats else "in"
    if isinstance(norm, nn.GroupNorm):
        return "ln" if norm.num_groups == 1 else "in" if norm.num_groups == norm.num_channels else "gn"
    return None


def keep(new: nn.Module, old: nn.Module, trainable: bool) -> list[str]:
    """Give ``new`` what it keeps of ``old``; parameters are handed over as the same objects.

    Args:
        new: fresh.
        old: the layer whose place it takes.
        trainable: whether parameters that ``old`` had no counterpart for ask for gradients, if it has none at all.

    Returns:
        What a reader should know.
    """
    tensor = next((t for t in (*old.parameters(recurse=False), *old.buffers(recurse=False))), None)
    if tensor is not None:
        new.to(tensor.device, tensor.dtype if tensor.is_floating_point() else None)
    remarks: list[str] = []
    was, is_ = method_of(old), method_of(new)
    same = was is not None and was == is_ and getattr(old, "semantics", None) == getattr(new, "semantics", None)
    batch = _family(was) == _family(is_) == "bn"
    if isinstance(old, _InstanceNorm) and old.track_running_stats:
        remarks.append("running statistics are dropped: in evaluation, too, it normalizes by the sample's own")
    if _across_devices(old) and not _across_devices(new):
        remarks.append(f"{type(old).__name__} becomes a norm of one device")

    asking = [p.requires_grad for p in old.parameters(recurse=False)]
    for parameter in new.parameters(recurse=False):
        parameter.requires_grad_(any(asking) if asking else trainable)
    _keep_affine(new, old, same or batch, remarks)
    if same or (batch and _has_bns_numbers(was) and _has_bns_numbers(is_)):
        _keep_numbers(new, old)
    if same or batch:
        own = (*new._parameters, *new._buffers) if same else _STATISTICS
        for name in own:
            if name not in _AFFINE:
                _hand_over(new, old, name)
    restart: Any = getattr(new, "restart_schedule", None)
    if restart is not None and not same:
        new.num_batches_tracked = cast(Tensor, new.num_batches_tracked).clone()  # the old layer may live on
        restart()
    if (eps := getattr(old, "eps", None)) is not None and getattr(new, "eps", eps) != eps:
        remarks.append(f"eps {eps:g} becomes {new.eps:g}")
    new.train(old.training)
    return remarks


def _keep_numbers(new: Any, old: Any) -> None:
    for name in ("eps", "momentum"):
        if hasattr(new, name) and hasattr(old, name):
            setattr(new, name, getattr(old, name))
    if isinstance(new, _BatchNorm) and isinstance(old, _BatchNorm) and not old.track_running_stats:
        new.track_running_stats = False
        new.running_mean = new.running_var = new.num_batches_tracked = None


def _keep_affine(new: nn.Module, old: nn.Module, kept: bool, remarks: list[str]) -> None:
    had = isinstance(getattr(old, "weight", None), Tensor)
    if had:
        for name in _AFFINE:
            if isinstance(getattr(old, name, None), Tensor):
                _hand_over(new, old, name)
            elif isinstance(new, _BatchNorm | GroupNorm):
                new.register_parameter(name, None)
            elif isinstance(getattr(new, name, None), nn.Parameter):
                remarks.append(f"its {name} is new, it had none")
        return
    if isinstance(old, NoNorm) or isinstance(new, NoNorm | FrozenBatchNorm):
        return
    if kept and isinstance(new, _BatchNorm | GroupNorm):
        for name in _AFFINE:
            new.register_parameter(name, None)
        new.affine = False
        return
    remarks.append("the affine parameters are new, it had none")


def _hand_over(new: nn.Module, old: nn.Module, name: str) -> None:
    """The tensor itself where it is of the same kind, a parameter or a buffer; else its values."""
    value, current = getattr(old, name, None), getattr(new, name, None)
    if not isinstance(value, Tensor) or not isinstance(current, Tensor):
        return
    for table in ("_parameters", "_buffers"):
        if name in getattr(old, table) and name in getattr(new, table) and value.shape == current.shape:
            getattr(new, table)[name] = value
            return
    if value.numel() == current.numel():
        with torch.no_grad():
            current.copy_(value.reshape(current.shape))
