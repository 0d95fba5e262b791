"""The result record of a run: schema, reading and writing. Torch-free; docs/records.md explains every field."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from wsbench.errors import UserError, printable
from wsbench.migration import LABELS
from wsbench.registry import TASKS

SCHEMA_VERSION = 7
#: the first version whose records have a note
NOTED = 3
RECORD_NAME = "result.json"
#: how a run's learning rate was chosen, laid into its folder by a tuned sweep
TUNING_NAME = "tuning.json"
#: of the log beside a published record
METRICS_SUFFIX = ".metrics.jsonl"


class RecordError(UserError, ValueError):
    """A file that is not a valid record; the message names the file and the fields."""


class _Strict(BaseModel):
    """Text in it is shown in terminals and pages, and names files: no control characters, no halves of characters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _is_text(cls, value: Any, info: ValidationInfo) -> Any:
        lines = info.field_name in ("note", "command")
        if isinstance(value, str) and (value != printable(value) or ("\n" in value and not lines)):
            raise ValueError(f"'{printable(value[:80])}' has characters that are no text")
        return value


class BatchNumbers(_Strict):
    """The five numbers that "batch size" may mean."""

    micro_batch: int = Field(ge=1, description="samples on one device in one micro-step")
    accumulate: int = Field(ge=1, description="micro-steps in an optimizer step")
    devices: int = Field(ge=1, description="devices that train together")
    effective_batch: int = Field(ge=1, description="samples in an optimizer step: the product of the three")
    norm_batch: int = Field(
        ge=1, description="samples that BN's statistics see: micro_batch, times devices under SyncBN"
    )


class MetricValue(_Strict):
    """A metric and over how many samples it was measured."""

    value: float = Field(description="as measured, in the metric's unit", allow_inf_nan=False)
    n_eval: int = Field(ge=1, description="evaluated samples, each counted once")
    step: int = Field(ge=0, description="optimizer steps taken when it was measured")


class SplitIdentity(_Strict):
    """One split of a dataset."""

    list: str = Field(description="name of the split's list, for instance trainaug")
    count: int = Field(description="samples in it", ge=0)
    checksum: str = Field(description="SHA-256 of the sample names in order, one a line")
    labels: str = Field(
        "",
        description="SHA-256 of what is learned from: class names, and each sample's class, mask, points or "
        "annotations; empty in records before version 4 of data that is not wsbench's own",
    )
    dropped: int = Field(0, description="samples that the list names and that are left out", ge=0)


class DataIdentity(_Strict):
    """A dataset and its splits."""

    name: str = Field(pattern=r"^[\w.-]+$", description="voc2012, voc-mini-v1 (the miniature), custom")
    splits: dict[str, SplitIdentity] = Field(description="train and val")


class Cost(_Strict):
    """What the run cost; over all its sessions if it was resumed."""

    train_seconds: float = Field(ge=0, description="wall time inside training steps and the loading between them")
    total_seconds: float = Field(ge=0, description="wall time from start to the end of the last evaluation")
    samples_per_second: float = Field(ge=0, description="training samples over train_seconds, all devices")
    peak_memory_mib: float = Field(
        ge=0, description="peak of allocated device memory, of the device with most; on a CPU, of the process"
    )
    parameters: int = Field(ge=0, description="parameters of the network")


class GradientParts(_Strict):
    """Parts of a squared gradient on standardized weights, relative to it; they add up to 1."""

    A: float = Field(ge=0, description="taken out by Eq. 6, the division by sigma")
    B: float = Field(ge=0, description="taken out by Eq. 5, the subtraction of the mean")
    R: float = Field(description="left for the weight, but for the scale")


class AnalysisPoint(_Strict):
    """Section 2.3 of the paper at one optimizer step, over all layers with weight standardization."""

    step: int = Field(ge=0, description="optimizer steps taken before it")
    epoch: int = Field(ge=0, description="the epoch whose first step it is")
    mean_of_ratios: GradientParts = Field(
        description="of each channel, averaged over the channels of a layer, then over layers"
    )
    ratio_of_sums: GradientParts = Field(description="of the sums over all channels of all layers")
    error: float = Field(ge=0, description="largest relative error of A + B + R of a channel")


class Provenance(_Strict):
    """Where a number comes from."""

    wsbench: str = Field(description="version of wsbench")
    python: str = Field(description="version of Python")
    torch: str = Field(description="version of torch")
    torchvision: str = Field(description="version of torchvision")
    lightning: str = Field(description="version of lightning")
    commit: str | None = Field(description="git commit of the working tree, null outside one")
    dirty: bool | None = Field(description="whether the tree had uncommitted changes")
    command: str = Field(description="the command line")
    hardware: str = Field(description="device and its number of threads or memory; how many, if several trained")
    precision: str = Field(description="the Trainer's precision, for instance 32-true, bf16-mixed")
    cuda: str = Field("", description="version of CUDA that torch was built for; empty on a CPU and before version 6")
    driver: str = Field("", description="version of NVIDIA's driver; empty where it is not known")
    cudnn: str = Field("", description="version of cuDNN; empty on a CPU")
    float32: str = Field("", description="how float32 is multiplied: torch's matmul precision, and convolutions")
    deterministic: bool = Field(False, description="whether torch was told to use deterministic algorithms")
    finished: str = Field(description="UTC time, ISO 8601")


class Trial(_Strict):
    """A run by which a learning rate was tried, scored on a part of the training data."""

    rate: float = Field(gt=0, description="the learning rate")
    seed: int = Field(description="of the run")
    record: str = Field(description="id of its record")
    score: float = Field(description="its metric on the part that was held out")
    diverged: bool = Field(description="whether its loss became NaN or infinite; then the score is that of guessing")


class Tuning(_Strict):
    """How a run's learning rate was chosen: docs/protocol.md."""

    metric: str = Field(description="the metric that decides")
    share: float = Field(gt=0, lt=1, description="of the training data that was held out and scored on")
    trials: tuple[Trial, ...] = Field(min_length=1, description="all runs that were tried, none left out")
    rate: float = Field(gt=0, description="the chosen rate: that of the best mean score; of several the middle one")


class RunRecord(_Strict):
    """One finished run: what was trained on what, by which code, at what cost, with what result."""

    schema_version: Literal[1, 2, 3, 4, 5, 6, 7] = Field(7, description="version of this schema")
    id: str = Field(pattern=r"^[\w.+-]+$", description="content hash of task, recipe, overrides, norm, seed and data")
    task: str = Field(description="imagenet, something, voc, modelnet40, coco")
    recipe: str = Field(pattern=r"^[\w-]+$", description="paper, small or mini")
    recipe_digest: str = Field("", description="SHA-256 of the recipe's content; empty before version 4")
    overrides: dict[str, Any] = Field(
        description="fields that differ from the recipe and change numbers; norm, seed, and where it ran aside"
    )
    norm: str = Field(description="canonical NormSpec")
    norm_sources: dict[str, dict[str, str]] = Field(
        {}, description="parts of the norm that are not wsbench's own: {name: {package, version, sha256 of its files}}"
    )
    network: str = Field(description="the network")
    seed: int = Field(description="seed of initialization, shuffling and augmentation")
    batch: BatchNumbers
    data: DataIdentity
    steps: int = Field(ge=0, description="optimizer steps taken")
    skipped_steps: int = Field(
        0, ge=0, description="of those, steps that moved nothing, because GradScaler found gradients that overflowed"
    )
    metrics: dict[str, MetricValue] = Field(
        description="of the final weights; `train_` ones are of the last epoch, counted while it ran"
    )
    best: dict[str, MetricValue] = Field(
        description="the evaluation during training at which the task's main metric was best; `train_` ones of "
        "the best epoch"
    )
    per_class: dict[str, dict[str, float]] = Field(
        {}, description="metrics of single classes, of the final weights: {metric: {class: value}}"
    )
    converted: dict[str, int] = Field(description="layers converted: activation, weight, kept, plain")
    definitions: dict[str, str] = Field(description="choices that the paper leaves open, as text")
    analysis: tuple[AnalysisPoint, ...] = Field(
        (), description="shares of gradients, of a run with --analysis true; docs/analysis.md"
    )
    cost: Cost
    provenance: Provenance
    diverged: int | None = Field(
        None,
        ge=0,
        description="the step at which the loss or an output was NaN or infinite, of a run with "
        "--on_divergence record; its metrics are those of guessing",
    )
    tuning: Tuning | None = Field(None, description="how its learning rate was chosen; null: it was not tuned")
    note: str = Field("", description="what its publisher says about it, for instance why it renews an earlier one")

    @model_validator(mode="after")
    def _of_a_task(self) -> "RunRecord":
        if self.task not in TASKS:
            raise ValueError(f"task: '{printable(self.task)}' is none of {', '.join(TASKS)}")
        if not self.metrics or "val" not in self.data.splits:
            raise ValueError("it has no metrics, or its data no split val")
        return self

    @property
    def labelled_norm(self) -> str:
        """The norm as tables name it: with package, version and file where it is not wsbench's own.

        Two packages, or two versions of one, may have different norms under one name.
        """
        if not self.norm_sources:
            return self.norm
        parts = [" ".join((s["package"], *([s["version"]] if "version" in s else []), s.get("sha256", "")[:8]))
                 for _, s in sorted(self.norm_sources.items())]  # fmt: skip
        return f"{self.norm} ({'; '.join(dict.fromkeys(parts))})"


def lower_is_better(metric: str) -> bool:
    """Of a metric's name."""
    return metric.endswith("error")


def better(value: float, other: float, higher_is_better: bool) -> bool:
    """Whether a metric's value is better than another."""
    return value > other if higher_is_better else value < other


def mean_scores(trials: Iterable[Trial]) -> dict[float, float]:
    """``{rate: mean score over the seeds of its trials}``, ascending."""
    by_rate: dict[float, list[float]] = {}
    for trial in trials:
        by_rate.setdefault(trial.rate, []).append(trial.score)
    return {rate: sum(values) / len(values) for rate, values in sorted(by_rate.items())}


def chosen(rates: Mapping[float, float], higher_is_better: bool) -> float:
    """The rate with the best score; of several the middle one, the lower of two.

    Args:
        rates: ``{rate: score}``.
        higher_is_better: of the score.
    """
    best = max(rates.values()) if higher_is_better else min(rates.values())
    tied = sorted(rate for rate, score in rates.items() if score == best)
    return tied[(len(tied) - 1) // 2]


def guessing(metric: str, classes: int) -> float:
    """What guessing among so many classes scores, in percent; 0 for mIoU and AP."""
    right = 100.0 * min(5 if "top5" in metric else 1, classes) / classes
    return 100.0 - right if metric.endswith("error") else right if metric.endswith("acc") else 0.0


def read_tuning(path: Path) -> Tuning:
    """Read how a rate was chosen; RecordError names the file and what is wrong in it."""
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise RecordError(f"'{path}' does not say how a rate was chosen: {problems}") from error


def checksum(names: Iterable[str]) -> str:
    """SHA-256 of names, one a line; names of files that are not UTF-8 count by their bytes."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomically(path: Path, text: str) -> None:
    """:func:`write_atomically`, UTF-8."""
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write by a temporary file in the same folder and a rename: readers see the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".part-", dir=path.parent)  # a long name must not grow longer
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_record(record: RunRecord, path: Path) -> None:
    """Write a record as JSON, keys in the schema's order."""
    write_text_atomically(path, record.model_dump_json(indent=1) + "\n")


def with_labels(record: RunRecord) -> RunRecord:
    """A record from before version 4 with the labels of its data, where that is one of wsbench's miniatures."""
    splits = {}
    for name, split in record.data.splits.items():
        labels = split.labels or LABELS.get(f"{record.data.name}/{name}/{split.checksum[:12]}", "")
        splits[name] = split.model_copy(update={"labels": labels})
    return record.model_copy(update={"data": record.data.model_copy(update={"splits": splits})})


def read_record(path: Path) -> RunRecord:
    """Read and validate a record; RecordError names the file and what is wrong in it."""
    try:
        return with_labels(RunRecord.model_validate(json.loads(path.read_text(encoding="utf-8"))))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise RecordError(f"'{path}' is not a record of schema version 1 to {SCHEMA_VERSION}: {problems}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"'{path}' is not JSON: {error}") from error
