"""One layer's share of an accumulation window: its leaf, its live graph, and what gathered."""

from typing import Any

import torch
from torch import Tensor

from wsbench.norms.layers import NormalizedLayer


class WindowError(RuntimeError):
    """A window that cannot give the exact gradient; the message names the layer and what to do."""


def _autocast_dtype(weight: Tensor) -> torch.dtype:
    """What autocast turns a convolution's weight into; float64 is left alone by it."""
    device = weight.device.type
    if weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return weight.dtype
    return torch.get_autocast_dtype(device)


class Share:
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

    def current_signature(self) -> tuple[Any, ...]:
        """What changes whenever the weight does, save writes through ``.data`` and fused optimizers."""
        return tuple((id(p), p._version, p.data_ptr(), p.requires_grad) for p in self.layer.normalized_parameters)

    def compute(self) -> Tensor:
        """The effective weight with its graph, from the weight as it is now."""
        with torch.enable_grad():
            return self.layer.effective_weight()

    def _open(self, live: Tensor) -> None:
        dtype = _autocast_dtype(live)
        leaf = live.detach().to(dtype).requires_grad_(live.requires_grad)
        if dtype != live.dtype and leaf.requires_grad:
            # many small gradients in half precision: their sum is kept in float32
            leaf.register_post_accumulate_grad_hook(self._widen)  # type: ignore[no-untyped-call]
        self.leaf, self.live, self.opened = leaf, live if dtype == live.dtype else None, True
        self.signature = self.current_signature()
        # .data can be written without moving the version: one input channel of every filter is remembered
        self.samples = tuple(p.detach()[:, 0].clone() for p in self.layer.normalized_parameters)

    def _widen(self, leaf: Tensor) -> None:
        assert leaf.grad is not None
        if self.total is None:
            self.total = leaf.grad.to(self.layer.weight.dtype)
        else:
            self.total.add_(leaf.grad)
        leaf.grad = None

    def renew(self) -> None:
        """Hold the weight as it is now; WindowError if it is another than the one that gradients gathered on."""
        now = self.compute()
        if not self.gathered:
            self._open(now)
            return
        held = self.live if self.leaf is None else self.leaf
        same_kind = held is not None and (held.device, held.requires_grad) == (now.device, now.requires_grad)
        if held is None or not same_kind or bool(_differ(now.to(held.dtype), held)):
            raise WindowError(_changed(self.name))
        self.live, self.signature = None, self.current_signature()  # swapped and swapped back

    def begin(self) -> None:
        """Let the layer compute with a leaf."""
        if not self.layer.training:
            return
        if self.leaf is None or self.signature != self.current_signature():
            self.renew()
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
        if self.leaf is not None and self.signature != self.current_signature():
            self.renew()
        live = self.compute() if self.live is None else self.live
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
        self._open(self.compute())

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


class _Through(torch.autograd.Function):
    """A use of the live weight, whose gradient is added to what gathered right behind the layer's own backward.

    (A hook of the live weight runs no sooner than the backward of its graph, which, being older than all of the
    forward, is the last thing a backward does. Until then every layer would hold a gradient and an effective weight.)
    """

    @staticmethod
    def forward(ctx: Any, live: Tensor, share: Share) -> Tensor:
        share.uses += 1
        ctx.share = share
        return live.view_as(live)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.share.used_up(grad), None
