"""What a recommendation is asked of: its options and its data, checked before anything runs."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wsbench.datamodules import BenchmarkData, data_class
from wsbench.datamodules.errors import DatasetError, DatasetNotFoundError
from wsbench.datamodules.prepare import Preparation, preparation
from wsbench.datamodules.prepare.split import LIST, SPLITS
from wsbench.errors import UserError
from wsbench.grid.launcher import Launcher
from wsbench.norms import NormSpec, SpecError
from wsbench.options import UsageError, parse_duration
from wsbench.recommend.budget import NORMS, Size
from wsbench.registry import TASKS

#: of a cluster whose number of jobs is not limited, runs at a time that are planned with
_ON_A_CLUSTER = 16
#: options that the plan sets
_PLANNED = (
    "--trainer.max_steps", "--trainer.max_epochs", "--data.micro_batch", "--model.lr", "--norm", "--model.network",
    "--seed_everything", "--data.tuning", "--data.root", "--recipe", "--task", "--runs", "--model.milestones",
    "--model.init_from", "--model.init_from_any_norm", "--ckpt_path", "--overwrite", "--on_divergence",
    # of several fields at once, or from a file: what they set would be taken for what was planned
    "--model", "--data", "--trainer", "--config", "--print_config",
)  # fmt: skip


def require_unplanned(further: Sequence[str]) -> None:
    """UsageError if an option for every run is one that the plan sets."""
    for word in further:
        if word.split("=")[0] in _PLANNED:
            raise UsageError(f"{word.split('=')[0]} may not come after --; recommend sets it")


def norms_of(text: str | None, task: str) -> list[str]:
    """The norms of ``--norms``; by default those of a recommendation, with the paper's groups for the task."""
    if text is None:
        groups = TASKS[task].groups
        return [n.replace("gn", f"gn{groups}") for n in NORMS] if groups else [*NORMS]
    try:
        norms = [str(NormSpec.parse(word)) for word in text.split(",") if word]
    except SpecError as error:
        raise UsageError(f"--norms: {error}") from error
    if len(norms) < 2 or len(set(norms)) < len(norms):
        raise UsageError(f"--norms {text}: expected two or more different norms, separated by commas")
    return norms


def budget_of(text: str) -> float:
    """Seconds of ``--budget``."""
    try:
        return parse_duration(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--budget: {error}; say 2h, or 1h30m") from error


def folder_of(task: str, root: Path, out: Path) -> tuple[Path, list[str]]:
    """The dataset's folder, or one with a split made of it; and what is to be said about it."""
    kind = data_class(task)
    if not str(root) or not root.is_dir():
        raise UsageError(f"--data.root '{root}' is no folder")
    try:
        kind.find(root)
    except DatasetError as error:
        made = preparation(task).split(root, out)
        if made is None and isinstance(error, DatasetNotFoundError):
            without = type(preparation(task)).split is not Preparation.split
            looked_for = f"{error.looked_for}{', and for samples without a val' if without else ''}"
            raise DatasetError(
                f"'{root}' holds no data of {task}: looked for {looked_for}; {error.holds}. `python -m wsbench data "
                f"{task}` shows the layout"
            ) from error
        if made is None:
            raise
        note = f"'{root}' has no val: a fifth of its samples was held out, by their names; '{made / LIST}' lists which"
        return made, [note]
    return root, []


def jobs_of(launcher: Launcher) -> int:
    """How many runs at a time are planned with."""
    return int(getattr(launcher, "jobs", None) or _ON_A_CLUSTER)


def size_of(data: BenchmarkData, settings: Any) -> Size:
    """What the length of a run follows from."""
    epochs = settings.trainer.max_epochs
    if not epochs or epochs < 1:
        raise UsageError("the recipe's length has to be in epochs: --trainer.max_epochs")
    fewest = data.steps_per_epoch or data.min_steps_per_epoch
    return Size(train=len(data.train_data), val=len(data.val_data), effective_batch=data.effective_batch,
                fewest_steps=fewest, epochs=epochs, lr=settings.model.lr)  # fmt: skip


def candidates(effective: int, asked: str) -> list[int]:
    """Samples on a device at a time that are tried, the most first."""
    if asked == "auto":
        return [n for n in range(effective, 0, -1) if effective % n == 0 and n & (n - 1) == 0] or [1]
    if not asked.isdecimal() or not 0 < int(asked) <= effective or effective % int(asked):
        raise UsageError(f"--micro-batch {asked}: expected auto, or a divisor of {effective}, the samples of an "
                         "optimizer step")  # fmt: skip
    return [int(asked)]


@contextlib.contextmanager
def unless_wrong(out: Path) -> Iterator[None]:
    """A split that is made in ``out`` goes again where an option turns out to be wrong."""
    was_there, before = out.is_dir(), set(out.glob(SPLITS))
    try:
        yield
    except UserError:
        for made in set(out.glob(SPLITS)) - before:
            shutil.rmtree(made)
        if not was_there and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise
