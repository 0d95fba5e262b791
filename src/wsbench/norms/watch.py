"""Find out, by running an example, which layers' outputs a normalization layer consumes."""

import contextlib
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsbench.norms.behind import ACTIVATION_MODULES, ACTIVATION_OPERATIONS, Passing, memory_of


@dataclass
class Watched:
    """What an example showed."""

    consumers: dict[nn.Module, nn.Module] = field(default_factory=dict)
    """A layer to the normalization layer that was given its output, all of it."""
    reached: set[nn.Module] = field(default_factory=set)
    """Layers and normalization layers that ran."""
    inputs: dict[nn.Module, torch.Size] = field(default_factory=dict)
    """A normalization layer to the shape of its (last) input."""
    shared: set[nn.Module] = field(default_factory=set)
    """Layers that ran more than once, or whose output something else than one normalization layer used."""
    elsewhere: dict[nn.Module, str] = field(default_factory=dict)
    """A layer to what else its forward does than to hand its weight to its operation and return what that gives."""
    behind: "Behind" = field(default_factory=lambda: Behind())
    """What stands behind normalization layers."""


class Behind:
    """Which activation is given the output of each normalization layer, in each of its calls."""

    def __init__(self) -> None:
        self.found: dict[nn.Module, list[nn.Module | str | None]] = {}
        """A normalization layer to, for each call, the activation module that read its output first, the name of an
        operation that is an activation and did, or None; :data:`ELSEWHERE` where something else read it, too."""
        self.always: dict[nn.Module, bool] = {}
        """An activation to whether each of its inputs was a normalization layer's output."""
        self.interrupted: set[nn.Module] = set()
        """Activations that had another input between a normalization layer and the call for its output."""
        #: what lies in a memory: norm, number of its call, output, time, and the output's version then
        self._calls: dict[int, tuple[nn.Module, int, Tensor, int, int]] = {}
        self._reads: dict[int, list[nn.Module | str]] = {}
        self._inside: list[nn.Module] = []
        self._since: dict[nn.Module, list[int]] = {}
        self._time = 0

    def returned(self, norm: nn.Module, output: Any) -> None:
        """A normalization layer has returned ``output``."""
        self._time += 1
        calls = self.found.setdefault(norm, [])
        calls.append(None)
        if isinstance(output, Tensor):
            self._calls[memory_of(output)] = (norm, len(calls) - 1, output, self._time, output._version)
            self._reads[memory_of(output)] = []

    def enters(self, activation: nn.Module, given: Any) -> None:
        """An activation is called."""
        self._time += 1
        call = self._unchanged(memory_of(given)) if isinstance(given, Tensor) else None
        if call is not None and (self._reads[memory_of(given)] or given.numel() != call[2].numel()):
            self._also_elsewhere(call)  # it was read before, or this is a part of it
            call = None
        follows = call is not None
        self.always[activation] = self.always.get(activation, True) and follows
        if follows:
            assert call is not None
            norm, number, output, time, _ = call
            self.found[norm][number] = activation
            self._reads[memory_of(output)].append(activation)
            if any(t > time for t in self._since.get(activation, ())):
                self.interrupted.add(activation)
        self._since.setdefault(activation, []).append(self._time)
        self._inside.append(activation)

    def leaves(self) -> None:
        """The activation has returned."""
        self._inside.pop()

    def reads(self, operation: str, tensors: Sequence[Tensor]) -> None:
        """An operation outside of activation modules reads tensors."""
        if self._inside:
            return
        for memory in {memory_of(t) for t in tensors} & self._calls.keys():
            call = self._unchanged(memory)
            if call is None:
                continue
            norm, number = call[:2]
            activates, reads = operation.rstrip("_") in ACTIVATION_OPERATIONS, self._reads[memory]
            if not reads and activates:
                self.found[norm][number] = operation.removeprefix("aten::").rstrip("_")
            elif activates or self.found[norm][number] is not None:
                self._also_elsewhere(call)
            reads.append(operation)

    def escapes(self, memory: int) -> None:
        """What lies in a memory is an output of the network."""
        call = self._unchanged(memory)
        if call is not None and self.found[call[0]][call[1]] is not None:
            self._also_elsewhere(call)

    def _unchanged(self, memory: int) -> tuple[nn.Module, int, Tensor, int, int] | None:
        """The call whose output still lies in a memory as the norm returned it."""
        call = self._calls.get(memory)
        return call if call is not None and call[2]._version == call[4] else None

    def _also_elsewhere(self, call: tuple[nn.Module, int, Tensor, int, int]) -> None:
        norm, number = call[:2]
        if not isinstance(self.found[norm][number], Passing):  # behind which everything sees the same
            self.found[norm][number] = ELSEWHERE

    def only_behind(self, activation: nn.Module, norms: Collection[nn.Module]) -> bool:
        """Whether each input of an activation was the output of one of these normalization layers."""
        others = [n for n, calls in self.found.items() if activation in calls and n not in norms]
        return self.always[activation] and not others

    def update(self, more: "Behind", reached: Collection[nn.Module]) -> None:
        """Add what another run showed of layers that are not ``reached``."""
        for norm, calls in more.found.items():
            if norm not in reached:
                self.found[norm] = calls
        for activation, always in more.always.items():
            self.always[activation] = self.always.get(activation, True) and always
        self.interrupted |= more.interrupted


#: a normalization layer's output that goes to an activation and elsewhere
ELSEWHERE = "an activation and elsewhere"


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that read each of some memories."""

    def __init__(self, behind: "Behind") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: dict[int, int] = {}
        self._behind = behind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.layout == torch.strided]
        for memory in {memory_of(t) for t in inputs} & self.count.keys():
            self.count[memory] += 1
        if not func.is_view:
            self._behind.reads(func.name().partition(".")[0], inputs)
        return func(*args, **(kwargs or {}))


_OPERATIONS = {
    f for m in (torch, F) for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                                       "conv_transpose3d") for f in (getattr(m, name),)
} | {F.linear}  # fmt: skip


class Weights(TorchFunctionMode):
    """Sees which operations are given the weights of some layers."""

    def __init__(self, layers: Collection[nn.Module], seen: Watched) -> None:
        super().__init__()
        self._of = {id(layer._parameters["weight"]): layer for layer in layers if "weight" in layer._parameters}
        self._seen = seen
        #: a layer to what its operation has given since the layer was looked at last
        self.given: dict[nn.Module, tuple[Any, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(isinstance(t, Tensor) for t in tree_leaves(out)):
            return out
        for tensor in tree_leaves((args, kwargs)):
            layer = self._of.get(id(tensor)) if isinstance(tensor, Tensor) else None
            if layer is None or out is tensor:  # a cast to the dtype that it has
                continue
            if func not in _OPERATIONS or layer in self.given:
                self._seen.elsewhere[layer] = f"its weight goes through '{getattr(func, '__name__', str(func))}'"
            else:
                self.given[layer] = out, out._version
        return out

    def returned(self, layer: nn.Module, output: Any) -> None:
        """A layer has returned ``output``."""
        given, version = self.given.pop(layer, (None, 0))
        same = given is not None and isinstance(output, Tensor) and memory_of(output) == memory_of(given)
        if not same or output._version != version:
            self._seen.elsewhere.setdefault(layer, "it does more than its operation")


@contextlib.contextmanager
def _modes(model: nn.Module, training: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Every module in the mode that ``training`` says, and in its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = training(module)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _untouched_tensors(model: nn.Module, also_parameters: bool) -> Iterator[None]:
    """Whatever is written to a buffer, or to a parameter, is taken back; also an assignment to its name."""
    tables = [(module, dict(module._buffers)) for module in model.modules()]
    kept: list[Tensor] = [b for b in model.buffers() if not b.is_meta]
    if also_parameters:
        kept += [p for p in model.parameters() if not p.is_meta]
    values = [tensor.detach().clone() for tensor in kept]
    try:
        yield
    finally:
        for module, table in tables:
            for name, buffer in table.items():
                module._buffers[name] = buffer
        with torch.no_grad():
            for tensor, value in zip(kept, values, strict=True):
                if tensor.layout != torch.strided or not torch.equal(tensor, value):
                    tensor.copy_(value)


@contextlib.contextmanager
def _untouched_generators(model: nn.Module) -> Iterator[None]:
    """Torch's, Python's and NumPy's random numbers go on where they were."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    numpy: Any = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def call(model: nn.Module, example: Any) -> Any:
    """The model's output for an example: a tensor or list, a tuple (positional) or a mapping (keyword arguments)."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


@contextlib.contextmanager
def undisturbed(model: nn.Module, training: Callable[[nn.Module], bool] = lambda module: False) -> Iterator[None]:
    """Without gradients, in evaluation or as ``training`` says, leaving modes, buffers and generators as they were."""
    in_training = any(training(module) for module in model.modules())
    with _modes(model, training), _untouched_tensors(model, in_training), _untouched_generators(model), torch.no_grad():
        yield


def _tensors_in(output: Any, depth: int = 4) -> Iterator[Tensor]:
    """Tensors of an output: in containers, dataclasses and other objects' attributes."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            yield from _tensors_in(list(vars(leaf).values()), depth - 1)


def initialize(model: nn.Module, example: Any) -> None:
    """Give lazy layers their weights."""
    with _modes(model, lambda module: False), torch.no_grad():
        call(model, example)


def watch(
    model: nn.Module,
    example: Any,
    layers: Collection[nn.Module],
    norms: Collection[nn.Module],
    training: Callable[[nn.Module], bool] = lambda module: False,
) -> Watched:
    """Run ``model`` on ``example`` in evaluation mode and see whose output goes straight into a normalization layer.

    "Straight" is the same memory, all of it, untouched since the layer wrote it: a permutation or an identity (dropout
    in evaluation) in between does not matter; an activation, an addition, a concatenation or a part of it does.

    Args:
        model: run once, without gradients; modes, buffers and random generators are restored.
        example: a tensor or list (the only argument), a tuple (positional) or a mapping (keyword arguments).
        layers: the layers whose outputs are watched for.
        norms: the normalization layers whose inputs are looked at.
        training: which modules run in training mode.
    """
    seen = Watched()
    # The outputs are kept alive, so that a memory is never that of a freed one.
    written: dict[int, tuple[nn.Module, Tensor, int]] = {}
    uses, weights = _Uses(seen.behind), Weights(layers, seen)

    def on_output(layer: nn.Module, args: Any, output: Any) -> None:
        if layer in seen.reached:
            seen.shared.add(layer)
        seen.reached.add(layer)
        weights.returned(layer, output)
        if isinstance(output, Tensor):
            written[memory_of(output)] = (layer, output, output._version)
            uses.count[memory_of(output)] = 0

    def on_input(norm: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if norm in seen.reached:
            seen.shared.add(norm)
        seen.reached.add(norm)
        given = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(given, Tensor):
            return
        seen.inputs[norm] = given.shape
        layer, output, version = written.get(memory_of(given), (None, None, None))
        if layer is None or output is None or output._version != version or given.numel() != output.numel():
            return
        seen.consumers[layer] = norm

    def before_activation(activation: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        seen.behind.enters(activation, args[0] if args else next(iter(kwargs.values()), None))

    hooks = [layer.register_forward_hook(on_output) for layer in layers]
    hooks += [norm.register_forward_pre_hook(on_input, with_kwargs=True) for norm in norms]
    hooks += [norm.register_forward_hook(lambda norm, args, out: seen.behind.returned(norm, out)) for norm in norms]
    for activation in (m for m in model.modules() if isinstance(m, ACTIVATION_MODULES)):
        hooks.append(activation.register_forward_pre_hook(before_activation, with_kwargs=True))
        hooks.append(activation.register_forward_hook(lambda *_: seen.behind.leaves()))
    try:
        with undisturbed(model, training), uses, weights:
            output = call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    for memory in {memory_of(t) for t in _tensors_in(output)}:
        seen.behind.escapes(memory)
        if memory in uses.count:
            uses.count[memory] += 1
    seen.shared |= {layer for memory, (layer, _, _) in written.items() if uses.count[memory] != 1}
    return seen


def is_container(module: nn.Module) -> bool:
    """Whether a module has children: what trains where leaves, which would move statistics, stay in evaluation."""
    return any(True for _ in module.children())


def also_in_training(seen: Watched, model: nn.Module, example: Any, layers: Collection[nn.Module],
                     norms: Collection[nn.Module]) -> str | None:  # fmt: skip
    """Add what only training reaches, as auxiliary heads are: containers train, leaves stay in evaluation.

    Returns:
        What kept the network from running so, if it could not; ``seen`` is as it was then.
    """
    try:
        more = watch(model, example, layers, norms, is_container)
    except Exception as error:  # noqa: BLE001  # whatever a network raises that wants targets, or two images
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for layer, norm in more.consumers.items():
        if layer not in seen.reached:
            seen.consumers[layer] = norm
    for norm, shape in more.inputs.items():
        seen.inputs.setdefault(norm, shape)
    seen.behind.update(more.behind, seen.reached)
    seen.elsewhere |= more.elsewhere
    seen.reached |= more.reached
    return None
