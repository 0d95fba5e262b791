"""Verifying datasets, and building what is missing of them."""

import pkgutil

from wsbench.datamodules.prepare.base import Asked, Preparation
from wsbench.registry import TASKS

__all__ = ["Asked", "Preparation", "preparation"]


def preparation(task: str) -> Preparation:
    """What ``wsbench data`` can do for a task's dataset."""
    named = TASKS[task].preparation
    made: Preparation = Preparation() if named is None else pkgutil.resolve_name(named)()
    return made
