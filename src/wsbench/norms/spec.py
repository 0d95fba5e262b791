"""``NormSpec``: the one value that names a normalization everywhere."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from wsbench.errors import UserError
from wsbench.norms.registry import ACTIVATIONS, WEIGHTS, sources
from wsbench.plugins import broken

_GRAMMAR = re.compile(
    r"(?P<act>[a-z]+)(?P<groups>\d+)?(?:\+(?P<weight>[a-z]+)(?:-(?P<variant>[a-z]+))?)?(?:@(?P<semantics>[a-z]+))?\Z"
)
_SHAPE = "ACT[GROUPS][+WEIGHT[-VARIANT]][@SEMANTICS], for instance gn, gn16+ws, bn, ln+wn, gn+ws-mo, gn+ws@authors"


class SpecError(UserError, ValueError):
    """A normalization specification that does not exist; the message names the choices."""


def _unknown(kind: str, name: str, names: Iterable[str]) -> str:
    text = f"unknown {kind} {name!r}; choose from {_choices(names)}"
    if name in broken:
        return f"{text}; '{name}' could not be loaded, of {broken[name]}"
    return text + (f"; {len(broken)} of other packages could not be loaded: python -m wsbench norms" if broken else "")


def _choices(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _who_has_semantics() -> str:
    of_method = {name: method.semantics for name, method in ACTIVATIONS.items()}
    of_method |= {name: method.semantics for name, method in WEIGHTS.items()}
    return "; ".join(f"'{name}' has {_choices(semantics)}" for name, semantics in of_method.items() if semantics)


@dataclass(frozen=True, order=True)
class NormSpec:
    """An activation normalization times a weight normalization.

    Args:
        act: a registered activation normalization (``bn``, ``gn``, ``none``, ...; ``python -m wsbench norms``).
        groups: the number of a method that has one, of groups or what it counts; None is its default (32 for ``gn``,
            fitted to the channels).
        weight: a registered weight normalization (``ws``, ``wn``, ...) or None.
        variant: a variant of the weight normalization (``mo``, ``do``, ``af`` of ``ws``) or None.
        semantics: whose definition (``authors``, ``timm``, ``bit`` of ``ws``, ``authors`` of ``sn``); each part that
            knows the name follows it, and one of them must. None is the papers' equations.

    Raises:
        SpecError: for a combination that does not exist, with the choices in the message.
    """

    act: str
    groups: int | None = None
    weight: str | None = None
    variant: str | None = None
    semantics: str | None = None

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS:
            raise SpecError(_unknown(ACTIVATIONS.kind, self.act, ACTIVATIONS))
        if self.groups is not None:
            if not ACTIVATIONS[self.act].takes_groups:
                grouped = _choices(name for name, method in ACTIVATIONS.items() if method.takes_groups)
                raise SpecError(f"{self.act!r} has no groups, so {self.act}{self.groups} means nothing; only {grouped}")
            if self.groups < 1:
                counted = ACTIVATIONS[self.act].number
                raise SpecError(f"{self.act}{self.groups}: the number of {counted} must be at least 1")
        if self.weight is None and self.variant is not None:
            raise SpecError(
                f"variant {self.variant!r} belongs to a weight normalization, and this spec has none; "
                f"write for instance {self.act}+ws-{self.variant}"
            )
        if self.weight is not None and self.weight not in WEIGHTS:
            raise SpecError(_unknown(WEIGHTS.kind, self.weight, WEIGHTS))
        if self.weight is not None and self.variant is not None:
            variants = WEIGHTS[self.weight].variants
            if self.variant not in variants:
                raise SpecError(f"{self.weight!r} has no variant {self.variant!r}; choose from {_choices(variants)}")
        if self.semantics is not None and self.act_semantics is None and self.weight_semantics is None:
            parts = f"{self.act!r} has" if self.weight is None else f"neither {self.act!r} nor {self.weight!r} has"
            no = "no semantics" if self.weight is None else "semantics"
            message = f"{parts} {no} {self.semantics!r}: {_who_has_semantics()}"
            if self.weight is None:
                fitting = (name for name, method in WEIGHTS.items() if self.semantics in method.semantics)
                message += "".join(f"; write for instance {self.act}+{name}@{self.semantics}" for name in fitting)
            raise SpecError(message)

    @property
    def sources(self) -> dict[str, dict[str, str]]:
        """Where parts come from that are not wsbench's own: ``{name: {package, version, sha256}}``."""
        return sources(self.act, self.weight)

    @property
    def act_semantics(self) -> str | None:
        """``semantics``, if it is one of the activation normalization's."""
        return self.semantics if self.semantics in ACTIVATIONS[self.act].semantics else None

    @property
    def weight_semantics(self) -> str | None:
        """``semantics``, if it is one of the weight normalization's."""
        semantics = {} if self.weight is None else WEIGHTS[self.weight].semantics
        return self.semantics if self.semantics in semantics else None

    @classmethod
    def parse(cls, text: "str | NormSpec") -> "NormSpec":
        """Read a spec such as ``gn16+ws-mo@authors``; case and surrounding space do not matter.

        ``+none`` and ``@paper`` spell out the defaults. ``str(NormSpec.parse(text))`` is canonical.

        Raises:
            SpecError: names the part that is wrong and the choices for it.
        """
        if isinstance(text, NormSpec):
            return text
        match = _GRAMMAR.match(text.strip().lower()) if isinstance(text, str) else None
        if match is None:
            raise SpecError(f"{text!r} is not a normalization spec; expected {_SHAPE}")
        part = match.groupdict()
        if part["weight"] == "none":
            part["weight"] = None
        has_semantics = part["act"] in ACTIVATIONS and ACTIVATIONS[part["act"]].semantics
        if part["semantics"] == "paper" and (part["weight"] is not None or has_semantics):
            part["semantics"] = None
        groups = None if part["groups"] is None else int(part["groups"])
        return cls(part["act"], groups, part["weight"], part["variant"], part["semantics"])

    def __str__(self) -> str:
        text = self.act if self.groups is None else f"{self.act}{self.groups}"
        if self.weight is not None:
            text += f"+{self.weight}"
        if self.variant is not None:
            text += f"-{self.variant}"
        if self.semantics is not None:
            text += f"@{self.semantics}"
        return text
