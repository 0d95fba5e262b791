"""``NormSpec``: the one value that names a normalization everywhere."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from wsbench.norms.registry import ACTIVATIONS, WEIGHTS

_GRAMMAR = re.compile(
    r"(?P<act>[a-z]+)(?P<groups>\d+)?(?:\+(?P<weight>[a-z]+)(?:-(?P<variant>[a-z]+))?)?(?:@(?P<semantics>[a-z]+))?\Z"
)
_SHAPE = "ACT[GROUPS][+WEIGHT[-VARIANT]][@SEMANTICS], for instance gn, gn16+ws, bn, ln+wn, gn+ws-mo, gn+ws@authors"


class SpecError(ValueError):
    """A normalization specification that does not exist; the message names the choices."""


def _choices(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


@dataclass(frozen=True, order=True)
class NormSpec:
    """An activation normalization times a weight normalization.

    Args:
        act: a registered activation normalization (``bn``, ``gn``, ``ln``, ``in``, ``sn``, ``none``).
        groups: groups of a method that has them; None is its default (32 for ``gn``, fitted to the channels).
        weight: a registered weight normalization (``ws``, ``wn``) or None.
        variant: a variant of the weight normalization (``mo``, ``do``, ``af`` of ``ws``) or None.
        semantics: whose definition of it (``authors``, ``timm``, ``bit``); None is the paper's Eq. 2-4.

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
            raise SpecError(f"unknown activation normalization {self.act!r}; choose from {_choices(ACTIVATIONS)}")
        if self.groups is not None:
            if not ACTIVATIONS[self.act].takes_groups:
                grouped = _choices(name for name, method in ACTIVATIONS.items() if method.takes_groups)
                raise SpecError(f"{self.act!r} has no groups, so {self.act}{self.groups} means nothing; only {grouped}")
            if self.groups < 1:
                raise SpecError(f"{self.act}{self.groups}: the number of groups must be at least 1")
        if self.weight is None:
            for part, value in (("variant", self.variant), ("semantics", self.semantics)):
                if value is not None:
                    raise SpecError(
                        f"{part} {value!r} belongs to a weight normalization, and this spec has none; "
                        f"write for instance {self.act}+ws{'-' if part == 'variant' else '@'}{value}"
                    )
            return
        if self.weight not in WEIGHTS:
            raise SpecError(f"unknown weight normalization {self.weight!r}; choose from {_choices(WEIGHTS)}")
        method = WEIGHTS[self.weight]
        if self.variant is not None and self.variant not in method.variants:
            raise SpecError(f"{self.weight!r} has no variant {self.variant!r}; choose from {_choices(method.variants)}")
        if self.semantics is not None and self.semantics not in method.semantics:
            raise SpecError(
                f"{self.weight!r} has no semantics {self.semantics!r}; choose from {_choices(method.semantics)}"
            )

    @classmethod
    def parse(cls, text: "str | NormSpec") -> "NormSpec":
        """Read a spec such as ``gn16+ws-mo@authors``; case and surrounding space do not matter.

        ``+none`` and ``@paper`` spell out the defaults. ``str(NormSpec.parse(text))`` is canonical.

        Raises:
            SpecError: names the part that is wrong and the choices for it.
        """
        if isinstance(text, NormSpec):
            return text
        match = _GRAMMAR.match(text.strip().lower())
        if match is None:
            raise SpecError(f"{text!r} is not a normalization spec; expected {_SHAPE}")
        part = match.groupdict()
        if part["weight"] == "none":
            part["weight"] = None
        if part["semantics"] == "paper" and part["weight"] is not None:
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
