"""Least and most of a task's options: beyond them a value is a mistake."""

from collections.abc import Mapping
from typing import Any

from wsbench.options import out_of_range
from wsbench.tasks.errors import TaskOptionError

BOUNDS = {
    "lr": (0.0, 1e3), "momentum": (0.0, 1.0), "weight_decay": (0.0, 1e3), "dropout": (0.0, 1.0), "width": (1e-3, 1e4),
    "aspp_width": (1, 1e5), "rois": (1, 1e6), "proposals": (1, 1e6), "min_size": (1, 1e5), "max_size": (1, 1e5),
    "head_convs": (0, 64), "fc_width": (1, 1e6), "anchor_size": (1, 1e4),
    "k": (1, 1e5), "votes": (1, 1e4), "segments": (1, 1e4), "output_stride": (1, 64), "agc": (0.0, 1e3),
    "warmup_steps": (0, 1e9), "warmup_iters": (0, 1e9), "head_lr_mult": (0.0, 1e4), "poly_power": (0.0, 100.0),
}  # fmt: skip


def require_within_bounds(options: Mapping[str, Any]) -> None:
    """TaskOptionError for a number that cannot be meant, NaN among them."""
    wrong = out_of_range(options, BOUNDS, "--model.")
    if wrong:
        raise TaskOptionError(wrong)
    if any(milestone <= 0 for milestone in options.get("milestones") or ()):
        raise TaskOptionError(f"--model.milestones {list(options['milestones'])}: expected numbers above 0, ascending")
