"""The folder of a run, named by the content hash of its configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsbench.errors import UserError
from wsbench.records import RECORD_NAME
from wsbench.registry import LINKS, TASKS
from wsbench.run.identity import flatten

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LAST = "last.ckpt"
#: the last one but one, for when the last is damaged
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
NORMS = "norms.txt"
ANALYSIS = "analysis.jsonl"
CHANNELS = "analysis"
#: what services of tracking call the run
TRACKING = "tracking.json"
#: what a run writes before its first step
STARTED = (CONFIG, NORMS, TRACKING, "hparams.yaml")
FILES = (CONFIG, NORMS, METRICS, ANALYSIS, LAST, PREVIOUS, BEST)


class RunExistsError(UserError, RuntimeError):
    """A run of exactly this configuration that is unfinished."""


def _followed(config: Mapping[str, Any], room: str) -> dict[str, Any]:
    """The fields of ``model`` or ``data`` that a saved configuration lacks because they follow others."""
    flat = flatten(config)
    links = (*LINKS, *TASKS[config["task"]].links)
    return {
        link.field.removeprefix(f"{room}."): link.value(flat[link.source])
        for link in links
        if link.field.startswith(f"{room}.") and link.source in flat
    }


def model_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the model in a saved configuration, with those that follow other fields."""
    return {**_followed(config, "model"), **config["model"]}


def data_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the data in a saved configuration, with those that follow other fields."""
    return {"seed": config["seed_everything"], **_followed(config, "data"), **config["data"]}


def snapshot_name(step: int) -> str:
    """The checkpoint that is kept of a step."""
    return f"step-{step:08d}.ckpt"


def snapshots(folder: Path) -> list[Path]:
    """The checkpoints that were kept of steps, in their order."""
    return sorted(folder.glob("step-*.ckpt"))


def resumable(folder: Path) -> Path | None:
    """The checkpoint that a run in ``folder`` resumes from: the last, or where that is not there the one before."""
    return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()), None)


def claim(folder: Path, resume: bool, overwrite: bool, rank: int = 0) -> None:
    """Make ``folder`` ready for a run that starts, or that resumes.

    Every rank looks, so that none waits for another that gave up; only rank 0 removes what an earlier start left.

    Raises:
        RunExistsError: if an unfinished run with a checkpoint lies there and neither was asked for.
    """
    if resume:
        return
    if resumable(folder) is not None and not overwrite:
        raise RunExistsError(
            f"an unfinished run of exactly this configuration lies in '{folder}'; resume it with --ckpt_path last, or "
            "start over with --overwrite true"
        )
    if rank:
        return
    for name in (RECORD_NAME, *FILES, TRACKING, "hparams.yaml"):
        (folder / name).unlink(missing_ok=True)
    events = folder.glob("events.out.tfevents.*")
    for path in (*snapshots(folder), *(folder / CHANNELS).glob("step-*.npz"), *events):
        path.unlink()
