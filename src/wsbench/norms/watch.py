"""Find out, by running an example, which layers' outputs a normalization layer consumes."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Watched:
    """What an example showed."""

    consumers: dict[nn.Module, nn.Module] = field(default_factory=dict)
    """A layer to the normalization layer that was given its output."""
    reached: set[nn.Module] = field(default_factory=set)
    """Layers and normalization layers that ran."""
    inputs: dict[nn.Module, torch.Size] = field(default_factory=dict)
    """A normalization layer to the shape of its (last) input."""
    shared: set[nn.Module] = field(default_factory=set)
    """Layers that ran more than once, or whose output something else than one normalization layer used."""


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that read each of some memories."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.layout == torch.strided]
        for address in {t.untyped_storage().data_ptr() for t in inputs} & self.count.keys():
            self.count[address] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module's own mode back afterwards: no running statistic may move."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def watch(model: nn.Module, example: Any, layers: Collection[nn.Module], norms: Collection[nn.Module]) -> Watched:
    """Run ``model`` on ``example`` in evaluation mode and see whose output goes straight into a normalization layer.

    "Straight" is the same memory, untouched since the layer wrote it: a permutation or an identity (dropout in
    evaluation) in between does not matter, an activation, an addition or a concatenation does.

    Args:
        model: run once, without gradients; modes are restored and no statistic is updated.
        example: a tensor or list (the only argument), a tuple (positional) or a mapping (keyword arguments).
        layers: the layers whose outputs are watched for.
        norms: the normalization layers whose inputs are looked at.
    """
    seen = Watched()
    # The outputs are kept alive, so that an address is never that of a freed one.
    written: dict[int, tuple[nn.Module, Tensor, int]] = {}
    uses = _Uses()

    def on_output(layer: nn.Module, args: Any, output: Any) -> None:
        if layer in seen.reached:
            seen.shared.add(layer)
        seen.reached.add(layer)
        if isinstance(output, Tensor):
            written[output.untyped_storage().data_ptr()] = (layer, output, output._version)
            uses.count[output.untyped_storage().data_ptr()] = 0

    def on_input(norm: nn.Module, args: Sequence[Any]) -> None:
        if norm in seen.reached:
            seen.shared.add(norm)
        seen.reached.add(norm)
        if not args or not isinstance(args[0], Tensor):
            return
        seen.inputs[norm] = args[0].shape
        layer, output, version = written.get(args[0].untyped_storage().data_ptr(), (None, None, None))
        if layer is not None and output is not None and output._version == version:
            seen.consumers[layer] = norm

    hooks = [layer.register_forward_hook(on_output) for layer in layers]
    hooks += [norm.register_forward_pre_hook(on_input) for norm in norms]
    try:
        with _evaluation(model), torch.no_grad(), uses:
            output = _call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    for address in {t.untyped_storage().data_ptr() for t in tree_leaves(output) if isinstance(t, Tensor)}:
        if address in uses.count:
            uses.count[address] += 1
    seen.shared |= {layer for address, (layer, _, _) in written.items() if uses.count[address] != 1}
    return seen
