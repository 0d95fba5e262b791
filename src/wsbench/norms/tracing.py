"""Who else is looking at an operation (a compiler, an exporter, a function transform), and in which precision.

The private names of torch that this takes are all here; tests/test_private_names.py fails by name where one goes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.autograd.forward_ad
import torch.fx
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge


def compiling() -> bool:
    """True where torch.compile looks (and no exporter): what it sees it may run many times."""
    return bool(torch.compiler.is_compiling()) and not bool(torch.compiler.is_exporting())


def transformed() -> bool:
    """True inside a transform of torch.func (grad, vjp, jvp, vmap and what is made of them), and in forward mode."""
    # there is no public way to ask for either; autograd.Function.apply asks the first
    return bool(torch._C._are_functorch_transforms_active()) or torch.autograd.forward_ad._current_level >= 0


def traced() -> bool:
    """True under torch.compile, torch.export, torch.jit.trace and torch.func, which want plain operations.

    A compiler fuses them, an exporter names them, a transform has rules for them. Functions with a backward of their
    own stand for themselves everywhere else.
    """
    return bool(torch.compiler.is_compiling()) or bool(torch._C._get_tracing_state()) or transformed()


def accumulates(parameters: Sequence[Tensor], needs: Sequence[bool]) -> bool:
    """Whether the backward that is running adds to ``.grad`` of these parameters.

    torch.autograd.grad does not, nor does a backward that has other ``inputs``.
    """
    first = next(p for p, need in zip(parameters, needs, strict=True) if need)
    if not first.requires_grad:
        return False
    try:
        # there is no public way to ask; it refuses to answer for a leaf under torch.autograd.grad
        return bool(torch._C._will_engine_execute_node(get_gradient_edge(first).node))
    except RuntimeError:
        return False


def as_leaf(module: nn.Module, *inputs: Any) -> Any:
    """The call of a module as one node of the torch.fx graph that is being traced; None where none is.

    So it stays a module of the graph, in whose mode it runs, and a tracer need not follow what it asks of shapes.
    """
    first = inputs[0]
    if not isinstance(first, torch.fx.Proxy):
        return None
    tracer: Any = first.tracer
    given = tuple(i for i in inputs if i is not None)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), given, {})


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off for a tensor's device, where there is such a thing (the meta device has none)."""
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
