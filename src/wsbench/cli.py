"""LightningCLI: --task, --recipe and --norm expand into conf/; fit, validate, test, predict."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from wsbench.analysis import log as analysis_log
from wsbench.analysis.callback import GradientShares, Snapshots, check_options
from wsbench.analysis.shares import SharesError
from wsbench.choose import RECIPES, TASKS, Choice, ChoiceError, choose
from wsbench.datamodules import DATA_CLASSES
from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.sampling import BatchError, accumulation
from wsbench.leaderboard import tables
from wsbench.leaderboard.derive import update
from wsbench.leaderboard.show import show
from wsbench.norms import FanInError, GroupsError, NormMismatchError, NormSpec, PatternError, SpecError, WindowError
from wsbench.parts import MissingPartError
from wsbench.records import (
    RECORD_NAME,
    DataIdentity,
    RecordError,
    RunRecord,
    write_record,
    write_text_atomically,
)
from wsbench.run import folder as run_folder
from wsbench.run import lock, report
from wsbench.run.loggers import finish, loggers
from wsbench.run.progress import progress_callback
from wsbench.run.provenance import provenance
from wsbench.run.recorder import PredictionFiles, Recorder, evaluation_metrics
from wsbench.tasks import TASK_CLASSES, BenchmarkTask
from wsbench.tasks.base import TaskOptionError
from wsbench.tasks.formats import read_run_checkpoint

#: Errors whose message is for the user; anything else is a defect and keeps its traceback.
USER_ERRORS = (
    BatchError, ChoiceError, DatasetError, FanInError, FileNotFoundError, FloatingPointError, GroupsError,
    MissingPartError, TaskOptionError, NormMismatchError, PatternError, RecordError, SharesError,
    WindowError, lock.RunBusyError, run_folder.RunExistsError,
)  # fmt: skip


@dataclass(frozen=True)
class TaskEntry:
    """The classes behind a task's name."""

    model: type[BenchmarkTask]
    data: type[BenchmarkData]


ENTRIES = {name: TaskEntry(TASK_CLASSES[name], DATA_CLASSES[name]) for name in TASKS}


def is_present(task: str, root: Path) -> bool:
    """Whether a task's dataset lies under a folder."""
    return ENTRIES[task].data.is_present(root)


def use_choice(settings: Namespace, choice: Choice) -> None:
    """Write into a configuration what its command line means."""
    settings.task, settings.recipe = choice.task, choice.recipe
    if choice.ignore_root:
        settings.data.root = None


class FinishedError(Exception):
    """The run of this configuration is there already; carries its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class UsageError(ChoiceError):
    """Options that contradict each other or are missing."""


def canonical_norm(text: str) -> str:
    """A normalization spec such as gn+ws."""
    try:
        return str(NormSpec.parse(text))
    except SpecError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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


class BenchmarkCLI(LightningCLI):
    """LightningCLI for one task, with the recipe as the default configuration and a run folder per configuration.

    Args:
        choice: task and recipe.
        argv: the command line, subcommand first; it is ``sys.argv`` too, for the processes that DDP starts.
    """

    def __init__(self, choice: Choice, argv: Sequence[str]) -> None:
        self.choice, self.argv = choice, list(argv)
        self.recorder = Recorder()
        self.folder: Path | None = None
        self._resumed_at: int | None = None
        entry = ENTRIES[choice.task]
        super().__init__(
            model_class=entry.model,
            datamodule_class=entry.data,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # else --optimizer and --lr_scheduler silently overrule the recipe
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={
                "use_distributed_sampler": False,  # its evaluation sampler counts some samples twice
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "logger": False,
            },
            parser_kwargs={name: {"default_config_files": list(choice.configs)} for name in self.subcommands()},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options beside trainer, model and data."""
        parser.add_argument("--task", type=str, default=self.choice.task, help=f"one of {', '.join(TASKS)}")
        parser.add_argument("--recipe", type=str, default=self.choice.recipe, help=f"one of {', '.join(RECIPES)}")
        parser.add_argument("--norm", type=canonical_norm, default="gn+ws", help="normalization spec")
        parser.add_argument("--runs", type=str, default="runs", help="folder of run folders")
        parser.add_argument("--overwrite", type=bool, default=False, help="start an unfinished or finished run over")
        parser.add_argument("--output", type=str, default="predictions", help="folder that predict writes to")
        parser.add_argument("--analysis", type=bool, default=False, help="measure gradient shares (docs/analysis.md)")
        parser.add_argument(
            "--tensorboard", type=bool, default=True, help="write TensorBoard's files into the run's folder"
        )
        parser.add_argument("--wandb", type=bool, default=False, help="log to Weights & Biases (extra wandb)")
        parser.add_argument("--mlflow", type=bool, default=False, help="log to MLflow (extra mlflow)")
        parser.add_argument("--snapshots", type=int, default=0, help="keep the weights of so many steps for analyze")
        for target, source in run_folder.LINKS.items():
            if target != "model.segments" or self.choice.task == "something":
                parser.link_arguments(source, target)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        if self.choice.task == "coco":
            parser.link_arguments("model.network", "data.masks", compute_fn=run_folder.has_masks)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the command line and the configuration decide, never hyper-parameters inside a checkpoint."""

    def _refuse_half_a_network(self) -> None:
        """Evaluating needs every weight: by a checkpoint of the run, or published weights of the whole network."""
        if self.settings.ckpt_path is None and not self.task.wholly_initialized:
            raise UsageError(
                f"{self.subcommand} --model.init_from: the file has no weights for all of '{self.task.network_name}' "
                "(another last layer, or a backbone only), so its output would be random; use --ckpt_path"
            )

    before_validate = before_test = before_predict = _refuse_half_a_network

    # -- before ---------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Namespace:
        """The configuration of the subcommand."""
        return cast(Namespace, self.config[self.subcommand])

    def before_instantiate_classes(self) -> None:
        """Find the run's folder, claim it, and add what every run has."""
        settings = self.settings
        use_choice(settings, self.choice)
        self._init_from = settings.model.init_from
        if self.subcommand != "fit":
            self._before_evaluation(settings)
            return
        trainer = settings.trainer
        endless = all(end in (None, -1) for end in (trainer.max_steps, trainer.max_epochs))
        check_options(settings.norm, settings.analysis, settings.snapshots, settings.model.compile, endless)
        self.folder = self._find_folder(settings)
        settings.trainer.default_root_dir = str(self.folder)
        self._find_checkpoint(settings)
        model = ENTRIES[self.choice.task].model
        always: dict[str, Any] = {"dirpath": self.folder, "enable_version_counter": False, "save_top_k": 1}
        callbacks: list[Callback] = [self.recorder]
        if settings.analysis:
            callbacks.append(GradientShares(None if settings.trainer.fast_dev_run else self.folder))
        if settings.snapshots and not settings.trainer.fast_dev_run:
            callbacks.append(Snapshots(self.folder, settings.snapshots))
        if settings.trainer.enable_progress_bar is not False:
            callbacks.append(progress_callback())
        if settings.trainer.enable_checkpointing is not False:
            callbacks.append(
                ModelCheckpoint(filename="best", monitor=f"val/{model.monitor}", mode=model.mode, **always)
            )
            callbacks.append(ModelCheckpoint(filename="last", every_n_epochs=1, save_on_train_epoch_end=True, **always))
        self.trainer_defaults["callbacks"] = callbacks

    def _before_evaluation(self, settings: Namespace) -> None:
        if settings.ckpt_path is None and settings.model.init_from is None:
            raise UsageError(
                f"{self.subcommand} needs --ckpt_path, for instance runs/{settings.task}/ID/last.ckpt; or published "
                "weights of the whole network by --model.init_from"
            )
        if settings.ckpt_path is not None:
            self._before_checkpoint(settings)
        settings.trainer.enable_checkpointing = False
        if self.subcommand != "predict":
            return
        output = Path(settings.output).expanduser()
        if settings.data.pictures and output.resolve() == Path(settings.data.pictures).expanduser().resolve():
            raise UsageError("--output and --data.pictures are the same folder; masks would overwrite your pictures")
        self.prediction_files = PredictionFiles(output)
        self.trainer_defaults["callbacks"] = [self.prediction_files]
        if settings.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(progress_callback())
        settings.return_predictions = False

    def _before_checkpoint(self, settings: Namespace) -> None:
        if not Path(settings.ckpt_path).expanduser().is_file():
            raise FileNotFoundError(f"--ckpt_path '{settings.ckpt_path}' does not exist")
        _read_checkpoint(settings.ckpt_path)
        settings.model.init_from = None  # the checkpoint has the weights

    def _find_folder(self, settings: Namespace) -> Path:
        data: Any = ENTRIES[self.choice.task].data(**settings.data.as_dict())
        data.prepare_data()
        data.setup("fit")
        self.data_identity: DataIdentity = data.identity()
        identity = run_folder.run_id(plain(settings), self.data_identity)
        return Path(settings.runs) / self.choice.task / identity

    def _find_checkpoint(self, settings: Namespace) -> None:
        assert self.folder is not None
        if settings.ckpt_path == "auto":
            unfinished = (self.folder / run_folder.LAST).exists() and not (self.folder / RECORD_NAME).exists()
            settings.ckpt_path = "last" if unfinished else None
        resume = settings.ckpt_path is not None
        if settings.ckpt_path == "last":
            settings.ckpt_path = str(self.folder / run_folder.LAST)
        if resume and not Path(settings.ckpt_path).is_file():
            raise FileNotFoundError(f"no checkpoint to resume at '{settings.ckpt_path}'; start without --ckpt_path")
        if resume:
            self._same_run(settings.ckpt_path)
            settings.model.init_from = None  # the checkpoint has the weights; set back once the model is built
        if settings.trainer.fast_dev_run:
            return
        if not _rank():
            lock.hold(self.folder)
        if (self.folder / RECORD_NAME).exists() and not settings.overwrite:
            raise FinishedError(self.folder)
        run_folder.claim(self.folder, resume, settings.overwrite, _rank())

    def _same_run(self, path: str) -> None:
        """Refuse to resume another configuration: Lightning would restore its optimizer and schedule without a word."""
        checkpoint, folder = _read_checkpoint(path), cast(Path, self.folder)
        identity = checkpoint.get("run_id")
        if identity == folder.name:
            self._resumed_at = int(checkpoint["global_step"])
            return
        beside = Path(path).expanduser().resolve().parent / run_folder.CONFIG
        differ = ""
        if beside.is_file():
            theirs = yaml.safe_load(beside.read_text(encoding="utf-8"))
            fields = run_folder.differences(plain(self.settings), theirs)
            differ = f"; they differ in {', '.join(sorted(fields)) or 'the data'}"
        raise UsageError(
            f"'{path}' belongs to run {identity}, this configuration is run {folder.name}{differ}. A resumed run keeps "
            "its configuration; to start a new one from these weights use --model.init_from"
        )

    def after_instantiate_classes(self) -> None:
        """Derive the accumulation from the recipe's effective batch and the devices that there are."""
        if self.subcommand != "fit":
            return
        self.settings.model.init_from = self._init_from
        self.task.run_id = cast(Path, self.folder).name
        data: Any = self.datamodule
        derived = accumulation(data.effective_batch, data.micro_batch, self.trainer.world_size)
        if self.trainer.accumulate_grad_batches not in (1, derived):
            raise UsageError(
                f"--trainer.accumulate_grad_batches {self.trainer.accumulate_grad_batches} contradicts "
                f"--data.effective_batch {data.effective_batch} = {data.micro_batch} a device x {derived} x "
                f"{self.trainer.world_size} device(s); leave it out, it is derived"
            )
        self.trainer.accumulate_grad_batches = derived
        assert self.folder is not None
        if not self.settings.trainer.fast_dev_run:
            settings = self.settings
            words = {"task": settings.task, "recipe": settings.recipe, "norm": str(self.task.spec)}
            words["seed"] = f"seed {settings.seed_everything}"
            chosen = (settings.tensorboard, settings.wandb, settings.mlflow)
            own = loggers(self.folder, self._resumed_at, _rank(), words, *chosen)
            self.trainer.loggers = [*own, *self.trainer.loggers]

    # -- fit ------------------------------------------------------------------------------------------------------

    @property
    def task(self) -> BenchmarkTask:
        """The model."""
        return cast(BenchmarkTask, self.model)

    @rank_zero_only
    def before_fit(self) -> None:
        """Say what the run is."""
        settings, task = self.settings, self.task
        task.check_trainer(self.trainer)
        task._trainer = self.trainer  # Lightning attaches it in fit
        cast(Any, self.trainer).datamodule = self.datamodule
        if not settings.trainer.fast_dev_run:
            write_text_atomically(cast(Path, self.folder) / run_folder.NORMS, f"{task.norm_report}\n")
        parameters = sum(p.numel() for p in task.network.parameters())
        precision = self.trainer.precision_plugin.precision
        report.banner(
            {
                "task": f"{self.choice.task}, {task.network_name}, {parameters / 1e6:.2f} M parameters",
                "recipe": f"{self.choice.recipe} ({self.choice.reason})",
                "data": report.data_line(self.data_identity),
                "norm": task.norm_report.summary(),
                "batch": report.batch_line(task.batch_numbers()),
                "steps": f"{task.planned_steps()}, seed {settings.seed_everything}, precision {precision}",
                "run": str(self.folder),
            },
            _few(task.norm_report.notes),
        )

    def after_fit(self) -> None:
        """Evaluate the final weights, write the record and the leaderboards, say what came out."""
        trainer, task = self.trainer, self.task
        if self.settings.trainer.fast_dev_run or trainer.interrupted:
            return
        if task.evaluation is None or task.evaluation.step != trainer.global_step:
            trainer.validate(task, datamodule=self.datamodule, verbose=False)
        if trainer.is_global_zero:
            self._write_record()

    def _write_record(self) -> None:
        folder, task, trainer = cast(Path, self.folder), self.task, self.trainer
        parser = self._parser(self.subcommand)
        parser.default_config_files = list(self.choice.configs[:1])  # the recipe alone, not the run behind a checkpoint
        defaults = parser.get_defaults()
        batch = task.batch_numbers()
        record = RunRecord(
            id=folder.name,
            task=self.choice.task,
            recipe=self.choice.recipe,
            overrides=run_folder.overrides(plain(self.settings), plain(defaults)),
            norm=str(task.spec),
            network=task.network_name,
            seed=self.settings.seed_everything,
            batch=batch,
            data=self.data_identity,
            steps=trainer.global_step,
            metrics=evaluation_metrics(task) | task.training_metrics,
            best=self.recorder.best | task.best_training_metrics,
            converted=task.norm_report.counts(),
            definitions=task.definitions(),
            analysis=analysis_log.points(folder),
            cost=self.recorder.cost(task, trainer.global_step * batch.effective_batch),
            provenance=provenance(self.argv, task.device, str(trainer.precision_plugin.precision)),
        )
        write_record(record, folder / RECORD_NAME)
        runs = Path(self.settings.runs)
        name = f"{tables.table_name(record)}.csv"
        try:
            written = [path for path in update([runs], runs / "leaderboards") if path.name == name]
        except (RecordError, tables.LeaderboardError) as error:
            written = []
            print(f"wsbench: warning: leaderboards are not updated: {error}", file=sys.stderr)
        show(folder, written)

    # -- the others -----------------------------------------------------------------------------------------------

    def after_validate(self) -> None:
        """Say over how many samples."""
        evaluation = self.task.evaluation
        if evaluation is not None and self.trainer.is_global_zero:
            values = ", ".join(f"{name} {value:.2f}" for name, value in evaluation.values.items())
            report.console().print(f"{self.task.spec}: {values} over {evaluation.n_eval} samples")

    after_test = after_validate

    def after_predict(self) -> None:
        """Say where the files are."""
        files = self.prediction_files
        report.console().print(f"wrote {len(files.written)} files into {files.folder}", soft_wrap=True)


def _read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of a run; UsageError if it is none."""
    try:
        return read_run_checkpoint(Path(path).expanduser())
    except ValueError as error:
        raise UsageError(str(error)) from error


def _rank() -> int:
    """This process's rank, before there is a Trainer: 0 in the one that starts the others."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def _seed(value: bool | int) -> int:
    if isinstance(value, bool):
        raise ValueError("--seed_everything must be a number: it is part of the run's identity")
    return value


def plain(settings: Namespace) -> dict[str, Any]:
    """A subcommand's configuration as nested dictionaries."""
    return {k: v for k, v in settings.as_dict().items() if k != "config" and not k.startswith("__")}


def _few(notes: Sequence[str], most: int = 3) -> list[str]:
    short = [note.replace("note: ", "") for note in notes[:most]]
    return short + ([f"and {len(notes) - most} more"] if len(notes) > most else [])


def _quiet() -> None:
    """Leave out what Lightning says about itself; its warnings about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*exists and is not empty.*",  # config.yaml is there before the first checkpoint
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",  # the task logs by itself, see BenchmarkTask
        ".*callbacks used to create the checkpoint.*",  # evaluating needs none of them
        ".*dirpath has changed.*",
        ".*The `srun` command is available on your system but is not used.*",
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")


def fit(argv: Sequence[str]) -> Path:
    """Run ``fit`` with these options, or find it finished; returns the run's folder.

    Raises:
        Exception: one of ``USER_ERRORS``, for the user.
    """
    _quiet()
    line = ["fit", *argv]
    sys.argv[1:] = line  # Lightning starts the other processes of DDP from that
    try:
        return cast(Path, _run(line))
    except FinishedError as finished:
        return finished.folder


def _run(argv: Sequence[str]) -> Path | None:
    """Run a subcommand; returns the folder of a run that was fitted, which this process lets go of."""
    choice = choose(argv[1:], is_present)
    try:
        return BenchmarkCLI(choice, argv).folder
    finally:
        finish()
        lock.release()


def main(argv: Sequence[str]) -> int:
    """Run fit, validate, test or predict; returns the exit status."""
    _quiet()

    def run() -> None:
        try:
            _run(argv)
        except FinishedError as finished:
            report.console().print(f"this run is finished: {finished.folder}; --overwrite true runs it again")
            show(finished.folder)

    return report.exit_status(run, USER_ERRORS)
