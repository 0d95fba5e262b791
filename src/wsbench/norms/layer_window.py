"""One layer's part of an accumulation window: what it computes with, what has gathered, and how that is handed on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wsbench.errors import UserError
from wsbench.norms.layers import Attachments, NormalizedLayer
from wsbench.norms.reparametrized import reparametrization
from wsbench.norms.stamp import Stamp
from wsbench.norms.tracing import accumulates


class WindowError(UserError, RuntimeError):
    """A window that cannot give the exact gradient; the message names the layer and what to do."""


def autocast_dtype(weight: Tensor) -> torch.dtype:
    """What autocast turns a convolution's weight into; float64 is left alone by it."""
    device = weight.device.type
    if device == "meta" or weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return weight.dtype
    return torch.get_autocast_dtype(device)


def _has_hooks(parameter: Tensor) -> bool:
    """Whether something wants to see each gradient, and would be called with None for one that gathers."""
    return bool(parameter._backward_hooks) or bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


class LayerWindow:
    """One layer's part of an accumulation window.

    What is held is valid for the weights as they were when it was computed: identity, version, address, and on a CPU a
    sample of their bits are looked at in every use. A use that finds another weight computes for itself, with ordinary
    gradients. A frozen weight gets a detached value; what gathers is for the parameters that asked for it.
    """

    def __init__(self, name: str, layer: NormalizedLayer, simple_loop: bool = False) -> None:
        if (owner := reparametrization(layer)) is not None:
            raise WindowError(f"the weight of '{name}' is computed by {owner.by}, so a window cannot hold it; "
                              f"{owner.remedy} before the window is made")  # fmt: skip
        self.name, self.layer, self.simple_loop = name, layer, simple_loop
        #: the effective weight without its graph, in the dtype that the layer's operation wants
        self.leaf: Tensor | None = None
        #: the effective weight with its graph, as far as it can serve the first backward of the last micro-step
        self.live: _Live | None = None
        #: what has gathered, in the weight's dtype; in a simple loop it gathers on the leaf, but for half precision
        self.total: Tensor | None = None
        #: which of the layer's parameters what gathers is for
        self.needs: tuple[bool, ...] = ()
        self.stamps: tuple[Stamp, ...] = ()
        self.last = False
        #: for a compiler, which cannot look at versions: what it may compute with until the micro-step ends
        self.held: Tensor | None = None
        #: set by a use that found the weight changed: what is held is looked at again when a micro-step begins
        self.stale = False
        #: set by a compiled use of this micro-step; whether there was one before
        self.compiled = self.was_compiled = False
        #: whether a use has been given what is held, to gather for ``needs``
        self.used = False
        #: the graph's nodes of uses, for DDP, and how many have not run their backward
        self.nodes: list[Any] = []
        self.pending = 0

    @property
    def gathered(self) -> bool:
        """Whether there are gradients that have not reached the parameters."""
        return self.total is not None or (self.leaf is not None and self.leaf.grad is not None)

    @property
    def is_open(self) -> bool:
        """Whether it holds or waits for anything."""
        return self.leaf is not None or self.total is not None

    def take(self) -> Tensor | None:
        """The gradient that gathered, and forget it."""
        total, self.total = self.total, None
        if self.leaf is not None and self.leaf.grad is not None:
            assert total is None
            total, self.leaf.grad = self.leaf.grad, None
        return total

    def drop(self) -> None:
        """Forget everything; the layer computes for itself again."""
        self.leaf = self.live = self.total = self.held = None
        self.stamps, self.nodes, self.pending, self.last, self.stale = (), [], 0, False, False
        self.used = False

    def detach(self) -> None:
        """:meth:`drop`, and leave the layer."""
        self.drop()
        attached: Attachments | None = getattr(self.layer, "_attachments", None)  # the layer may be a plain one now
        if attached is not None and attached.window is self:
            attached.window = None

    # -- the weights, then and now ----------------------------------------------------------------------------------

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What the effective weight is computed from; WindowError if something else computes the weight now."""
        try:
            return self.layer.normalized_parameters
        except KeyError:
            owner = reparametrization(self.layer)
            assert owner is not None
            raise WindowError(f"the weight of '{self.name}' is computed by {owner.by} now, so a window cannot hold it; "
                              f"{owner.remedy}, and make a new window") from None  # fmt: skip

    def _current(self, now: Sequence[Tensor]) -> bool:
        if len(now) == 1:
            return self.stamps[0].holds(now[0])
        return all(stamp.holds(p) for stamp, p in zip(self.stamps, now, strict=True))

    def moved(self) -> bool:
        """Whether torch has noted a change of the weights, or other parameters are registered."""
        now = self.parameters()
        return any(s.parameter is not p or s.moved() for s, p in zip(self.stamps, now, strict=True))

    def differs(self) -> Tensor:
        """Whether any bit of the weights is another, 0-d."""
        differing = [stamp.differs() for stamp in self.stamps]
        return differing[0] if len(differing) == 1 else torch.stack(differing).any()

    def _restored(self) -> bool:
        """Whether a weight that has moved holds what it held, to the last bit; it is taken for unmoved then."""
        now = self.parameters()
        if any(s.parameter is not p for s, p in zip(self.stamps, now, strict=True)) or bool(self.differs()):
            return False
        self.stamps, self.live, self.stale = tuple(Stamp(p) for p in now), None, False
        return True

    def changed(self) -> bool:
        """Whether the weights are seen not to be what gradients have gathered for, all bits aside."""
        return self.gathered and not self._current(self.parameters()) and not self._restored()

    # -- what the layer computes with -------------------------------------------------------------------------------

    def _compute(self) -> Tensor:
        """The effective weight with its graph, from the weight as it is now."""
        with torch.enable_grad():
            return self.layer.effective_weight_of(*self.parameters())

    def open(self) -> None:
        """Compute the effective weight, and hold it."""
        now = self.parameters()
        self.layer.refresh()
        live = _Live(self.layer, now, tuple(p.requires_grad for p in now))
        dtype = autocast_dtype(live.value)
        self.hold(live.value.to(dtype), tuple(Stamp(p) for p in now))
        self.live = live if dtype == live.value.dtype and any(self.needs) else None

    def hold(self, effective: Tensor, stamps: tuple[Stamp, ...]) -> None:
        """Hold the effective weight, from which on gradients gather.

        Args:
            effective: as it is now, in the dtype that the layer's operation wants.
            stamps: of the parameters that it was computed from.
        """
        leaf = effective.detach().requires_grad_()
        if leaf.dtype != self.layer.weight.dtype and self.simple_loop:
            # many small gradients in half precision: their sum is kept in float32
            leaf.register_post_accumulate_grad_hook(self._widen)  # type: ignore[no-untyped-call]
        self.leaf, self.live, self.needs = leaf, None, tuple(s.parameter.requires_grad for s in stamps)
        self.stamps, self.stale, self.used = stamps, False, False

    def _widen(self, leaf: Tensor) -> None:
        assert leaf.grad is not None
        self._gather(leaf.grad)
        leaf.grad = None

    def _gather(self, grad: Tensor) -> None:
        if self.total is None:
            self.total = grad.to(self.layer.weight.dtype, copy=True)
        else:
            self.total.add_(grad)

    def begin(self, last: bool) -> bool:
        """Before a micro-step: whether the caller is to :meth:`open` it, and then to :meth:`ready` it.

        The last one of a window that is not open computes freely.
        """
        self.layer.attachments.window = self
        self.last = last
        if self.compiled:
            self.was_compiled, self.compiled = True, False
        if not self.layer.training or torch.is_inference_mode_enabled():
            return False
        if self.leaf is None:
            return not last or self.was_compiled  # what is compiled has been compiled for a window's last
        if (self.stale or self.was_compiled) and not self._current(self.parameters()):
            if self.gathered:
                self._restored()
            elif last and not self.was_compiled:
                self.drop()
            else:
                return True
        return False

    def ready(self) -> None:
        """Before a micro-step, after :meth:`begin`: what a compiled use will compute with."""
        if not self.simple_loop or self.leaf is None or not self.layer.training or torch.is_inference_mode_enabled():
            return
        if not self.last:
            self.held = self.leaf
        elif self.was_compiled:
            now = self.parameters()
            if any(p.requires_grad for p in now):
                self.held = self._use(now)

    def in_use(self, now: tuple[Tensor, ...]) -> Tensor | None:
        """What a use of the layer computes with; None if it has to compute for itself.

        Args:
            now: the layer's parameters in this use.
        """
        leaf = self.leaf
        if leaf is None:
            return None
        if not self._current(now):
            self.stale = True
            if any(s.parameter is not p for s, p in zip(self.stamps, now, strict=True)):
                return None  # swapped for this call, or a replica on another device
            # not even where nothing has gathered is another weight held before the next micro-step begins: a weight
            # that is perturbed for a pass comes back
            if not self._restored():
                return None
        weight = now[0]
        if leaf.dtype != weight.dtype and leaf.dtype != autocast_dtype(weight):
            return None  # a part that autocast is switched off for, to be as precise as its weight
        needs = (weight.requires_grad,) if len(now) == 1 else tuple(p.requires_grad for p in now)
        if True not in needs:
            return leaf.detach()
        if needs != self.needs:
            if self.used or self.gathered:
                return None
            self.needs, self.live = needs, None
        self.used = True
        return leaf if self.simple_loop and not self.last else self._use(now)

    def in_compiled_use(self, needs: tuple[bool, ...]) -> Tensor | None:
        """As :meth:`in_use`, for a compiler: the weight was looked at when the micro-step began.

        Args:
            needs: which of the layer's parameters ask for gradients in this use.
        """
        if not self.simple_loop:
            return None
        self.compiled = True
        if self.held is None:
            return None
        if needs == self.needs:
            return self.held
        return None if True in needs else self.held.detach()

    def require_unmoved(self) -> None:
        """WindowError if the weight of a compiled layer has changed within a micro-step."""
        if self.gathered and self.moved():
            raise WindowError(
                f"the weight of '{self.name}' changed inside a micro-step in which it ran compiled, where changes are "
                "not seen; give each value of the weight a micro-step of its own, or do not compile this network"
            )

    # -- what has gathered, handed on -------------------------------------------------------------------------------

    def _use(self, now: tuple[Tensor, ...]) -> Tensor:
        out: Tensor = _Use.apply(self, *now)
        return out

    def handed_on(self) -> Tensor:
        """A use of the last micro-step that is connected with nothing yet."""
        return self._use(self.parameters())

    @contextmanager
    def asking(self, needs: Sequence[bool]) -> Iterator[None]:
        """The parameters asking for gradients as they did then: autograd hands nothing to one that is frozen now."""
        parameters = self.parameters()
        kept = [p.requires_grad for p in parameters]
        for p, need in zip(parameters, needs, strict=True):
            if p.requires_grad != need:
                p.requires_grad_(need)
        try:
            yield
        finally:
            for p, was in zip(parameters, kept, strict=True):
                if p.requires_grad != was:
                    p.requires_grad_(was)

    def pull_back(self, grad: Tensor, needs: tuple[bool, ...], stamps: tuple[Stamp, ...]) -> list[Tensor | None]:
        """The gradients of the parameters from that of a use, with what has gathered; or gather it."""
        parameters = self.parameters()
        again = torch.is_grad_enabled()  # create_graph=True
        current = stamps is self.stamps and needs == self.needs and accumulates(parameters, needs)
        self.pending -= 1
        if current and not again and not self.last and not any(map(_has_hooks, parameters)):
            self._gather(grad)
            return [None] * len(needs)
        if any(stamp.moved() for stamp in stamps) and any(bool(stamp.differs()) for stamp in stamps):
            raise RuntimeError(f"the weight of '{self.name}' has been modified by an inplace operation between a "
                               "forward pass and its backward")  # fmt: skip
        gathered = self.take() if current else None
        if again and gathered is not None:  # what other micro-steps gave is a constant to a derivative of this one's
            before = _Live(self.layer, parameters, needs).gradients(gathered, False, False)
            after = _Live(self.layer, parameters, needs, True).gradients(grad, True, False)
            return [b if a is None or b is None else a + b for a, b in zip(after, before, strict=True)]
        total = grad if gathered is None else gathered.add_(grad)
        live, others = self.live if current and not again else None, self.pending > 0
        if live is None:
            live = _Live(self.layer, parameters, needs, again)
        if current and not again:
            self.live = live if others else None
        gradients = live.gradients(total, again, others)
        if self.last and self.pending == 0 and not again and not self.gathered:
            self.leaf = None  # the effective weight is let go where its last backward was
        return gradients

    def flush(self) -> None:
        """Hand what has gathered to ``.grad``; the weights have been found unchanged."""
        gradient = self.take()
        if gradient is None:
            return
        with self.asking(self.needs):
            live = self._compute()
            torch.autograd.backward(live, gradient.to(live.dtype))


class _Live:
    """The effective weight with its graph, as a function of aliases of the parameters, whose hooks do not fire for it.

    Args:
        again: with the parameters behind the aliases, for a derivative of a derivative.
    """

    def __init__(
        self, layer: NormalizedLayer, parameters: Sequence[Tensor], needs: Sequence[bool], again: bool = False
    ) -> None:
        with torch.enable_grad():
            self.aliases = [
                (p.view_as(p) if again and p.requires_grad else p.detach().requires_grad_()) if need else p.detach()
                for p, need in zip(parameters, needs, strict=True)
            ]
            self.value = layer.effective_weight_of(*self.aliases)

    def gradients(self, grad: Tensor, again: bool, others: bool) -> list[Tensor | None]:
        """Of the parameters; None for those that did not ask. The graph is kept ``again`` or for ``others``."""
        wanted = [alias for alias in self.aliases if alias.requires_grad]
        gradients = iter(
            torch.autograd.grad(
                self.value, wanted, grad.to(self.value.dtype), retain_graph=again or others, create_graph=again
            )
        )
        return [next(gradients) if alias.requires_grad else None for alias in self.aliases]


def changed(name: str) -> str:
    """The message of a :class:`WindowError`."""
    return (
        f"the weight of '{name}' changed inside an accumulation window, after gradients had gathered for what it was; "
        "call flush() of the window before weights are changed or moved"
    )


class _Use(torch.autograd.Function):
    """A use in the last micro-step: the effective weight that is held, as a function of the parameters.

    Where a backward adds to ``.grad`` its gradient gathers; in the last micro-step what has gathered is added, and the
    sum goes through the weight normalization, right behind the layer's own backward. Every other gradient that is
    asked for (by torch.autograd.grad, with create_graph, after the window has ended) goes through it by itself.
    """

    @staticmethod
    def forward(ctx: Any, window: LayerWindow, *parameters: Tensor) -> Tensor:
        ctx.window, ctx.stamps = window, window.stamps
        ctx.set_materialize_grads(False)
        window.pending += 1
        if window.last:
            window.nodes.append(ctx)
        assert window.leaf is not None
        return window.leaf.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        if grad is None:
            return (None,) * (1 + len(needs))
        return (None, *ctx.window.pull_back(grad, needs, ctx.stamps))
