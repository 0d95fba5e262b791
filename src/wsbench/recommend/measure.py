"""What a run costs on the machine that will run it: a short run of every norm, by the same launcher."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import yaml

from wsbench.grid.attempt import says_out_of_memory
from wsbench.grid.cells import Cell, attempts, status
from wsbench.recommend.budget import Cost
from wsbench.records import RunRecord
from wsbench.registry import TASKS

#: optimizer steps of a measuring run, and batches that it evaluates
STEPS, BATCHES = 6, 20


def definition(options: dict[str, Any], norms: Sequence[str], networks: Sequence[str], micro_batch: int) -> str:
    """The sweep that measures, as its YAML's content.

    Args:
        options: of every run.
        norms: to measure.
        networks: to measure.
        micro_batch: samples on a device at a time.
    """
    short = {"trainer.max_steps": STEPS, "data.steps_per_epoch": STEPS, "trainer.limit_val_batches": BATCHES,
             "data.micro_batch": micro_batch}  # fmt: skip
    grid = {"options": options | short, "axes": {"norm": [*norms], "model.network": [*networks]}}
    content = {"about": "what a run costs here", "grids": {"small": grid}}
    return str(yaml.safe_dump(content, sort_keys=False))


def ran_out_of_memory(cell: Cell) -> bool:
    """Whether a cell failed for want of memory."""
    note = status(cell).note
    return says_out_of_memory(note) or "SIGKILL" in note


def cost_of(cell: Cell, record: RunRecord) -> Cost:
    """Seconds of a start, a step and an evaluated sample, and the memory, of a finished run."""
    cost = record.cost
    wall = _wall(cell) or cost.total_seconds
    step = cost.train_seconds / max(1, record.steps)  # it may have diverged in the first
    evaluated = max(metric.n_eval for name, metric in record.metrics.items() if not name.startswith("train_"))
    sample = max(0.0, cost.total_seconds - cost.train_seconds) / evaluated  # with what a run does once
    if not TASKS[record.task].evaluates_whole:
        sample = min(sample, step / record.batch.effective_batch)
    start = max(0.0, wall - cost.train_seconds - sample * evaluated)
    return Cost(start=start, step=step, sample=sample, memory=cost.peak_memory_mib)


def _wall(cell: Cell) -> float | None:
    """Seconds of the attempt that finished, with starting Python."""
    events = attempts(cell.folder)
    starts = [event for event in events if event["event"] == "start"]
    ends = [event for event in events if event["event"] == "end"]
    if not starts or not ends:
        return None
    first, last = (datetime.fromisoformat(each[-1]["time"]) for each in (starts, ends))
    return (last - first).total_seconds() or None
