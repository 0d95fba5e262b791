"""Who else is looking at an operation (a compiler, an exporter, a function transform), and in which precision.

The private names of torch that this takes are all here; tests/norms/test_tracing.py fails by name where one goes.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compiling() -> bool:
    """True where torch.compile looks (and no exporter): what it sees it may run many times."""
    return bool(torch.compiler.is_compiling()) and not bool(torch.compiler.is_exporting())


def transformed() -> bool:
    """True inside a transform of torch.func (grad, vjp, jvp, vmap and what is made of them)."""
    # there is no public way to ask; autograd.Function.apply asks the same
    return bool(torch._C._are_functorch_transforms_active())


def traced() -> bool:
    """True under torch.compile, torch.export, torch.jit.trace and torch.func, which want plain operations.

    A compiler fuses them, an exporter names them, a transform has rules for them. Functions with a backward of their
    own stand for themselves everywhere else.
    """
    return bool(torch.compiler.is_compiling()) or bool(torch._C._get_tracing_state()) or transformed()


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off for a tensor's device, where there is such a thing (the meta device has none)."""
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
