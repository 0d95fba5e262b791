"""The session of a run that is fitted: what run it is, its folder and lock, where it resumes, what follows it."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback

from wsbench.analysis.callback import GradientShares, Snapshots
from wsbench.cli.parser import plain, prepared, recipe_defaults
from wsbench.configuration.choice import RecipeChoice
from wsbench.configuration.foreign import read_yaml
from wsbench.datamodules.base import BenchmarkData
from wsbench.norms import NormSpec
from wsbench.options import UsageError
from wsbench.records import RECORD_NAME, DataIdentity, write_text_atomically
from wsbench.run import folder as run_folder
from wsbench.run import identity, lock, nodes
from wsbench.run.checkpoints import remove_parts
from wsbench.run.loggers import describe, loggers
from wsbench.run.progress import progress_callback
from wsbench.run.recorder import Recorder
from wsbench.run.shown import ShownPredictions
from wsbench.run.stopping import Every, Stopping, seconds_of
from wsbench.tasks import BenchmarkTask, task_class
from wsbench.tasks.formats import read_run_checkpoint


class FinishedError(Exception):
    """The run of this configuration is there already; carries its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder: it runs the run again."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, without what belongs to this start only; evaluating a run later does not rewrite it."""
        path = Path(trainer.default_root_dir) / run_folder.CONFIG
        if stage != "fit" or (self.config.ckpt_path and path.exists()):
            return
        config = self.config.clone()
        config.ckpt_path, config.overwrite = None, False
        text = self.parser.dump(config, skip_none=False)
        write_text_atomically(path, text)


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of a run; UsageError if it is none."""
    try:
        return read_run_checkpoint(Path(path).expanduser())
    except ValueError as error:
        raise UsageError(str(error)) from error


#: overrides of the recipe that loggers are told of under names of their own
_IN_FACTS = ("model.network", "model.lr", "data.micro_batch", "data.effective_batch", "trainer.precision")


class Session:
    """A run, from its configuration.

    Args:
        choice: task and recipe.
        settings: of ``fit``; the classes of the data are set in it, and the checkpoint that is found.

    Raises:
        UserError: the data cannot be read.
    """

    def __init__(self, choice: RecipeChoice, settings: Namespace) -> None:
        self.choice, self.settings = choice, settings
        self.recorder = Recorder()
        #: what a user should know of it before it starts
        self.notes: list[str] = []
        #: the step of the checkpoint that it resumes
        self.resumed_at: int | None = None
        #: weights that the user names; a run that resumes has those of its checkpoint in their place
        self.init_from = settings.model.init_from
        self.data: BenchmarkData = prepared(choice.task, settings.data, "fit")
        settings.data.num_classes = settings.model.num_classes = self.data.num_classes
        self.identity: DataIdentity = self.data.identity()
        self.recipe_digest = identity.recipe_digest(choice.recipe_content())
        sources = NormSpec.parse(settings.norm).sources
        self.overrides = identity.overrides(plain(settings), recipe_defaults(choice), sources)
        if settings.ckpt_path not in (None, "last", "auto"):  # which remembers what its run started from
            started = read_checkpoint(settings.ckpt_path).get("started_from")
            if started is not None and started["source"] == settings.model.init_from:
                self.overrides[identity.INIT_FROM] = started
        self.id = identity.run_id(choice.task, choice.recipe, self.recipe_digest, self.overrides, settings.norm,
                                  settings.seed_everything, self.identity, sources)  # fmt: skip
        self.folder = Path(settings.runs) / choice.task / self.id

    @property
    def is_dry(self) -> bool:
        """Whether nothing is to be written: --trainer.fast_dev_run."""
        return bool(self.settings.trainer.fast_dev_run)

    def open(self) -> None:
        """Find the checkpoint to resume, lock the folder, and make it ready.

        Raises:
            FinishedError: the run is there already.
            UsageError: there is nothing to resume, or it is another run's.
            UserError: somebody else has the folder, or an unfinished run lies there.
        """
        settings = self.settings
        if settings.ckpt_path == "auto":
            unfinished = run_folder.resumable(self.folder) and not (self.folder / RECORD_NAME).exists()
            settings.ckpt_path = "last" if unfinished else None
        resume = settings.ckpt_path is not None
        if settings.ckpt_path == "last":
            settings.ckpt_path = self._last_whole_one()
        if resume and not Path(settings.ckpt_path).is_file():
            raise UsageError(f"no checkpoint to resume at '{settings.ckpt_path}'; start without --ckpt_path")
        if resume:
            self._require_same_run(settings.ckpt_path)
            settings.model.init_from = None  # the checkpoint has the weights; set back once the model is built
        if self.is_dry:
            return
        if not nodes.process_rank():
            lock.hold(self.folder)
            remove_parts(self.folder)
        if (self.folder / RECORD_NAME).exists() and not settings.overwrite:
            raise FinishedError(self.folder)
        run_folder.claim(self.folder, resume, settings.overwrite, nodes.process_rank())

    def _last_whole_one(self) -> str:
        """The run's last checkpoint; the one before where that is damaged, with a sentence."""
        last, previous = self.folder / run_folder.LAST, self.folder / run_folder.PREVIOUS
        if not previous.is_file():
            return str(last)
        try:
            read_run_checkpoint(last)
        except (ValueError, OSError) as error:
            self.notes.append(f"{error}; resuming from the one before it, '{previous}'")
            return str(previous)
        return str(last)

    def _require_same_run(self, path: str) -> None:
        """Refuse to resume another configuration: Lightning would restore its optimizer and schedule silently."""
        checkpoint = read_checkpoint(path)
        owner = checkpoint.get("run_id")
        if owner == self.id and isinstance(checkpoint.get("global_step"), int):
            self.resumed_at = checkpoint["global_step"]
            return
        beside = Path(path).expanduser().resolve().parent / run_folder.CONFIG
        differ = ""
        if beside.is_file():
            theirs = read_yaml(beside, "the run's configuration")
            fields = identity.differences(plain(self.settings), theirs)
            differ = f"; they differ in {', '.join(sorted(fields)) or 'the data'}"
        raise UsageError(
            f"'{path}' belongs to run {owner}, this configuration is run {self.id}{differ}. A resumed run keeps "
            "its configuration; to start a new one from these weights use --model.init_from"
        )

    def callbacks(self) -> list[Callback]:
        """Those that every run has."""
        settings, trainer = self.settings, self.settings.trainer
        model = task_class(self.choice.task)
        saves = not self.is_dry and trainer.enable_checkpointing is not False
        every, at_most = Every.parse(settings.checkpoint_every), seconds_of(trainer.max_time)
        callbacks: list[Callback] = [self.recorder, Stopping(self.folder if saves else None, every, at_most)]
        if settings.analysis:
            callbacks.append(GradientShares(None if self.is_dry else self.folder))
        if settings.snapshots and not self.is_dry:
            callbacks.append(Snapshots(self.folder, settings.snapshots))
        if settings.log_images > 0 and not self.is_dry:
            callbacks.append(ShownPredictions(settings.log_images))
        if trainer.enable_progress_bar is not False:
            callbacks.append(progress_callback())
        if trainer.enable_checkpointing is not False:
            always: dict[str, Any] = {"dirpath": self.folder, "enable_version_counter": False, "save_top_k": 1}
            callbacks += [
                ModelCheckpoint(filename="best", monitor=f"val/{model.monitor}", mode=model.mode, **always),
                ModelCheckpoint(filename="last", every_n_epochs=1, save_on_train_epoch_end=True, **always),
            ]
        return callbacks

    def loggers(self, task: BenchmarkTask) -> list[Any]:
        """Those that the run asks for, which go on where the checkpoint was."""
        settings = self.settings
        labels = {"task": settings.task, "recipe": settings.recipe, "norm": str(task.spec)}
        labels["seed"] = f"seed {settings.seed_everything}"
        chosen = (settings.tensorboard, settings.wandb, settings.mlflow)
        return [*loggers(self.folder, self.resumed_at, nodes.process_rank(), labels, *chosen)]

    def describe(self, task: BenchmarkTask, trainer: Trainer) -> None:
        """Tell the run's loggers what it is."""
        settings, batch = self.settings, task.batch_numbers(self.settings.trainer.sync_batchnorm)
        facts = {
            "task": self.choice.task, "recipe": self.choice.recipe, "network": task.network_name,
            "norm": str(task.spec), "activation": task.spec.act, "weight": task.spec.weight or "none",
            "seed": settings.seed_everything, "lr": settings.model.lr, "micro_batch": batch.micro_batch,
            "effective_batch": batch.effective_batch, "precision": str(trainer.precision_plugin.precision),
            "data": self.identity.name, "run": self.id,
            **{name: str(v) for name, v in self.overrides.items() if name not in _IN_FACTS},
        }  # fmt: skip
        describe(trainer.loggers, facts, [f"val/{task.monitor}"], self.resumed_at is not None)

    def introduce(self, task: BenchmarkTask) -> None:
        """Tell the task which run it is, and what its weights started from."""
        self.settings.model.init_from = self.init_from
        task.run_id = self.id
        started = self.overrides.get(identity.INIT_FROM)
        task.started_from = started if isinstance(started, dict) else None

    def data_notes(self) -> list[str]:
        """What a user should know about the data before the run."""
        notes = [
            f"{part.dropped} of {part.count + part.dropped} samples of {name} are left out"
            for name, part in self.identity.splits.items()
            if part.dropped
        ]
        if self.choice.recipe == "paper" and self.identity.name == "custom":
            notes.append("not the paper's dataset; --recipe small has defaults for a dataset of one's own")
        return notes
