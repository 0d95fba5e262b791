"""The two registries behind :class:`~wsbench.norms.NormSpec`: activation and weight normalizations.

A new method is one class with one decorator; everything else (parsing, conversion, reports, the command line) follows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import nn

from wsbench.norms.facts import NormFacts, facts_of
from wsbench.plugins import load, requested, source

if TYPE_CHECKING:
    from wsbench.norms.weight import WeightNorm

T = TypeVar("T")
_NAME = re.compile(r"[a-z]+\Z")


class ActivationFactory(Protocol):
    """What a registered activation normalization offers."""

    def from_channels(self, channels: int, groups: int | None) -> nn.Module:
        """Build the layer for ``channels`` channels; ``groups`` is the number written in the spec, if any.

        For most methods that have one it is a number of groups; ``register_activation(number=...)`` says what it is.

        A method that was registered with semantics takes one of their names, or None, as a third argument.
        """
        ...


@dataclass(frozen=True)
class ActivationMethod:
    """An activation normalization the grammar knows, with the semantics it accepts."""

    factory: ActivationFactory
    summary: str
    number: str | None = None
    """What the number in a spec counts, for instance groups; None where there is none."""
    semantics: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_groups(self) -> bool:
        """Whether a spec may have a number."""
        return self.number is not None

    @property
    def facts(self) -> NormFacts:
        """What the house must know of it."""
        return facts_of(self.factory)

    def build(self, channels: int, groups: int | None = None, semantics: str | None = None) -> nn.Module:
        """The layer for ``channels`` channels.

        Args:
            channels: C.
            groups: the number written in the spec, if any.
            semantics: the name written in the spec, if any; a method that does not know it has its one definition.

        Raises:
            GroupsError: ``groups`` do not divide the channels.
        """
        if semantics not in self.semantics:
            return self.factory.from_channels(channels, groups)
        factory: Any = self.factory
        layer: nn.Module = factory.from_channels(channels, groups, semantics)
        return layer


@dataclass(frozen=True)
class WeightMethod:
    """A weight normalization the grammar knows, with the variants and semantics it accepts."""

    factory: "type[WeightNorm]"
    summary: str
    variants: Mapping[str, str]
    semantics: Mapping[str, str]


class Registry(Mapping[str, T]):
    """Names to methods; a name is lower-case letters only, so that the grammar stays unambiguous.

    Methods of other packages are loaded when a name is not known here, or all are asked for (:mod:`wsbench.plugins`).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._methods: dict[str, T] = {}

    def add(self, name: str, method: T) -> None:
        """Register ``method``; raises ValueError for a name that is taken or that the grammar could not parse."""
        if not _NAME.match(name):
            raise ValueError(f"{self.kind} name {name!r} must be lower-case letters only, so that specs stay parseable")
        if name in self._methods:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
        self._methods[name] = method

    def remove(self, name: str) -> None:
        """Forget a method, for instance one that a notebook registers a second time; KeyError if there is none."""
        del self._methods[name]

    def __getitem__(self, name: str) -> T:
        if name not in self._methods or requested():  # a module that the user names is never passed over
            _load_plugins()
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        _load_plugins()
        return iter(self._methods)

    def __len__(self) -> int:
        _load_plugins()
        return len(self._methods)


ACTIVATIONS: Registry[ActivationMethod] = Registry("activation normalization")
WEIGHTS: Registry[WeightMethod] = Registry("weight normalization")

#: the modules of --import that have been loaded, once anything has
_loaded: list[list[str]] = []


def _load_plugins() -> None:
    if _loaded == [requested()]:
        return
    _loaded[:] = [requested()]  # before: what is loaded asks, too
    try:
        load(_add_plugin)
    except BaseException:
        _loaded.clear()
        raise


def _add_plugin(name: str, part: Any) -> None:
    registered: dict[str, Any] = {**ACTIVATIONS._methods, **WEIGHTS._methods}
    if name in registered:
        if registered[name].factory is not part:
            raise ValueError(f"{name!r} is registered already; choose another name")
    elif hasattr(part, "from_channels"):
        register_activation(name)(part)
    elif hasattr(part, "effective"):
        register_weight(name)(part)
    else:
        raise TypeError(f"{part!r} is neither an activation normalization, which has from_channels(channels, groups), "
                        "nor a subclass of WeightNorm")  # fmt: skip


def sources(act: str, weight: str | None) -> dict[str, dict[str, str]]:
    """Where the parts of a specification come from that are not wsbench's own: ``{name: package, version, sha256}``."""
    parts: list[tuple[str, Any]] = [(act, ACTIVATIONS[act].factory)]
    if weight is not None:
        parts.append((weight, WEIGHTS[weight].factory))
    origins = {name: where for name, factory in parts if (where := source(factory)) is not None}
    if act in origins and ACTIVATIONS[act].facts.across_devices:
        origins[act] |= {"across_devices": "yes"}
    return origins


A = TypeVar("A", bound=ActivationFactory)
W = TypeVar("W", bound="type[WeightNorm]")


def _summary(method: object) -> str:
    return (method.__doc__ or "").strip().split("\n")[0].rstrip(".")


def register_activation(
    name: str, *, takes_groups: bool = False, number: str | None = None, semantics: Mapping[str, str] | None = None
) -> Callable[[A], A]:
    """Class decorator: make ``name`` the ACT of a spec.

    Args:
        name: lower-case letters.
        takes_groups: short for ``number="groups"``.
        number: what a number behind the name counts.
        semantics: ``{name: meaning}`` of its definitions.
    """

    def add(factory: A) -> A:
        counted = "groups" if takes_groups else number
        ACTIVATIONS.add(name, ActivationMethod(factory, _summary(factory), counted, semantics or {}))
        return factory

    return add


def register_weight(
    name: str, *, variants: Mapping[str, str] | None = None, semantics: Mapping[str, str] | None = None
) -> Callable[[W], W]:
    """Class decorator: make ``name`` the WEIGHT of a spec, with ``{name: meaning}`` of its variants and semantics."""

    def add(factory: W) -> W:
        WEIGHTS.add(name, WeightMethod(factory, _summary(factory), variants or {}, semantics or {}))
        return factory

    return add
