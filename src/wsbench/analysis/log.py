"""``analysis.jsonl`` in a run's folder: gradient shares by layer and network, append-only as ``metrics.jsonl``."""

from pathlib import Path
from typing import Any

from wsbench.analysis.shares import PARTS, Aggregate, ChannelShares, aggregate
from wsbench.records import AnalysisPoint, GradientParts
from wsbench.run.folder import ANALYSIS
from wsbench.run.lines import append_line, read_lines


def _aggregated(aggregate: Aggregate) -> dict[str, Any]:
    return {
        "mean_of_ratios": dict(zip(PARTS, aggregate.mean_of_ratios, strict=True)),
        "ratio_of_sums": dict(zip(PARTS, aggregate.ratio_of_sums, strict=True)),
    }


def measurement(step: int, epoch: int, spec: str, layers: dict[str, ChannelShares]) -> dict[str, Any]:
    """One line of the log.

    Args:
        step: optimizer steps taken before this one.
        epoch: the epoch.
        spec: the normalization.
        layers: name to shares; those without any gradient are left out of the line.
    """
    nonzero = {name: shares for name, shares in layers.items() if bool((shares.total > 0).any())}
    whole = float(sum(float(s.total.sum()) for s in nonzero.values()))
    return {
        "step": step,
        "epoch": epoch,
        "norm": spec,
        "network": _aggregated(aggregate(nonzero)) | {
            "error": max(s.error for s in nonzero.values()),
            "printed_error": max(s.printed_error for s in nonzero.values()),
        },
        "layers": {
            name: _aggregated(aggregate({name: s})) | {
                "channels": len(s.total),
                "channels_without_gradient": int((s.total == 0).sum()),
                "share_of_network": float(s.total.sum()) / whole,
                "smallest_sigma": float(s.sigma.min()),
                "smallest_retained": float(s.retained.min()),
                "error": s.error,
                "printed_error": s.printed_error,
            }
            for name, s in nonzero.items()
        },
    }  # fmt: skip


def append(folder: Path, line: dict[str, Any]) -> None:
    """Add a measurement to a run's log."""
    append_line(folder / ANALYSIS, line)


def read(folder: Path) -> list[dict[str, Any]]:
    """A run's measurements in the order of steps; of a step that a resumed run repeated the last. Empty without any."""
    path = folder / ANALYSIS
    lines = {line["step"]: line for line in read_lines(path)} if path.is_file() else {}
    return [lines[step] for step in sorted(lines)]


def points(folder: Path) -> tuple[AnalysisPoint, ...]:
    """A run's measurements, as its record states them."""

    def parts(values: dict[str, float]) -> GradientParts:
        return GradientParts(**{name: round(value, 6) for name, value in values.items()})

    return tuple(
        AnalysisPoint(
            step=line["step"],
            epoch=line["epoch"],
            mean_of_ratios=parts(line["network"]["mean_of_ratios"]),
            ratio_of_sums=parts(line["network"]["ratio_of_sums"]),
            error=line["network"]["error"],
        )
        for line in read(folder)
    )
