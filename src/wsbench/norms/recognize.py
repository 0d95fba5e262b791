"""What is a normalization layer, whoever wrote it, and how much of a network's code goes past a layer's class."""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from wsbench.norms.layers import NormalizedLayer
from wsbench.norms.registry import ACTIVATIONS

#: Normalization layers by class name, of libraries that norms/ does not import: channels in dimension 1, affine.
FOREIGN_NORMS = ("FrozenBatchNorm2d", "LayerNorm2d")

#: Layers that normalize and activate in one formula: taking the norm out would take the activation out, too.
_WITH_ACTIVATION = re.compile(r"evonorm|filterresponsenorm|inplaceabn", re.IGNORECASE)

_TORCH_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)


def _registered() -> tuple[type, ...]:
    return tuple(method.factory for method in ACTIVATIONS.values() if isinstance(method.factory, type))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer that the factory knows."""
    return isinstance(module, (*_TORCH_NORMS, *_registered())) or type(module).__name__ in FOREIGN_NORMS


def looks_like_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer that the factory does not know, by its name and what it holds."""
    if is_norm(module) or isinstance(module, NormalizedLayer) or "norm" not in type(module).__name__.lower():
        return False
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.Embedding):
        return False
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    inside = [m for m in module.modules() if m is not module]
    return bool(own) and not any(isinstance(p, Tensor) for m in inside for p in m.parameters(recurse=False))


def why_left(norm: nn.Module) -> str:
    """Why a layer that :func:`looks_like_norm` stays as it is."""
    name = type(norm).__name__
    if _WITH_ACTIVATION.search(name):
        return f"note: {name} brings its own activation, so nothing can take its place"
    return f"note: {name} is not a normalization layer that the factory knows"


def has_own_forward(module: nn.Module) -> bool:
    """Whether ``forward`` is an attribute of this one object, so that its class says nothing of what runs."""
    return "forward" in module.__dict__


def channels_of(norm: nn.Module) -> int | None:
    """Channels of a normalization layer that works on dimension 1; None for any other."""
    if type(norm).__name__ in FOREIGN_NORMS:
        return int(norm.weight.numel()) if isinstance(norm.weight, Tensor) else None
    if isinstance(norm, nn.LayerNorm):
        return None
    channels: Any = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    return int(channels)


def fused_activation(norm: nn.Module) -> list[nn.Module]:
    """What a timm NormAct layer does after normalizing, also where a norm that activates took its place."""
    own = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(m, nn.Module)]
    return own + list(getattr(norm, "_replaced", ()))


def only_normalizes(norm: nn.Module, shape: torch.Size | None) -> bool:
    """Whether a layer computes what torch's or a registered one does (and its fused activation), and nothing beyond.

    A forward of its own is run beside that of its ancestor, or beside the formula of a layer that is known by its name,
    in training and in evaluation, on a copy with other values.

    Args:
        norm: a layer that :func:`is_norm`.
        shape: of its input, if that is known.
    """
    registered, after = _registered(), fused_activation(norm)
    if type(norm).__call__ is not nn.Module.__call__:
        return False
    inside = {id(m) for module in after for m in module.modules()} | {id(norm)}
    if any(id(m) not in inside for m in norm.modules()):
        return False
    if type(norm) in registered:
        return True
    reference = _reference(norm)
    if reference is None:
        return False
    if not after and type(norm).forward is reference:
        return True
    sizes = [tuple(shape)] if shape is not None and 0 not in shape else []
    sizes += [(3, channels_of(norm) or 1, *rest) for rest in ((3, 3), (3,), (3, 3, 3), ())]
    return any(_same_forward(norm, reference, size) for size in sizes)


def _reference(norm: nn.Module) -> Callable[..., Tensor] | None:
    """What a layer computes by its ancestor, or by its name, without an activation."""
    name = type(norm).__name__
    if name == "FrozenBatchNorm2d":
        return _frozen
    if name == "LayerNorm2d":
        return _over_channels
    registered = _registered()
    classes: list[Any] = [c for c in type(norm).__mro__ if c in registered or c.__module__.startswith("torch.nn.")]
    return next((c.forward for c in classes if "forward" in vars(c) and c is not nn.Module), None)


def _frozen(norm: Any, x: Tensor) -> Tensor:
    w, b, mean, var = (t.view(1, -1, 1, 1) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    out: Tensor = (x - mean) * (var + norm.eps).rsqrt() * w + b
    return out


def _over_channels(norm: Any, x: Tensor) -> Tensor:
    w, b = (t.view(1, -1, 1, 1) for t in (norm.weight, norm.bias))
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    out: Tensor = (x - mean) * (var + norm.eps).rsqrt() * w + b
    return out


@torch.no_grad()
def _same_forward(norm: nn.Module, reference: Callable[..., Tensor], size: tuple[int, ...]) -> bool:
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(size, generator=generator, device="cpu")

    def expected(probe: nn.Module, x: Tensor) -> Tensor:
        out = reference(probe, x)
        for module in fused_activation(probe):
            out = module(out)
        return out

    for training in (True, False):
        outputs: list[Any] = []
        for forward in (type(norm).forward, expected):
            probe = copy.deepcopy(norm).to_empty(device="cpu").float().train(training)
            generator.manual_seed(1)
            for tensor in (*probe.parameters(), *probe.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator, device="cpu") + 0.5)
                else:
                    tensor.zero_()
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(2)
                    outputs.append((forward(probe, x.clone()), *probe.buffers()))
            except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
                # a class with arguments, shapes or attributes of its own: not the forward that it is compared with
                return False
        for a, b in zip(*outputs, strict=True):
            if not isinstance(a, Tensor) or a.shape != b.shape or not torch.allclose(a, b, rtol=1e-4, atol=1e-4):
                return False
    return True
