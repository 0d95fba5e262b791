"""The folder of a run, named by the content hash of its configuration."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsbench.records import RECORD_NAME, DataIdentity

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LAST = "last.ckpt"
BEST = "best.ckpt"
NORMS = "norms.txt"
ANALYSIS = "analysis.jsonl"
CHANNELS = "analysis"
#: what services of tracking call the run
TRACKING = "tracking.json"
FILES = (CONFIG, NORMS, METRICS, ANALYSIS, LAST, BEST)

#: Fields that say where and how to run, and change no number but by rounding.
NOT_IDENTITY = (
    "config", "ckpt_path", "runs", "overwrite", "weights_only", "verbose", "return_predictions", "print_config",
    "data.root", "data.num_workers", "data.pictures", "data.eval_batch",
    "trainer.accelerator", "trainer.barebones", "trainer.default_root_dir", "trainer.enable_checkpointing",
    "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.logger",
    "trainer.num_sanity_val_steps", "trainer.profiler", "model.window", "model.compile", "model.memory_format",
    "analysis", "snapshots", "tensorboard", "wandb", "mlflow",
)  # fmt: skip

#: Fields of the model that follow another field. A saved configuration has only the other one.
LINKS = {"model.norm": "norm", "model.num_classes": "data.num_classes", "model.segments": "data.segments"}


class RunExistsError(RuntimeError):
    """A run of exactly this configuration that is unfinished."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to ``{"a.b": value}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat


def identity_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flattened fields that a run's identity consists of."""
    return {k: v for k, v in flatten(config).items() if k not in NOT_IDENTITY and not k.startswith("trainer.logger.")}


def run_id(config: Mapping[str, Any], data: DataIdentity) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the resolved configuration and the data's identity."""
    content = {"config": identity_fields(config), "data": data.model_dump()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def overrides(config: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``config`` that differ from the recipe's, norm and seed aside: what makes two runs incomparable."""
    aside = ("norm", "seed_everything", "task", "recipe")
    return {k: v for k, v in differences(config, recipe).items() if k not in aside}


def model_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the model in a saved configuration, with those that follow other fields."""
    flat = flatten(config)
    followed = {target.removeprefix("model."): flat[source] for target, source in LINKS.items() if source in flat}
    return {**followed, **config["model"]}


def has_masks(network: str) -> bool:
    """Whether a detection network predicts masks, so that the data must have them."""
    return not network.startswith("faster_rcnn_")


def data_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the data in a saved configuration, with those that follow other fields."""
    followed: dict[str, Any] = {"seed": config["seed_everything"]}
    if config["task"] == "coco":
        followed["masks"] = has_masks(config["model"]["network"])
    return {**followed, **config["data"]}


def differences(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Identity fields of ``config`` that ``other`` has otherwise, as plain JSON values; what is linked is left out."""
    linked = (*LINKS, "data.masks", "data.seed")
    ours, theirs = (json.loads(json.dumps(identity_fields(c), default=str)) for c in (config, other))
    return {k: v for k, v in ours.items() if k not in linked and v != theirs.get(k)}


def snapshot_name(step: int) -> str:
    """The checkpoint that is kept of a step."""
    return f"step-{step:08d}.ckpt"


def snapshots(folder: Path) -> list[Path]:
    """The checkpoints that were kept of steps, in their order."""
    return sorted(folder.glob("step-*.ckpt"))


def claim(folder: Path, resume: bool, overwrite: bool, rank: int = 0) -> None:
    """Make ``folder`` ready for a run that starts, or that resumes.

    Every rank looks, so that none waits for another that gave up; only rank 0 removes what an earlier start left.

    Raises:
        RunExistsError: if an unfinished run with a checkpoint lies there and neither was asked for.
    """
    if resume:
        return
    if (folder / LAST).exists() and not overwrite:
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
