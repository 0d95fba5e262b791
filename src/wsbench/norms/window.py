"""The accumulation window: effective weights computed once per optimizer step instead of once per micro-step.

Between two optimizer steps the weights do not change, so the effective weight Ŵ(W) need not either. Inside a window it
is a detached leaf on which gradients gather; in the last micro-step layers compute with the live graph, and a hook adds
what gathered: dL/dW = J^T (g_1 + ... + g_N) instead of J^T g_1 + ... + J^T g_N. One ordinary backward leaves ordinary
gradients in ``.weight.grad``, so DDP's reducer, GradScaler, clipping and hooks see what they always see.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

from wsbench.norms.layer_window import LayerWindow, WindowError, changed
from wsbench.norms.layers import NormalizedLayer
from wsbench.norms.together import can_join, differ_together, first_differing, hand_on_together, open_together


class AccumulationWindow:
    """Computes the effective weights of a model once per optimizer step. Exact, not an approximation.

    A loop over micro-batches needs one line::

        window = AccumulationWindow(model)
        for step in range(steps):
            for i in range(n):
                with window.micro_step(last=i == n - 1):
                    loss = criterion(model(x[step, i]), y[step, i]) / n
                    loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    Enter ``micro_step`` inside ``torch.autocast``, so that the weights are cast once too. Under DDP the window is made
    for the module that DDP wraps (or DDP itself), and every micro-step but the last runs in ``no_sync()``, as it does
    without a window. The last micro-step may run one backward; the others any number.

    The window is used in training mode with gradients enabled; evaluation, copies and checkpoints do not see it. Any
    change of the weights invalidates it: an optimizer's step (fused or not), ``load_state_dict``, a swap for averaged
    weights. Until the last micro-step ``.weight.grad`` is not touched, and hooks on the parameters do not fire; zeroing
    gradients in the middle of a window takes :meth:`forget` too.

    Args:
        model: the model; its layers with a weight normalization are those there are now.
        simple_loop: the loop calls ``loss.backward()`` once in each micro-step, before its end, and changes weights in
            the optimizer's step alone: no ``torch.autograd.grad`` with respect to weights, no ``inputs=``, no
            ``functional_call``, no perturbation. Then gradients gather with less bookkeeping, and layers under
            ``torch.compile``, which cannot look at a weight's version, hold their weights too.
        together: compute layers of one fan-in as one matrix, in a window of a single micro-step, too: a tenth of the
            kernels, and all effective weights at once in memory, until the last micro-step ends. In a simple loop on
            one process only; by default there, where weights are on a GPU.
    """

    def __init__(self, model: nn.Module, simple_loop: bool = False, together: bool | None = None) -> None:
        if together and not simple_loop:
            raise WindowError("together=True takes a simple_loop=True: what it hands on is not seen before the end of "
                              "the last micro-step")  # fmt: skip
        for layer in model.modules():  # a window that is forgotten while it is open has gradients to hand on
            window = layer.attachments.window if isinstance(layer, NormalizedLayer) else None
            if window is not None and window.gathered:
                if window.changed():
                    raise WindowError(changed(window.name))
                window.flush()
        # DDP looks for unused parameters in what its module returns
        self._ddp = model if isinstance(model, DistributedDataParallel) else None
        self._root: nn.Module = model if self._ddp is None else self._ddp.module
        self.layers = [
            LayerWindow(n, m, simple_loop) for n, m in model.named_modules() if isinstance(m, NormalizedLayer)
        ]
        self._last = False
        self._simple_loop, self._together = simple_loop, together
        self._unseen: tuple[list[Sequence[LayerWindow]], list[Tensor]] | None = None
        reference = weakref.ref(self)

        def before(optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            window = reference()
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if window is not None and closure is None:  # a closure may still run the last micro-step
                window._require_nothing_left(optimizer)

        def after(optimizer: Optimizer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            window = reference()
            if window is not None:
                window._stepped(optimizer)

        # fused optimizers do not move a weight's version, so it is the step that says that weights have changed
        self._handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
        self._joins = False
        self._finalizer = weakref.finalize(self, _release, self._handles, self.layers)

    def __len__(self) -> int:
        """Layers with a weight normalization."""
        return len(self.layers)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of what holds a window has none

    @property
    def gathered(self) -> tuple[str, ...]:
        """Names of the layers whose gradients have not reached the parameters."""
        return tuple(window.name for window in self.layers if window.gathered)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-step.

        If it raises, what gathered so far is moved to ``.grad``, where it would be without a window, and the window is
        closed: go on accumulating, or zero the gradients and start again. (Not in the last micro-step under DDP, whose
        gradients a failure leaves half averaged: start again.)

        Args:
            last: whether it is the last before the optimizer's step.
        """
        self.begin(last)
        try:
            yield
        except BaseException as error:
            if (
                self._last and _processes() > 1
            ):  # DDP waits for this backward's gradients and would count others as such
                self.drop()
            try:
                self.flush()
            except RuntimeError as second:  # out of memory again, or weights changed: the first error is the one to see
                error.add_note(f"the gradients of this accumulation window are lost: {second}")
            raise
        self.end()

    def begin(self, last: bool) -> None:
        """Before the forward of a micro-step; see :meth:`micro_step`.

        Raises:
            WindowError: before the last one, a weight is not what gradients have gathered for.
        """
        self._last = last
        if not last and self._ddp is not None and self._ddp.require_backward_grad_sync:
            raise WindowError("DDP would average gradients that are not there yet: every micro-step but the last runs "
                              "in no_sync() of the DistributedDataParallel")  # fmt: skip
        if _processes() > 1 and not self._joins:
            self._joins = True
            self._handles.append(self._root.register_forward_hook(_JoinOutput(self)))
        try:
            together = self._are_together()
            closed = []
            for window in self.layers:
                if last and window.changed():
                    raise WindowError(changed(window.name))
                if window.begin(last and not (together and can_join(window))):
                    closed.append(window)
            if together:
                open_together(closed)
            else:
                for window in closed:
                    window.open()
            for window in self.layers:
                window.ready()
        except WindowError:
            self.drop()
            raise

    def _are_together(self) -> bool:
        """Whether layers are computed as one matrix, and the last micro-step is like any other until its end."""
        if not self._simple_loop or self._together is False or _processes() > 1:
            return False
        return bool(self._together) or any(window.layer.weight.device.type != "cpu" for window in self.layers)

    def end(self, look_later: bool = False) -> None:
        """After the backward of a micro-step.

        Args:
            look_later: whether weights have changed without a trace is computed, and not looked at, which would make
                the host wait for the device: :attr:`unseen` has it, for a loop that waits anyway later in the step.

        Raises:
            WindowError: a weight has changed without a trace (through ``.data``) since the window was opened; or under
                several processes, if a layer took no part in the last micro-step, and the model was not called as a
                whole, so that this could not be mended in time.
        """
        for window in self.layers:
            window.held = None
            if window.compiled:
                window.require_unmoved()
        if not self._last:
            return
        differing = self._differing(self.layers)
        if look_later:
            self._unseen = differing if differing[1] else None
        else:
            self._refuse(*differing)
        left = self.gathered
        if left and _processes() > 1:
            self.drop()
            raise WindowError(
                f"'{left[0]}' was not used in the last micro-step, and gradients have been averaged over processes "
                f"already; call the {type(self._root).__name__} that the window was made for, not its parts"
            )
        try:
            self._hand_on()
        finally:
            self.drop()

    def _join(self, output: Any) -> Any:
        """The model's output, connected with layers that it does not depend on but whose gradients have gathered.

        DDP needs them in the graph: what reaches a parameter after the backward is not averaged over processes.
        """
        if not self._last:
            return output
        waiting = [window for window in self.layers if window.gathered]
        if not waiting:
            return output
        reached = _ancestors([t for t in tree_leaves(output) if isinstance(t, Tensor)])
        missing = [window for window in waiting if reached.isdisjoint(window.nodes)]

        def joined(tensor: Any) -> Any:
            if not missing or not isinstance(tensor, Tensor) or not tensor.requires_grad:
                return tensor
            return _Join.apply(tensor, missing, *(window.handed_on() for window in missing))

        return tree_map(joined, output)

    def flush(self) -> None:
        """Move what gathered to ``.grad``; the window stays open.

        For weights that are to be changed in its middle, and for layers that the last micro-step did not use.

        Raises:
            WindowError: a weight has changed already.
        """
        self._require_no_trace(self.layers)
        try:
            self._hand_on()
        except BaseException:
            self.drop()
            raise

    def _hand_on(self) -> None:
        left = [window for window in self.layers if window.gathered]
        for window in left:
            if window.changed():
                raise WindowError(changed(window.name))
        if self._are_together():
            hand_on_together(left)
        else:
            for window in left:
                window.flush()

    def forget(self) -> None:
        """Zero what gathered, as ``optimizer.zero_grad()`` zeroes what is in ``.grad``; the window stays open."""
        for window in self.layers:
            window.take()

    def drop(self) -> None:
        """Close the window and forget what gathered."""
        for window in self.layers:
            window.drop()

    def close(self) -> None:
        """:meth:`drop`, and stop looking at optimizers."""
        self._finalizer()

    @property
    def unseen(self) -> Tensor | None:
        """Whether weights of the window that has just ended were changed without a trace, bool (any number,).

        Of ``end(look_later=True)``; whoever finds a True in it calls :meth:`refuse_unseen`.
        """
        return None if self._unseen is None else _all(self._unseen[1])

    def refuse_unseen(self) -> None:
        """WindowError if :attr:`unseen` holds a True; forgets it."""
        unseen, self._unseen = self._unseen, None
        if unseen is not None:
            self._refuse(*unseen)

    @staticmethod
    def _differing(windows: Sequence[LayerWindow]) -> tuple[list[Sequence[LayerWindow]], list[Tensor]]:
        """Of the layers that hold weights, but for those that are known to have changed, whether any bit differs."""
        return differ_together(
            [window for window in windows if window.stamps and not window.stale and not window.moved()]
        )

    def _require_no_trace(self, windows: Sequence[LayerWindow]) -> None:
        self._refuse(*self._differing(windows))

    def _refuse(self, groups: Sequence[Sequence[LayerWindow]], flags: Sequence[Tensor]) -> None:
        if not flags or not bool(_all(flags).any()):
            return
        name = first_differing(groups, flags)
        self.drop()
        raise WindowError(
            f"the weight of '{name}' was written inside an accumulation window in a way that leaves no trace "
            "(through .data), so gradients of this optimizer step may be wrong: zero them and start again; write it "
            "under torch.no_grad() instead, or call flush() of the window before"
        )

    def _of(self, optimizer: Optimizer) -> list[LayerWindow]:
        """The windows that hold something and whose weights the optimizer has."""
        held = [s for s in self.layers if s.stamps]
        if not held:
            return []
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [s for s in held if any(id(stamp.parameter) in optimized for stamp in s.stamps)]

    def _require_nothing_left(self, optimizer: Optimizer) -> None:
        own = self._of(optimizer)
        left = [window.name for window in own if window.gathered]
        if left:
            raise WindowError(
                f"the optimizer steps while gradients of '{left[0]}' wait in an accumulation window; run the last "
                "micro-step with last=True, or call flush() before gradients are unscaled, clipped or used"
            )
        self._require_no_trace(own)  # inside the last micro-step, before the step moves every version

    def _stepped(self, optimizer: Optimizer) -> None:
        touched = self._of(optimizer)
        left = [window.name for window in touched if window.gathered]
        for window in touched:
            window.drop()
        if left:
            raise WindowError(f"the optimizer has stepped without the gradients of '{left[0]}', which waited in an "
                              "accumulation window; run the last micro-step with last=True")  # fmt: skip


def _all(flags: Sequence[Tensor]) -> Tensor:
    """All flags as one vector, on the device of the first: a model may be split over several."""
    return torch.cat([flag.flatten().to(flags[0].device) for flag in flags])


def _processes() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def _release(handles: Sequence[Any], windows: Sequence[LayerWindow]) -> None:
    """Also when a window is forgotten while it is open: no layer may be left with what it held."""
    for handle in handles:
        handle.remove()
    for window in windows:
        window.detach()


def _ancestors(outputs: Sequence[Tensor]) -> set[Any]:
    """Nodes of the graph behind them."""
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return seen


class _JoinOutput:
    """The hook behind the model's forward; a copy of the model has one that does nothing."""

    def __init__(self, window: AccumulationWindow | None = None) -> None:
        self._window = None if window is None else weakref.ref(window)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        window = None if self._window is None else self._window()
        return output if window is None else window._join(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _JoinOutput, ()


class _Join(torch.autograd.Function):
    """An output, with the gathered gradients of ``windows`` as the gradients of their live weights.

    Of several outputs the one whose backward comes first hands them over.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, windows: list[LayerWindow], *live: Tensor) -> Tensor:
        ctx.held = [window.leaf for window in windows]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # a use's own backward adds what has gathered, where it is wanted: only an input's gradient may be asked for
        return (grad, None, *(None if held is None else torch.zeros_like(held) for held in ctx.held))
