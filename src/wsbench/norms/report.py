"""What became of every layer of a network that :func:`wsbench.norms.normalize` was given."""

from dataclasses import dataclass

from wsbench.norms.spec import NormSpec


@dataclass(frozen=True)
class LayerChange:
    """One layer of a :class:`NormReport`."""

    name: str
    kind: str
    """``activation`` (a normalization layer) or ``weight`` (a convolution or linear layer)."""
    before: str
    after: str
    changed: bool
    reason: str
    eligible: bool = False
    """Of a convolution or linear layer: whether a weight normalization applies to it, where the spec has one."""


@dataclass(frozen=True)
class NormReport:
    """Every convolution, linear and normalization layer: what it was, what it is, and why."""

    spec: NormSpec
    layers: tuple[LayerChange, ...]

    @property
    def weight_normalized(self) -> tuple[str, ...]:
        """Names of the layers that have the weight normalization now."""
        return tuple(c.name for c in self.layers if c.kind == "weight" and c.after.startswith("Normalized"))

    @property
    def plain(self) -> tuple[str, ...]:
        """Names of the convolutions and linear layers that have none."""
        return tuple(c.name for c in self.layers if c.kind == "weight" and not c.after.startswith("Normalized"))

    @property
    def eligible(self) -> tuple[str, ...]:
        """Names of the layers that have, or would have under a spec with one, the weight normalization."""
        return tuple(c.name for c in self.layers if c.eligible)

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the normalization layers that follow the spec now."""
        return tuple(c.name for c in self.layers if c.kind == "activation" and c.changed)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the normalization layers that were left as they were."""
        return tuple(c.name for c in self.layers if c.kind == "activation" and not c.changed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: fitted group numbers, degenerate cells, layers that were passed over."""
        return tuple(f"{c.name}: {c.reason}" for c in self.layers if c.reason.startswith("note: "))

    def counts(self) -> dict[str, int]:
        """How many layers of each kind, for a record."""
        return {
            "activation": len(self.activations),
            "weight": len(self.weight_normalized),
            "kept": len(self.kept),
            "plain": len(self.plain),
        }

    def summary(self) -> str:
        """How many layers became what, in one line."""
        return (
            f"{self.spec}: {len(self.activations)} normalization layers converted, {len(self.kept)} kept; "
            f"{len(self.weight_normalized)} layers weight-normalized, {len(self.plain)} plain"
        )

    def __str__(self) -> str:
        rows = [("layer", "was", "is", "why")]
        rows += [(c.name, c.before, c.after, c.reason) for c in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        table = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)) for row in rows)
        return f"{self.summary()}\n{table}"
