"""Turn any torch model over to a specification."""

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from wsbench.errors import UserError
from wsbench.norms.activation import DEFAULT_GROUPS, GroupNorm, GroupsError
from wsbench.norms.become import Changes
from wsbench.norms.behind import ACTIVATION_MODULES, ActivatingNorm, Passing, passing, plain_activation
from wsbench.norms.facts import facts_of
from wsbench.norms.keep import keep
from wsbench.norms.layers import (
    FanInError,
    NormalizedLayer,
    computes_as_torch,
    normalized_class,
    torch_class,
)
from wsbench.norms.recognize import (
    channels_of,
    fused_activation,
    has_own_forward,
    is_norm,
    looks_like_norm,
    only_normalizes,
    why_left,
)
from wsbench.norms.registry import ACTIVATIONS
from wsbench.norms.reparametrized import reparametrization
from wsbench.norms.report import LayerChange, NormReport
from wsbench.norms.spec import NormSpec
from wsbench.norms.watch import (
    ELSEWHERE,
    Watched,
    Weights,
    also_in_training,
    call,
    initialize,
    is_container,
    undisturbed,
    watch,
)

#: Wrappers that hold on to a network's parameters: what is converted inside is not what they synchronize or shard.
_WRAPPERS = frozenset({"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"})


class PatternError(UserError, ValueError):
    """An include or exclude pattern that names nothing."""


class ConversionError(UserError, RuntimeError):
    """A network that cannot be converted, or does not run as its report says; it is as it was before."""


def _match(name: str, patterns: Sequence[str]) -> str | None:
    return next((p for p in patterns if fnmatchcase(name, p)), None)


@dataclass
class _Conversion:
    """One call of :func:`normalize`: what there is, what was seen, what is decided."""

    model: nn.Module
    spec: NormSpec
    include: Sequence[str]
    exclude: Sequence[str]
    layers: dict[nn.Module, str] = field(default_factory=dict)
    norms: dict[nn.Module, str] = field(default_factory=dict)
    seen: Watched | None = None
    #: activations behind norms that bring their own, and those norms
    stand_aside: dict[nn.Module, list[nn.Module]] = field(default_factory=dict)
    #: why the example could not be run in training, where some layers were not reached without
    in_training: str | None = None

    def look(self, example: Any) -> None:
        """List the layers, refuse what cannot be converted, and run the example."""
        self._refuse_wrapped()
        lazy = [n for n, m in self.model.named_modules() if isinstance(m, LazyModuleMixin)]
        if lazy and example is None:
            raise ConversionError(f"'{lazy[0]}' is a lazy layer, which has no weight before it has seen data; pass "
                                  "example=..., which is run once")  # fmt: skip
        if lazy:
            initialize(self.model, example)
            left = [n for n, m in self.model.named_modules() if isinstance(m, LazyModuleMixin)]
            if left:
                raise ConversionError(f"the example does not reach the lazy layer '{left[0]}', which has no weight "
                                      "yet; run the network on data that does, and convert it then")  # fmt: skip
        for name, module in self.model.named_modules():
            if torch_class(type(module)) is not None:
                self.layers[module] = name
            elif is_norm(module) or looks_like_norm(module):
                self.norms[module] = name
        names = [*self.layers.values(), *self.norms.values()]
        if not names:
            warnings.warn(
                f"normalize found no convolution, linear or normalization layer in {type(self.model).__name__}: layers "
                "that are held in plain lists only, and exported graphs, have none that could be converted",
                stacklevel=3,
            )
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise PatternError(f"pattern '{pattern}' matches no convolution, linear or normalization layer")
        if "" in names:
            raise TypeError(
                f"{type(self.model).__name__} is itself the layer; wrap it in a module, or use normalized(layer, spec)"
            )
        if example is None:
            return
        watched = [*self.layers], [*self.norms]
        self.seen = watch(self.model, example, *watched)
        if any(m not in self.seen.reached for group in watched for m in group):
            self.in_training = also_in_training(self.seen, self.model, example, *watched)

    def _refuse_wrapped(self) -> None:
        for name, module in self.model.named_modules():
            where = f"'{name}'" if name else "the model"
            if isinstance(module, torch.jit.ScriptModule):
                raise ConversionError(f"{where} was compiled by torch.jit.script or trace, and its layers cannot be "
                                      "changed any more; convert the network before")  # fmt: skip
            wrapper = next((c.__name__ for c in type(module).__mro__ if c.__name__ in _WRAPPERS), None)
            if wrapper is not None:
                raise ConversionError(f"{where} is wrapped by {wrapper} already, which holds on to the parameters that "
                                      "it found; convert the network before it is wrapped")  # fmt: skip

    # -- normalization layers ---------------------------------------------------------------------------------------

    def replacement(self, norm: nn.Module) -> tuple[nn.Module | None, str]:
        """The layer that takes the place of ``norm``, or None, and the reason."""
        name, kind = self.norms[norm], type(norm).__name__
        if pattern := _match(name, self.exclude):
            return None, f"excluded by '{pattern}'"
        if not is_norm(norm):
            return None, why_left(norm)
        channels = channels_of(norm)
        if channels is None:
            if type(norm).forward is not nn.LayerNorm.forward:
                return None, f"note: {kind} is a LayerNorm with a forward of its own"
            return None, f"note: {kind} normalizes the last dimension, not channels in dimension 1"
        shape = None if self.seen is None else self.seen.inputs.get(norm)
        after = fused_activation(norm)
        if has_own_forward(norm):
            return None, f"note: this {kind} has a forward of its own"
        if not only_normalizes(norm, shape):
            return None, f"note: {kind} has a forward of its own, which does more than the norm that it is named after"
        if (owner := reparametrization(norm, needs_weight=False)) is not None:
            raise ConversionError(f"'{name}': its weight is computed by {owner.by}; {owner.remedy}, or pass "
                                  f"exclude=['{name}']")  # fmt: skip
        remarks = []
        if (
            isinstance(norm, _InstanceNorm)
            and shape is not None
            and len(shape) == _WITHOUT_BATCH.get(_instance_norm_of(norm))
        ):
            return None, f"note: {kind} is given an input without a batch dimension, {tuple(shape)}"
        if isinstance(norm, _InstanceNorm) and not norm.affine and shape is not None and shape[1] != channels:
            remarks.append(f"it said {channels} channels and is given {shape[1]}")
            channels = shape[1]
        try:
            new = ACTIVATIONS[self.spec.act].build(channels, self.spec.groups, self.spec.act_semantics)
        except GroupsError as error:
            raise GroupsError(f"layer '{name}': {error}") from None
        if facts_of(new).brings_activation:
            after = self._activates(new, norm, after)
            remarks += [] if new.nonlinearity else [str(new.without_activation)]
        remarks += keep(new, norm, self._trains(norm))
        fitted = ACTIVATIONS[self.spec.act].number == "groups" and not self.spec.groups
        if fitted and channels % DEFAULT_GROUPS:
            assert isinstance(new.num_groups, int)
            remarks.insert(0, f"{DEFAULT_GROUPS} does not divide {channels} channels, {new.num_groups} groups")
        if degenerate := _degenerate(new, shape):
            remarks.append(degenerate)
        if not_seen := self.not_reached(norm):
            remarks.append(not_seen)
        reason = f"note: {'; '.join(remarks)}" if remarks else "follows the spec"
        return (nn.Sequential(new, *after) if after else new), reason

    def _activates(self, new: Any, norm: nn.Module, after: list[nn.Module]) -> list[nn.Module]:
        """Let a norm that brings its activation take the place of the one behind; what is left behind it."""
        name = self.norms[norm]
        fused = [m for m in after if isinstance(m, ACTIVATION_MODULES)]
        if fused:
            new._replaced = tuple(fused)
            return [m for m in after if m not in fused and not isinstance(m, nn.Identity)]
        if self.seen is None:
            raise ConversionError(f"'{self.spec.act}' takes the place of the activation after a norm, which only an "
                                  "example shows; pass example=...")  # fmt: skip
        activations = set(self.seen.behind.found.get(norm, ()))
        if activations <= {None}:
            new.drop_activation()
            return after
        behind = activations.pop()
        if activations or not isinstance(behind, nn.Module):
            goes_to = "different things in different calls" if activations else f"'{behind}', an operation"
            goes_to = behind if behind == ELSEWHERE else goes_to
            raise ConversionError(
                f"'{name}': '{self.spec.act}' takes the place of the activation after a norm, which must be a module "
                f"that is given all of the norm's output; here it goes to {goes_to}. Write it as a module (nn.ReLU), "
                f"or pass exclude=['{name}']"
            )
        if behind in self.seen.behind.interrupted:
            raise ConversionError(f"'{name}': the activation after it is used for something else in between; give the "
                                  f"network a module of its own there, or pass exclude=['{name}']")  # fmt: skip
        self.stand_aside.setdefault(behind, []).append(norm)
        return after

    def keep_aside(self, changed: Collection[nn.Module]) -> list[ActivatingNorm]:
        """Norms that bring their activation and stay: those behind them go on standing aside."""
        staying = [n for n in self.norms if n not in changed and isinstance(n, ActivatingNorm) and n.nonlinearity]
        for norm in staying:
            if self.seen is None:
                raise ConversionError(f"'{self.norms[norm]}' stays and is the activation after it, too; which one "
                                      "that is only an example shows; pass example=...")  # fmt: skip
            for behind in {m for m in self.seen.behind.found.get(norm, ()) if isinstance(m, nn.Module)}:
                self.stand_aside.setdefault(behind, []).append(norm)
        return staying

    def activations(self) -> dict[nn.Module, nn.Module]:
        """Activations to what they become: those behind a norm that brings its own stand aside, others are plain."""
        new: dict[nn.Module, nn.Module] = {
            m: plain_activation(m) for m in self.model.modules() if isinstance(m, Passing)
        }
        for activation, norms in self.stand_aside.items():
            assert self.seen is not None
            new[activation] = passing(activation, self.seen.behind.only_behind(activation, norms))
        return new

    def _trains(self, norm: nn.Module) -> bool:
        """Whether what is in front of a norm trains; by the order of the modules where that was not seen."""
        layers = list(self.layers)
        seen = [] if self.seen is None else [layer for layer, n in self.seen.consumers.items() if n is norm]
        if not seen:
            order = list(self.model.modules())
            seen = [m for m in order[: order.index(norm)] if m in self.layers][-1:] or layers[:1]
        return any(p.requires_grad for layer in seen for p in layer.parameters()) if seen else True

    def not_reached(self, module: nn.Module) -> str | None:
        """A remark on a layer that the example did not reach."""
        if self.seen is None or module in self.seen.reached:
            return None
        if self.in_training is None:
            return "the example does not reach it"
        return f"the example does not reach it in evaluation, and the network does not train on it ({self.in_training})"

    # -- convolutions and linear layers -----------------------------------------------------------------------------

    def decide(self, layer: nn.Module) -> tuple[bool, str]:
        """Whether a convolution or linear layer is one for a weight normalization, and why."""
        name = self.layers[layer]
        if pattern := _match(name, self.exclude):
            return False, f"excluded by '{pattern}'"
        if pattern := _match(name, self.include):
            if self.seen is not None and layer not in self.seen.reached:
                return True, (f"note: included by '{pattern}', but the example does not call it: what reads its weight "
                              "past the layer sees the raw one")  # fmt: skip
            return True, f"included by '{pattern}'"
        if self.seen is not None:
            if layer in self.seen.consumers:
                return True, f"normalized by '{self.norms[self.seen.consumers[layer]]}'"
            if remark := self.not_reached(layer):
                return False, f"note: {remark}"
            return False, "no normalization layer consumes its output"
        if isinstance(layer, nn.Linear):
            return False, "linear: without an example only convolutions are converted"
        if layer.bias is None:
            return True, "convolution without a bias (no example given)"
        return False, "convolution with a bias (no example given)"

    def unfit(self, layer: nn.Module) -> str | None:
        """Why a layer that is one for a weight normalization cannot have it."""
        kind = type(layer).__name__
        if has_own_forward(layer):
            return f"this {kind} has a forward of its own"
        if isinstance(layer, NormalizedLayer) or computes_as_torch(type(layer)):
            return None
        if self.seen is None:
            return f"{kind} is a subclass with a forward of its own; with an example it can be seen what that does"
        if layer not in self.seen.reached:
            return f"{kind} is a subclass with a forward of its own"
        if layer in self.seen.elsewhere:
            return f"{kind} is a subclass with a forward of its own, and {self.seen.elsewhere[layer]}"
        return None

    def weighted(self, layer: nn.Module, wanted: bool) -> nn.Module | None:
        """The layer that takes the place of ``layer``; None where it stays."""
        spec, name = self.spec, self.layers[layer]
        changes = isinstance(layer, NormalizedLayer) or (spec.weight is not None and wanted)
        if changes and (owner := reparametrization(layer)) is not None:
            raise ConversionError(f"'{name}': its weight is computed by {owner.by}; {owner.remedy} before the network "
                                  f"is converted, or pass exclude=['{name}']")  # fmt: skip
        if spec.weight is None or not wanted:
            return layer.to_plain() if isinstance(layer, NormalizedLayer) else None
        if isinstance(layer, NormalizedLayer):
            if _same_weight_normalization(layer.spec, spec):  # what it has learned stays
                layer.spec = spec
                return None
            layer = layer.to_plain()
        return normalized_class(type(layer)).from_plain(layer, spec)


#: dimensions of an input without a batch
_WITHOUT_BATCH: dict[type | None, int] = {nn.InstanceNorm1d: 2, nn.InstanceNorm2d: 3, nn.InstanceNorm3d: 4}


def _instance_norm_of(norm: nn.Module) -> type | None:
    return next((c for c in type(norm).__mro__ if c in _WITHOUT_BATCH), None)


def _same_weight_normalization(a: NormSpec, b: NormSpec) -> bool:
    return (a.weight, a.variant, a.weight_semantics) == (b.weight, b.variant, b.weight_semantics)


def _degenerate(norm: nn.Module, shape: torch.Size | None) -> str | None:
    count: Any = getattr(norm, "values_per_statistic", None)
    if shape is None or count is None or count(shape) > 1:
        return None
    return f"one value a statistic at {tuple(shape)}, so {facts_of(norm).one_value}"


def normalize(
    model: nn.Module,
    spec: str | NormSpec,
    example: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> NormReport:
    """Convert ``model`` to ``spec``, in place.

    Every BN, GN, IN, SN, frozen BN and LayerNorm2d becomes the activation normalization of the spec, with its affine
    parameters kept (norms/keep.py has the table). A convolution or linear layer gets the weight normalization **iff a
    normalization layer consumes its output**, all of it, so classifiers, predictors and RPNs stay plain. Converting
    again, to any spec, is fine.

    Layers stay the same objects: lists, closures and second attributes that hold one see the converted layer, hooks
    stay, and so do Parameter objects, so an optimizer made before goes on training them (what is new, such as SN's
    mixing weights, it does not know).

    Args:
        model: any module; it is changed only if nothing raises.
        spec: for instance ``"gn+ws"``.
        example: what to call the model with, to see which outputs are consumed: a tensor or list, a tuple of
            positional or a mapping of keyword arguments. Run in evaluation mode, in training mode too where that does
            not reach every layer, and again after the conversion, to see that every layer runs as reported. None:
            convolutions without a bias are taken to be the ones that a normalization follows.
        include: shell patterns of layer names that get the weight normalization whatever follows them.
        exclude: shell patterns of layer names, of both kinds, that stay as they are.

    Returns:
        A report of every layer; print it.

    Raises:
        SpecError: for a spec that does not exist.
        GroupsError: an explicit number of groups does not divide a layer's channels.
        FanInError: layers with filters of one value would be standardized; names all.
        PatternError: a pattern matches no layer.
        ConversionError: the network is scripted or wrapped by DDP, has lazy layers and no example, a weight that
            something else computes (weight_norm, spectral_norm, pruning, a parametrization), or after the conversion
            does not run, or not through a layer that is reported.
    """
    spec = NormSpec.parse(spec)
    this = _Conversion(model, spec, include, exclude)
    this.look(example)
    kept_specs = {layer: layer.spec for layer in this.layers if isinstance(layer, NormalizedLayer)}
    kept_behind: dict[ActivatingNorm, tuple[Passing, ...]] = {}
    new: dict[nn.Module, nn.Module] = {}
    changes: dict[str, LayerChange] = {}
    with Changes() as done:
        try:
            for norm, name in this.norms.items():
                replacement, reason = this.replacement(norm)
                if replacement is not None:
                    new[norm] = replacement
                after = _describe(norm if replacement is None else replacement)
                changed = replacement is not None
                changes[name] = LayerChange(name, "activation", _describe(norm), after, changed, reason)
            too_small = []
            for layer, name in this.layers.items():
                wanted, reason = this.decide(layer)
                before, unfit = type(layer).__name__, this.unfit(layer) if wanted else None
                if unfit is not None:
                    reason = f"note: {unfit}"
                if _match(name, exclude) is None:
                    try:
                        other = this.weighted(layer, wanted and unfit is None)
                    except FanInError as error:
                        too_small.append((name, error))
                        continue
                    if other is not None:
                        new[layer] = other
                after = type(new.get(layer, layer)).__name__
                eligible = wanted and unfit is None
                changes[name] = LayerChange(name, "weight", before, after, after != before, reason, eligible)
            _raise_too_small(too_small)
            _raise_if_nothing_normalizes(spec, new.values())
            kept_behind = {norm: norm._behind for norm in this.keep_aside(new)}
            for activation, instead in this.activations().items():
                done.become(activation, instead)
            for activation, norms in this.stand_aside.items():
                for norm in norms:
                    told = () if activation._always else (cast(Passing, activation),)
                    cast(ActivatingNorm, new.get(norm, norm))._behind = told
            for old, instead in new.items():
                try:
                    done.become(old, instead)
                except TypeError as error:  # __slots__, a strict __setattr__
                    name = {**this.norms, **this.layers}[old]
                    raise ConversionError(f"'{name}', a {type(old).__name__}, cannot become another layer in place: "
                                          f"{error}; pass exclude=['{name}']") from error  # fmt: skip
            if example is not None:
                _require_that_all_run(this, example)
        except BaseException:
            for layer, was in kept_specs.items():
                layer.spec = was
            for norm, behind in kept_behind.items():
                norm._behind = behind
            raise
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return NormReport(spec, tuple(sorted(changes.values(), key=lambda c: order.get(c.name, -1))))


def _raise_if_nothing_normalizes(spec: NormSpec, new: Collection[nn.Module]) -> None:
    inside = [m for layer in new for m in layer.modules() if isinstance(m, ActivatingNorm)]
    if inside and not any(m.nonlinearity or m.normalizes_without for m in inside):
        raise ConversionError(f"'{spec.act}' takes the place of a norm and the activation after it, and no norm of "
                              "this network has one: nothing would be normalized")  # fmt: skip


def _raise_too_small(too_small: Sequence[tuple[str, FanInError]]) -> None:
    if not too_small:
        return
    names = [name for name, _ in too_small]
    listed = ", ".join(f"'{name}'" for name in names)
    more = "" if len(names) == 1 else f" (first of {len(names)} layers: {listed})"
    raise FanInError(f"layer '{names[0]}': {too_small[0][1]}{more} (exclude={names})")


def _require_that_all_run(this: _Conversion, example: Any) -> None:
    """Run the example again, and see that every layer that ran before runs, by the code of its new class."""
    assert this.seen is not None
    ran: set[nn.Module] = set()
    names = {**this.norms, **this.layers}
    expected = [m for m in names if m in this.seen.reached and not has_own_forward(m)]
    raw = Weights([m for m in this.layers if isinstance(m, NormalizedLayer)], Watched())

    def run(does: str, training: Callable[[nn.Module], bool] = lambda module: False) -> None:
        for module in expected:
            module.__dict__["forward"] = _recording(module, ran)
        try:
            with undisturbed(this.model, training), raw:
                call(this.model, example)
        except Exception as error:
            raise ConversionError(
                f"the network does not {does} any more as '{this.spec}': {type(error).__name__}: {error}; it is as it "
                "was before. A module that reads what a layer no longer has can be kept by exclude=[...]"
            ) from error
        finally:
            for module in expected:
                module.__dict__.pop("forward", None)

    run("run")
    if this.in_training is None and any(m not in ran for m in expected):
        run("train", is_container)
    past = [names[m] for m in raw.given]
    if past:
        raise ConversionError(
            f"{', '.join(map(repr, past))}: its raw weight is given to an operation, past the attribute 'weight'; the "
            f"network is as it was. Pass exclude={past}"
        )
    dead = [names[m] for m in expected if m not in ran]
    if dead:
        raise ConversionError(
            f"{', '.join(repr(n) for n in dead[:5])}{' ...' if len(dead) > 5 else ''} ran before the conversion and "
            "not after it: something holds on to code of the old layer (a bound method, a compiled call). The network "
            f"is as it was; convert it before that is taken, or pass exclude={dead}"
        )


def _recording(module: nn.Module, ran: set[nn.Module]) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        ran.add(module)
        return type(module).forward(module, *args, **kwargs)

    return forward


def _describe(norm: nn.Module) -> str:
    if isinstance(norm, nn.Sequential):
        return " + ".join(_describe(m) for m in norm)
    told = norm.num_groups if type(norm) is GroupNorm else getattr(norm, "semantics", None)
    return type(norm).__name__ if told is None else f"{type(norm).__name__}({told})"
