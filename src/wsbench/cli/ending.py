"""What is written when a run has ended: its record, and the tables beside it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from wsbench import plugins
from wsbench.analysis import log as analysis_log
from wsbench.cli.session import Session
from wsbench.errors import UserError
from wsbench.leaderboard.derive import update
from wsbench.leaderboard.show import show
from wsbench.records import (
    RECORD_NAME,
    TUNING_NAME,
    MetricValue,
    RecordError,
    RunRecord,
    Tuning,
    guessing,
    read_record,
    read_tuning,
    write_record,
)
from wsbench.run import folder as run_folder
from wsbench.run.provenance import machine as machine_of
from wsbench.run.provenance import provenance
from wsbench.run.recorder import evaluation_metrics, weights_digest
from wsbench.tasks import BenchmarkTask


def evaluate_last_weights(session: Session, trainer: Trainer, task: BenchmarkTask) -> None:
    """Evaluate the weights that training ended with, unless they have been."""
    changed = weights_digest(task) != session.recorder.evaluated_weights
    if task.evaluation is None or task.evaluation.step != trainer.global_step or changed:
        trainer.validate(task, datamodule=session.data, verbose=False)
    last = session.folder / run_folder.LAST
    if changed and last.exists():  # a callback put other weights in place at the end, such as an average
        trainer.save_checkpoint(last)


def _chance_level(session: Session, trainer: Trainer, task: BenchmarkTask) -> dict[str, MetricValue]:
    """The metrics of a network that guesses."""
    data = session.data
    names = [name for name in task.metrics if not name.startswith("mask_") or getattr(data, "masks", True)]
    return {
        name: MetricValue(value=round(guessing(name, len(data.classes)), 4), n_eval=len(data.val_data),
                          step=trainer.global_step)
        for name in names
    }  # fmt: skip


def _tuning(session: Session) -> Tuning | None:
    """How the rate was chosen, where a tuned sweep has laid that into the run's folder."""
    path = session.folder / TUNING_NAME
    if not path.is_file():
        return None
    tuning = read_tuning(path)
    if tuning.rate != session.settings.model.lr:
        raise RecordError(f"'{path}' is about the rate {tuning.rate}, this run has {session.settings.model.lr}")
    return tuning


def write_run_record(
    session: Session, trainer: Trainer, task: BenchmarkTask, argv: Sequence[str], diverged: bool = False
) -> None:
    """Write the record of a run into its folder, and derive the tables beside it.

    Args:
        session: of the run.
        trainer: that ran it.
        task: as it is now.
        argv: the command line.
        diverged: it ended with a loss that is NaN or infinite: its metrics are those of guessing.

    Raises:
        RecordError: the folder holds the tuning of another rate.
    """
    settings, recorder, choice = session.settings, session.recorder, session.choice
    batch, machine = recorder.batch, recorder.machine
    if batch is None:  # resumed at its end: no training has started
        batch = task.batch_numbers(settings.trainer.sync_batchnorm)
        machine = machine_of(trainer.strategy.root_device, trainer.world_size)
    chance = _chance_level(session, trainer, task) if diverged else None
    record = RunRecord(
        id=session.id,
        task=choice.task,
        recipe=choice.recipe,
        recipe_digest=session.recipe_digest,
        overrides=session.overrides,
        norm=str(task.spec),
        norm_sources=task.spec.sources,
        network=task.network_name,
        seed=settings.seed_everything,
        batch=batch,
        data=session.identity,
        steps=trainer.global_step,
        skipped_steps=recorder.skipped_steps,
        metrics=chance or evaluation_metrics(task) | task.training_metrics,
        best=chance or recorder.best | task.best_training_metrics,
        per_class={} if task.evaluation is None or diverged else task.evaluation.per_class,
        diverged=trainer.global_step if diverged else None,
        tuning=_tuning(session),
        converted=task.norm_report.counts(),
        definitions=task.definitions() | recorder.definitions(),
        analysis=analysis_log.points(session.folder),
        cost=recorder.cost(task, trainer.global_step * batch.effective_batch),
        provenance=provenance([*argv, *plugins.options()], machine, str(trainer.precision_plugin.precision)),
    )
    write_record(record, session.folder / RECORD_NAME)
    derive_tables(session.folder)


def derive_tables(folder: Path) -> None:
    """Bring the tables beside a finished run up to date, and show the run; a kill may have come between."""
    runs = folder.parents[1]
    written: list[Path] = []
    try:
        written = update([runs], runs / "leaderboards", of=read_record(folder / RECORD_NAME))
    except (UserError, OSError) as error:
        print(f"wsbench: warning: leaderboards are not updated: {error}", file=sys.stderr)
    show(folder, written)
