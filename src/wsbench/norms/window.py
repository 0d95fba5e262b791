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

from wsbench.norms.layers import NormalizedLayer


class WindowError(RuntimeError):
    """A window that cannot give the exact gradient; the message names the layer and what to do."""


def _autocast_dtype(weight: Tensor) -> torch.dtype:
    """What autocast turns a convolution's weight into; float64 is left alone by it."""
    device = weight.device.type
    if weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return weight.dtype
    return torch.get_autocast_dtype(device)


class _Share:
    """One layer's share of a window."""

    def __init__(self, name: str, layer: NormalizedLayer) -> None:
        self.name, self.layer = name, layer
        self.leaf: Tensor | None = None
        self.live: Tensor | None = None
        self.total: Tensor | None = None
        self.uses = 0
        self.opened = False
        self.signature: tuple[Any, ...] = ()
        self.samples: tuple[Tensor, ...] = ()

    @property
    def gathered(self) -> bool:
        """Whether there are gradients that have not reached the parameters."""
        return self.total is not None or (self.leaf is not None and self.leaf.grad is not None)

    def take(self) -> Tensor | None:
        """The gradient that gathered, and forget it."""
        total, self.total = self.total, None
        if self.leaf is not None and self.leaf.grad is not None:
            assert total is None
            total, self.leaf.grad = self.leaf.grad, None
        return total

    def drop(self) -> None:
        """Forget everything; the layer computes for itself again."""
        self.leaf = self.live = self.total = None
        self.layer._held = self.layer._through = None

    def _signature(self) -> tuple[Any, ...]:
        return tuple((id(p), p._version, p.data_ptr(), p.requires_grad) for p in self.layer.normalized_parameters)

    def _compute(self) -> Tensor:
        with torch.enable_grad():
            return self.layer.effective_weight()

    def _open(self, live: Tensor) -> None:
        dtype = _autocast_dtype(live)
        leaf = live.detach().to(dtype).requires_grad_(live.requires_grad)
        if dtype != live.dtype and leaf.requires_grad:
            # many small gradients in half precision: their sum is kept in float32
            leaf.register_post_accumulate_grad_hook(self._widen)  # type: ignore[no-untyped-call]
        self.leaf, self.live, self.opened = leaf, live if dtype == live.dtype else None, True
        self.signature = self._signature()
        # .data can be written without moving the version: one input channel of every filter is remembered
        self.samples = tuple(p.detach()[:, 0].clone() for p in self.layer.normalized_parameters)

    def _widen(self, leaf: Tensor) -> None:
        assert leaf.grad is not None
        if self.total is None:
            self.total = leaf.grad.to(self.layer.weight.dtype)
        else:
            self.total.add_(leaf.grad)
        leaf.grad = None

    def _renew(self) -> None:
        """Hold the weight as it is now; WindowError if it is another than the one that gradients gathered on."""
        now = self._compute()
        if not self.gathered:
            self._open(now)
            return
        held = self.live if self.leaf is None else self.leaf
        same_kind = held is not None and (held.device, held.requires_grad) == (now.device, now.requires_grad)
        if held is None or not same_kind or bool(_differ(now.to(held.dtype), held)):
            raise WindowError(_changed(self.name))
        self.live, self.signature = None, self._signature()  # swapped and swapped back

    def begin(self) -> None:
        """Let the layer compute with a leaf."""
        if not self.layer.training:
            return
        if self.leaf is None or self.signature != self._signature():
            self._renew()
        elif self._needs_gradient and not self.gathered and bool(self.differs()):
            self.touched()  # nothing has gathered on the old one, so the new one is taken
        if self.layer._held is not self.leaf:  # setting a module's attribute takes longer than all of the rest
            self.layer._held, self.layer._through = self.leaf, None

    def begin_last(self) -> None:
        """Let the layer compute with the live graph, to whose gradient what gathered is added."""
        if self.leaf is None and not (self.opened and self.layer.training):
            if self.layer._held is not None:
                self.layer._held = self.layer._through = None
            return
        # a window of one micro-step, behind longer ones, runs as their last: a compiled layer has seen that
        if self.leaf is not None and self.signature != self._signature():
            self._renew()
        live = self._compute() if self.live is None else self.live
        self.total, self.leaf = self.take(), None
        self.layer._held = self.live = live
        self.uses = 0
        if live.requires_grad:
            self.layer._through = self._through
            live.register_hook(self._add)  # type: ignore[no-untyped-call]  # for a layer that is compiled

    def _add(self, grad: Tensor) -> Tensor:
        total = self.take()  # taken: a second backward adds nothing
        if total is None:
            return grad
        return grad + total if torch.is_grad_enabled() else total.add_(grad)

    def _through(self, live: Tensor) -> Tensor:
        through: Tensor = _Through.apply(live, self)
        return through

    def used_up(self, grad: Tensor) -> Tensor:
        """A use's gradient, with what gathered; behind the last use the effective weight is let go."""
        self.uses -= 1
        total = self._add(grad)
        if self.uses == 0:
            self.live = self.layer._held = self.layer._through = None
        return total

    def touched(self) -> None:
        """The weight was written in a way that its version does not show."""
        if self.gathered or not self._needs_gradient:
            raise WindowError(_changed(self.name))
        self._open(self._compute())

    @property
    def _needs_gradient(self) -> bool:
        return self.leaf is not None and self.leaf.requires_grad

    def differs(self) -> Tensor:
        """Whether the remembered input channel has changed, 0-d."""
        now = (p.detach()[:, 0] for p in self.layer.normalized_parameters)
        changed = [_differ(a, b) for a, b in zip(now, self.samples, strict=True)]
        return changed[0] if len(changed) == 1 else torch.stack(changed).any()


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Whether two tensors differ in any bit, 0-d: a NaN is equal to itself."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return (a.detach().view(bits) != b.detach().view(bits)).any()


def _changed(name: str) -> str:
    return (
        f"the weight of '{name}' changed inside an accumulation window, after gradients had gathered for what it was; "
        "call flush() of the window before weights are changed, moved or frozen"
    )


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
    """

    def __init__(self, model: nn.Module) -> None:
        # DDP looks for unused parameters in what its module returns
        self._root = model.module if isinstance(model, DistributedDataParallel) else model
        self._shares = [_Share(name, m) for name, m in model.named_modules() if isinstance(m, NormalizedLayer)]
        self._last = False
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
        self._finalizer = weakref.finalize(self, _release, self._handles, self._shares)

    def __len__(self) -> int:
        """Layers with a weight normalization."""
        return len(self._shares)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of what holds a window has none

    @property
    def gathered(self) -> tuple[str, ...]:
        """Names of the layers whose gradients have not reached the parameters."""
        return tuple(share.name for share in self._shares if share.gathered)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-step.

        If it raises, what gathered so far is moved to ``.grad``, where it would be without a window, and the window is
        closed: go on accumulating, or zero the gradients and start anew. (Not in the last micro-step under DDP, whose
        gradients a failure leaves half averaged: start anew.)

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
            WindowError: a weight changed after gradients had gathered for what it was.
        """
        self._last = last
        if _processes() > 1 and not self._joins:
            self._joins = True
            self._handles.append(self._root.register_forward_hook(_JoinOutput(self)))
        try:
            if last:
                self._require_untouched()
            for share in self._shares:
                if last:
                    share.begin_last()
                else:
                    share.begin()
        except WindowError:
            self.drop()
            raise

    def end(self) -> None:
        """After the backward of a micro-step.

        Raises:
            WindowError: under several processes, if a layer took no part in the last micro-step, and the model was not
                called as a whole, so that this could not be mended in time.
        """
        if not self._last:
            return
        left = self.gathered
        if left and _processes() > 1:
            self.drop()
            raise WindowError(
                f"'{left[0]}' was not used in the last micro-step, and gradients have been averaged over processes "
                f"already; call the {type(self._root).__name__} that the window was made for, not its parts"
            )
        self.flush()

    def _join(self, output: Any) -> Any:
        """The model's output, connected with layers that it does not depend on but whose gradients have gathered.

        DDP needs them in the graph: what reaches a parameter after the backward is not averaged over processes.
        """
        if not self._last:
            return output
        waiting = [share for share in self._shares if share.gathered and share.live is not None]
        if not waiting:
            return output
        reached = _ancestors([t for t in tree_leaves(output) if isinstance(t, Tensor)])
        missing = [share for share in waiting if share.live is not None and share.live.grad_fn not in reached]

        def joined(tensor: Any) -> Any:
            if not missing or not isinstance(tensor, Tensor) or not tensor.requires_grad:
                return tensor
            return _Join.apply(tensor, missing, *(share.live for share in missing))

        return tree_map(joined, output)

    def flush(self) -> None:
        """Move what gathered to ``.grad`` and close the window.

        For weights that are to be changed in its middle, and for layers that the last micro-step did not use.

        Raises:
            WindowError: a weight has changed already.
        """
        left = [share for share in self._shares if share.gathered]
        try:
            for share in left:
                if share.signature != share._signature():
                    share._renew()
            weights = [share._compute() for share in left]
            gradients = [share.take() for share in left]
        finally:
            self.drop()
        if weights:
            torch.autograd.backward(weights, gradients)

    def forget(self) -> None:
        """Zero what gathered, as ``optimizer.zero_grad()`` zeroes what is in ``.grad``; the window stays open."""
        for share in self._shares:
            share.take()

    def drop(self) -> None:
        """Close the window and forget what gathered."""
        for share in self._shares:
            share.drop()

    def close(self) -> None:
        """:meth:`drop`, and stop looking at optimizers."""
        self._finalizer()

    def _require_untouched(self) -> None:
        held = [share for share in self._shares if share.leaf is not None]
        if not held or not bool(torch.stack([share.differs() for share in held]).any()):
            return
        for share in held:
            if bool(share.differs()):
                share.touched()

    def _of(self, optimizer: Optimizer) -> list[_Share]:
        """The shares that hold something and whose weights the optimizer has."""
        held = [s for s in self._shares if s.layer._held is not None or s.gathered]
        if not held:
            return []
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [s for s in held if any(id(p) in known for p in s.layer.normalized_parameters)]

    def _require_nothing_left(self, optimizer: Optimizer) -> None:
        left = [share.name for share in self._of(optimizer) if share.gathered]
        if left:
            raise WindowError(
                f"the optimizer steps while gradients of '{left[0]}' wait in an accumulation window; run the last "
                "micro-step with last=True, or call flush() before gradients are unscaled, clipped or used"
            )

    def _stepped(self, optimizer: Optimizer) -> None:
        touched = self._of(optimizer)
        left = [share.name for share in touched if share.gathered]
        for share in touched:
            share.drop()
        if left:
            raise WindowError(f"the optimizer has stepped without the gradients of '{left[0]}', which waited in an "
                              "accumulation window; run the last micro-step with last=True")  # fmt: skip


def _processes() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def _release(handles: Sequence[Any], shares: Sequence[_Share]) -> None:
    """Also when a window is forgotten while it is open: no layer may be left with what it held."""
    for handle in handles:
        handle.remove()
    for share in shares:
        share.drop()


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


class _Through(torch.autograd.Function):
    """A use of the live weight, whose gradient is added to what gathered right behind the layer's own backward.

    (A hook of the live weight runs no sooner than the backward of its graph, which, being older than all of the
    forward, is the last thing a backward does. Until then every layer would hold a gradient and an effective weight.)
    """

    @staticmethod
    def forward(ctx: Any, live: Tensor, share: _Share) -> Tensor:
        share.uses += 1
        ctx.share = share
        return live.view_as(live)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.share.used_up(grad), None


class _Join(torch.autograd.Function):
    """An output, with the gathered gradients of ``shares`` as the gradients of their live weights.

    Of several outputs the one whose backward comes first hands them over.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, shares: list[_Share], *live: Tensor) -> Tensor:
        ctx.shares = shares
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad, None, *(share.take() for share in ctx.shares))
