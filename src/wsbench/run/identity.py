"""What a run is: the content hash of all that decides its numbers, and of nothing else.

The hash is over a version number, the task, the recipe's content, the overrides that change numbers, norm, seed, and
the data with its labels. Where and how fast to run (devices, nodes, workers, folders, logging) is no part of it, and no
default of a library is: a field of Lightning's Trainer counts if it is in :data:`TRAINER` and differs from the recipe.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wsbench.migration import RECIPES
from wsbench.records import DataIdentity, RunRecord, sha256_of

#: of what is hashed; a new one makes all runs new
VERSION = 2
#: the version of the records' schema from which on they hold all that their id hashes
IDENTIFIED = 4

#: The Trainer's fields that change numbers. How evaluation is cut into epochs, for instance, says which one is best.
TRAINER = (
    "max_steps", "max_epochs", "min_steps", "min_epochs", "overfit_batches", "limit_train_batches",
    "limit_val_batches", "val_check_interval", "check_val_every_n_epoch", "gradient_clip_val",
    "gradient_clip_algorithm", "precision", "sync_batchnorm", "reload_dataloaders_every_n_epochs", "callbacks",
    "plugins",
)  # fmt: skip
#: wsbench's own activation normalizations that see all devices; others say so among their sources
ACROSS_DEVICES = ("syncbn",)
#: and, where BN's statistics are synchronized, these: they say how many samples it sees
_SYNCHRONIZED = ("devices", "num_nodes")
#: Fields of the data that say where it is and how it is loaded, or that follow from it: it has an identity of its own.
DATA_ASIDE = (
    "root", "num_workers", "pictures", "recursive", "eval_batch", "seed", "num_classes", "class_names", "masks",
    "max_dropped",
)  # fmt: skip
#: Fields of the model that change nothing but rounding, or that follow other fields.
MODEL_ASIDE = ("norm", "num_classes", "segments", "window", "compile", "memory_format")
INIT_FROM = "model.init_from"
#: what a tuned sweep sets
LR, SHARE = "model.lr", "data.tuning"
#: how GPUs multiply float32; the defaults are torch's, and no recipe has others
FLOAT32 = ("matmul_precision", "tf32_convolutions")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to ``{"a.b": value}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat


def _counts(name: str, synchronized: bool) -> bool:
    if name in FLOAT32:
        return True
    room, _, field = name.partition(".")
    if room == "trainer":
        first = field.partition(".")[0]
        return first in TRAINER or (synchronized and first in _SYNCHRONIZED)
    return (room == "data" and field not in DATA_ASIDE) or (room == "model" and field not in MODEL_ASIDE)


Sources = Mapping[str, Mapping[str, str]]
"""Of the parts of a norm that are not wsbench's own: ``{name: {package, version, sha256}}``."""


def _synchronized(fields: Mapping[str, Any], norm: str, sources: Sources) -> bool:
    """Whether statistics are over all devices."""
    act = re.split(r"[^a-z]", norm, maxsplit=1)[0]
    across = act in ACROSS_DEVICES or any("across_devices" in source for source in sources.values())
    return bool(fields.get("trainer.sync_batchnorm")) or across


def deciding(config: Mapping[str, Any], sources: Sources = MappingProxyType({})) -> dict[str, Any]:
    """The fields of a configuration that change numbers, flat, as plain JSON values."""
    flat = flatten(config)
    synchronized = _synchronized(flat, str(flat.get("norm")), sources)
    chosen = {name: value for name, value in flat.items() if _counts(name, synchronized)}
    plain: dict[str, Any] = json.loads(json.dumps(chosen, default=str))
    return plain


def differences(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``config`` that change numbers and that ``other`` has otherwise, norm and seed among them."""
    ours, theirs = ({**deciding(c), **{k: c.get(k) for k in ("norm", "seed_everything")}} for c in (config, other))
    return {name: value for name, value in ours.items() if value != theirs.get(name)}


def overrides(
    config: Mapping[str, Any], defaults: Mapping[str, Any], sources: Sources = MappingProxyType({})
) -> dict[str, Any]:
    """The fields that change numbers and differ from the recipe; weights to start from with their content.

    Args:
        config: a resolved configuration.
        defaults: the same, of the recipe alone.
        sources: where parts of the norm come from that are not wsbench's own.
    """
    ours, theirs = deciding(config, sources), deciding(defaults)
    changed = {name: value for name, value in ours.items() if value != theirs.get(name)}
    if changed.get(INIT_FROM):
        changed[INIT_FROM] = with_content(changed[INIT_FROM])
    return changed


def with_content(source: str) -> str | dict[str, str]:
    """``PATH`` or ``SPEC=PATH`` with the SHA-256 of the file; a source without a file as it is.

    Another file under the same name starts another run, and the same file under another name does not.
    """
    for stated, path in ((None, source), source.partition("=")[::2]):
        file = Path(path).expanduser()
        if path and file.is_file():
            return {"source": source, "sha256": sha256_of(file), **({} if stated is None else {"norm": stated})}
    return source


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe's content: of the fields in it that change numbers."""
    return _hash(deciding(recipe))


def run_id(
    task: str,
    recipe: str,
    digest: str,
    overrides: Mapping[str, Any],
    norm: str,
    seed: int,
    data: DataIdentity,
    sources: Sources = MappingProxyType({}),
) -> str:
    """Twelve hexadecimal digits of the SHA-256 of all that decides a run's numbers.

    Args:
        task: its name.
        recipe: the recipe's name.
        digest: as of :func:`recipe_digest`.
        overrides: as of :func:`overrides`.
        norm: the canonical specification.
        seed: of initialization, shuffling and augmentation.
        data: the data, with its labels.
        sources: where parts of the norm come from that are not wsbench's own.
    """
    start = overrides.get(INIT_FROM)
    if isinstance(start, Mapping):  # by content, not by name
        overrides = {**overrides, INIT_FROM: {k: v for k, v in start.items() if k != "source"}}
    content = {
        "version": VERSION, "task": task, "recipe": [recipe, digest], "overrides": dict(overrides), "norm": norm,
        "seed": seed, "data": data.model_dump(),
    }  # fmt: skip
    if sources:
        content["norm_sources"] = {name: dict(source) for name, source in sources.items()}
    return _hash(content)[:12]


def id_of(record: RunRecord) -> str | None:
    """The id that a record's run has today; None where an old record does not say enough.

    A record before version 4 of the schema has an id that hashed defaults of Lightning, too. Its overrides are freed of
    fields that change no number, and the recipe is the one of its time (:mod:`wsbench.migration`).
    """
    digest = record.recipe_digest or RECIPES.get(f"{record.task}/{record.recipe}")
    if digest is None:
        return None
    synchronized = _synchronized(record.overrides, record.norm, record.norm_sources)
    kept = {name: value for name, value in record.overrides.items() if _counts(name, synchronized)}
    return run_id(record.task, record.recipe, digest, kept, record.norm, record.seed, record.data,
                  record.norm_sources)  # fmt: skip
