"""The loggers of a run: its own log always, TensorBoard by default, W&B and MLflow on request; all survive a resume."""

import json
import logging
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from torch.utils.tensorboard.summary import hparams

from wsbench.errors import UserError, shortened
from wsbench.extras import mlflow, wandb
from wsbench.records import write_text_atomically
from wsbench.run.folder import TRACKING
from wsbench.run.logger import JSONLLogger

PROJECT = "wsbench"


def loggers(
    folder: Path,
    resumed_at: int | None,
    rank: int,
    labels: Mapping[str, str],
    tensorboard: bool = True,
    with_wandb: bool = False,
    with_mlflow: bool = False,
) -> list[Logger]:
    """Make them.

    Args:
        folder: the run's folder.
        resumed_at: the step of the checkpoint that the run resumes from; None at a start.
        rank: of this process; only rank 0 logs anything.
        labels: what tells the run from others: task, norm, seed ...
        tensorboard: event files in ``folder``.
        with_wandb: a run of W&B's project ``wsbench``; where to is W&B's own matter (WANDB_MODE, WANDB_BASE_URL).
        with_mlflow: a run of MLflow's experiment ``wsbench``, at MLFLOW_TRACKING_URI, or in ``mlflow.db`` beside runs.

    Raises:
        MissingPartError: the package of a logger is not installed.
    """
    made: list[Logger] = [JSONLLogger(folder)]
    name = " ".join(labels.values())
    if tensorboard:
        # what an earlier process logged behind its checkpoint is logged again, and must not stand there twice
        purge: dict[str, Any] = {} if resumed_at is None else {"purge_step": resumed_at + 1}
        made.append(TensorBoardLogger(folder, name="", version="", default_hp_metric=False, **purge))
    if with_wandb:
        wandb()
        identity = _kept(folder, "wandb", f"{folder.name}-{secrets.token_hex(3)}", rank)
        logger = WandbLogger(
            project=PROJECT, name=name, id=identity, save_dir=folder, resume="allow", tags=list(labels.values()),
            log_model=False,
        )  # fmt: skip
        if not rank:
            _start(logger)
        made.append(logger)
    if with_mlflow:
        made.append(_mlflow(folder, name, labels, rank))
    return made


def describe(made: Sequence[Logger], facts: Mapping[str, Any], metrics: Sequence[str], resumed: bool) -> None:
    """Tell services what the run is, so that runs can be filtered and sorted by it.

    Args:
        made: the loggers.
        facts: the hyper-parameters.
        metrics: names of logged metrics that TensorBoard's table of runs shows beside them.
        resumed: whether an earlier session has told them; MLflow takes them once.
    """
    for logger in made:
        if isinstance(logger, TensorBoardLogger):
            # Lightning's own way would log a value of each metric at step 0
            writer = logger.experiment.file_writer
            summaries = hparams(dict(facts), dict.fromkeys(metrics, 0.0))  # type: ignore[no-untyped-call]
            for summary in summaries:
                writer.add_summary(summary)
            logger.hparams.update(facts)  # of hparams.yaml
        elif isinstance(logger, WandbLogger) or (isinstance(logger, MLFlowLogger) and not resumed):
            logger.log_hyperparams(dict(facts))


def finish() -> None:
    """End what services have open in this process, so that another run in it gets its own."""
    if sys.modules.get("wandb") is not None:
        wandb().finish()


def _tracking(folder: Path) -> dict[str, str]:
    path = folder / TRACKING
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _start(logger: WandbLogger) -> None:
    """Start W&B's run now, and say what it says where that fails: no login, no network."""
    from wandb.errors import Error

    try:
        _ = logger.experiment
    except Error as error:
        raise UserError(f"--wandb: {shortened(str(error))}; WANDB_MODE=offline logs without it") from error


def _kept(folder: Path, service: str, identity: str, rank: int) -> str:
    """The identity under which a service knows the run: that of an earlier session, else this new one."""
    tracked = _tracking(folder)
    if service not in tracked and not rank:
        tracked[service] = identity
        write_text_atomically(folder / TRACKING, json.dumps(tracked) + "\n")
    return tracked.get(service, identity)


def _mlflow(folder: Path, name: str, labels: Mapping[str, str], rank: int) -> Logger:
    mlflow()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Lightning's default, files below ./mlruns, is one that MLflow no longer writes
    runs, given = folder.absolute().parents[1], os.environ.get("MLFLOW_TRACKING_URI")
    place = given or f"sqlite:///{runs / 'mlflow.db'}"
    # MLflow's default is ./mlruns, wherever that is
    images = None if given else (runs / "mlflow").as_uri()
    tracked = _tracking(folder).get("mlflow")
    tags = {**labels, "run": folder.name}
    made = MLFlowLogger(PROJECT, run_name=name, tracking_uri=place, tags=tags, run_id=tracked, artifact_location=images)
    if tracked is None and not rank:
        _kept(folder, "mlflow", str(made.run_id), rank)
    return made
