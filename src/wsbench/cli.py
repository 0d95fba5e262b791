"""LightningCLI: --task, --recipe and --norm expand into conf/; fit, validate, test, predict."""

import argparse
import inspect
import logging
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from wsbench import fields, plugins
from wsbench.analysis import log as analysis_log
from wsbench.analysis.callback import GradientShares, Snapshots, check_options
from wsbench.choose import TASKS, Choice, choose
from wsbench.datamodules import DATA_CLASSES
from wsbench.datamodules.base import BenchmarkData
from wsbench.errors import UserError, shortened
from wsbench.leaderboard.derive import update
from wsbench.leaderboard.show import show
from wsbench.norms import (
    ACTIVATIONS,
    NormSpec,
    SpecError,
)
from wsbench.options import UsageError
from wsbench.records import (
    RECORD_NAME,
    TUNING_NAME,
    DataIdentity,
    MetricValue,
    RecordError,
    RunRecord,
    Tuning,
    guessing,
    read_record,
    read_tuning,
    write_record,
    write_text_atomically,
)
from wsbench.run import devices, identity, lock, nodes, report
from wsbench.run import folder as run_folder
from wsbench.run.callbacks import require_callbacks
from wsbench.run.checkpoints import WholeCheckpoints, remove_parts
from wsbench.run.foreign import read_yaml
from wsbench.run.loggers import finish, loggers
from wsbench.run.progress import progress_callback
from wsbench.run.provenance import machine as machine_of
from wsbench.run.provenance import provenance
from wsbench.run.recorder import PredictionFiles, Recorder, evaluation_metrics, weights_digest
from wsbench.run.stopping import Every, Interrupted, Stopping, seconds_of
from wsbench.run.wrong_options import ShortErrors
from wsbench.tasks import TASK_CLASSES, BenchmarkTask
from wsbench.tasks.base import NotFiniteError
from wsbench.tasks.formats import read_run_checkpoint
from wsbench.tasks.sync_batch_norm import SyncBatchNorms


@dataclass(frozen=True)
class TaskEntry:
    """The classes behind a task's name."""

    model: type[BenchmarkTask]
    data: type[BenchmarkData]


ENTRIES = {name: TaskEntry(TASK_CLASSES[name], DATA_CLASSES[name]) for name in TASKS}


def find_dataset(task: str, root: Path) -> Path:
    """Where a task's dataset lies under a folder; DatasetNotFoundError says what was looked for and what is there."""
    return ENTRIES[task].data.find(root)


def prepared(task: str, options: Namespace, stage: str) -> BenchmarkData:
    """A task's data, made and read for a stage."""
    data = ENTRIES[task].data(**options.as_dict())
    data.prepare_data()
    data.setup(stage)
    return data


class FinishedError(Exception):
    """The run of this configuration is there already; carries its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


def canonical_norm(text: str) -> str:
    """A normalization spec such as gn+ws."""
    if not isinstance(text, str):  # of a configuration
        raise argparse.ArgumentTypeError(f"--norm {text}: expected a specification such as gn+ws")
    try:
        return str(NormSpec.parse(text))
    except SpecError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def checkpoint_interval(text: str) -> str:
    """How often checkpoints are written: 10m, 500, never."""
    try:
        Every.parse(str(text))
    except OverflowError as error:
        raise argparse.ArgumentTypeError(f"--checkpoint_every {text}: too long") from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--checkpoint_every {error}") from error
    return str(text)


#: what the parser says about a class that cannot be made of what was given; the first reason is the class's own
_OF_CLASS = re.compile(r"Does not validate against.*?Errors:\s+- (.+?)\n", re.DOTALL)


#: of the options in :data:`wsbench.fields.RUN`
_TYPES: dict[str, Any] = {
    "task": str, "recipe": str, "norm": canonical_norm, "import": list[str], "runs": str, "overwrite": bool,
    "output": str, "analysis": bool, "tensorboard": bool, "wandb": bool, "mlflow": bool,
    "matmul_precision": Literal[devices.MATMUL], "tf32_convolutions": bool, "checkpoint_every": checkpoint_interval,
    "snapshots": int, "on_divergence": Literal["stop", "record"],
}  # fmt: skip


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
        self._prepared: BenchmarkData | None = None
        self._device_notes: list[str] = []
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

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser whose errors are one sentence."""
        parser = super().init_parser(**kwargs)
        parser.__class__ = ShortErrors
        parser.allow_abbrev = False  # an abbreviation is a typo
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options beside trainer, model and data."""
        defaults: dict[str, Any] = {
            "task": self.choice.task,
            "recipe": self.choice.recipe,
            "import": plugins.requested(),
        }
        for field in fields.RUN:
            kind = _TYPES[field.name]
            default = defaults.get(field.name, yaml.safe_load(field.default) if kind in (bool, int) else field.default)
            parser.add_argument(f"--{field.name}", type=kind, default=default, help=field.help)
        for target, source in run_folder.LINKS.items():
            if target == "model.num_classes":
                parser.link_arguments(source, target, compute_fn=partial(_classes_or_default, self.choice.task))
            elif target != "model.segments" or self.choice.task == "something":
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
        settings.task, settings.recipe = self.choice.task, self.choice.recipe
        self._init_from = settings.model.init_from
        devices.multiply_float32(settings.matmul_precision, settings.tf32_convolutions)
        devices.require_trainer(settings.trainer.as_dict())
        self._choose_devices(settings)
        if self.subcommand != "fit":
            self._before_evaluation(settings)
            return
        if not settings.runs or settings.runs.startswith("~"):
            raise UsageError(f"--runs '{settings.runs}': expected a folder, without ~")
        trainer = settings.trainer
        endless = all(end in (None, -1) for end in (trainer.max_steps, trainer.max_epochs))
        if trainer.max_epochs is None and endless:  # Lightning would take 1,000 epochs
            raise UsageError("the run has no end: set --trainer.max_steps or --trainer.max_epochs (-1: until stopped)")
        if trainer.sync_batchnorm and ACTIVATIONS[NormSpec.parse(settings.norm).act].facts.across_devices:
            raise UsageError(f"--norm {settings.norm} sees all devices by itself; leave --trainer.sync_batchnorm out")
        nodes.meet(int(trainer.num_nodes))
        check_options(settings.norm, settings.analysis, settings.snapshots, settings.model.compile, endless)
        self.folder = self._find_folder(settings)
        settings.trainer.default_root_dir = str(self.folder)
        self._find_checkpoint(settings)
        model = ENTRIES[self.choice.task].model
        always: dict[str, Any] = {"dirpath": self.folder, "enable_version_counter": False, "save_top_k": 1}
        trains = settings.trainer.fast_dev_run in (False, 0)
        saves = self.folder if trains and settings.trainer.enable_checkpointing is not False else None
        stopping = Stopping(saves, Every.parse(settings.checkpoint_every), seconds_of(settings.trainer.max_time))
        callbacks: list[Callback] = [self.recorder, stopping]
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

    def _choose_devices(self, settings: Namespace) -> None:
        """The miniature, which is to run anywhere, takes the devices that its small batch divides among."""
        trainer, data = settings.trainer, settings.data
        if self.choice.recipe != "mini" or self.subcommand != "fit" or trainer.devices != "auto":
            return
        there = devices.available_devices(str(trainer.accelerator))
        taken = devices.dividing(there, data.effective_batch, data.micro_batch)
        if taken < there:
            trainer.devices = taken
            self._device_notes = [
                f"{taken} of {there} devices: the miniature's step of {data.effective_batch} has no part for each; "
                "--trainer.devices and --data.effective_batch say otherwise"
            ]

    def _before_evaluation(self, settings: Namespace) -> None:
        if settings.ckpt_path is None and settings.model.init_from is None:
            raise UsageError(
                f"{self.subcommand} needs --ckpt_path, for instance runs/{settings.task}/ID/last.ckpt; or published "
                "weights of the whole network by --model.init_from"
            )
        if settings.ckpt_path is not None:
            self._before_checkpoint(settings)
        elif settings.data.num_classes is None and self.subcommand != "predict":
            self._prepared = prepared(self.choice.task, settings.data, "validate")
            settings.model.num_classes = self._prepared.num_classes
        settings.trainer.enable_checkpointing = False
        if self.subcommand != "predict":
            self.trainer_defaults["callbacks"] = [Stopping(None, Every())]
            return
        output = Path(settings.output).expanduser()
        if output.exists() and not output.is_dir():
            raise UsageError(f"--output '{output}' is a file; name a folder")
        if settings.data.pictures and output.resolve() == Path(settings.data.pictures).expanduser().resolve():
            raise UsageError("--output and --data.pictures are the same folder; masks would overwrite your pictures")
        self.prediction_files = PredictionFiles(output)
        self.trainer_defaults["callbacks"] = [self.prediction_files, Stopping(None, Every())]
        if settings.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(progress_callback())
        settings.return_predictions = False

    def _before_checkpoint(self, settings: Namespace) -> None:
        if not Path(settings.ckpt_path).expanduser().is_file():
            raise UsageError(f"--ckpt_path '{settings.ckpt_path}' does not exist")
        classes = _read_checkpoint(settings.ckpt_path).get("classes")
        given = settings.data.num_classes
        before = self.choice.task == "coco" and given == len(classes or ()) + 1  # its first version counted background
        if classes and given not in (None, len(classes)) and not before:
            raise UsageError(
                f"--data.num_classes {given} was given, the checkpoint is of {len(classes)} classes "
                f"({', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}); leave the option out"
            )
        if classes:
            settings.model.num_classes = len(classes)
        if classes and self.choice.task != "voc":  # whose data may lack a class; the others' names are compared
            settings.data.num_classes = None
        settings.model.init_from = None  # the checkpoint has the weights

    def _find_folder(self, settings: Namespace) -> Path:
        task = self.choice.task
        self._prepared = data = prepared(task, settings.data, "fit")
        settings.data.num_classes = settings.model.num_classes = data.num_classes
        self.data_identity: DataIdentity = data.identity()
        self.recipe_digest = identity.recipe_digest(self.choice.recipe_content())
        sources = NormSpec.parse(settings.norm).sources
        self.overrides = identity.overrides(plain(settings), self.recipe_defaults(), sources)
        if settings.ckpt_path not in (None, "last", "auto"):  # which remembers what its run started from
            started = _read_checkpoint(settings.ckpt_path).get("started_from")
            if started is not None and started["source"] == settings.model.init_from:
                self.overrides[identity.INIT_FROM] = started
        name = identity.run_id(task, self.choice.recipe, self.recipe_digest, self.overrides, settings.norm,
                               settings.seed_everything, self.data_identity,
                               sources)  # fmt: skip
        return Path(settings.runs) / task / name

    def recipe_defaults(self) -> dict[str, Any]:
        """The configuration that the recipe alone makes, without the run behind a checkpoint."""
        parser = self._parser(self.subcommand)
        before = parser.default_config_files
        parser.default_config_files = list(self.choice.configs[:1])
        try:
            return plain(parser.get_defaults())
        finally:
            parser.default_config_files = before

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer; BN is synchronized by wsbench's layer, checkpoints are written by it, and it keeps time."""
        settings = self._get(self.config_init, "trainer")
        plugins_given = settings.plugins or []
        given = list(plugins_given) if isinstance(plugins_given, list | tuple) else [plugins_given]
        if settings.sync_batchnorm:
            given.append(SyncBatchNorms())
        if not any(isinstance(plugin, CheckpointIO) for plugin in given):
            given.append(WholeCheckpoints(self._folders_of_checkpoints))
        return super().instantiate_trainer(**kwargs | {"plugins": given, "max_time": None})

    def _folders_of_checkpoints(self) -> list[Any]:
        """Where this run's checkpoints lie, by its own command line."""
        callbacks = getattr(self.trainer, "checkpoint_callbacks", [])
        return [self.folder, *(getattr(callback, "dirpath", None) for callback in callbacks)]

    def instantiate_classes(self) -> None:
        """Make model, data and Trainer; data that was read to find out what the run is stays the run's."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            why = _OF_CLASS.search(str(error))
            if isinstance(error, UserError) or why is None:
                raise
            raise UsageError(f"a class that an option names cannot be made: {shortened(why[1])}") from error
        if self._prepared is not None:
            self.datamodule = self._prepared

    def _find_checkpoint(self, settings: Namespace) -> None:
        assert self.folder is not None
        if settings.ckpt_path == "auto":
            unfinished = run_folder.resumable(self.folder) and not (self.folder / RECORD_NAME).exists()
            settings.ckpt_path = "last" if unfinished else None
        resume = settings.ckpt_path is not None
        if settings.ckpt_path == "last":
            settings.ckpt_path = self._last_whole_one()
        if resume and not Path(settings.ckpt_path).is_file():
            raise UsageError(f"no checkpoint to resume at '{settings.ckpt_path}'; start without --ckpt_path")
        if resume:
            self._same_run(settings.ckpt_path)
            settings.model.init_from = None  # the checkpoint has the weights; set back once the model is built
        if settings.trainer.fast_dev_run:
            return
        if not nodes.process_rank():
            lock.hold(self.folder)
            remove_parts(self.folder)
        if (self.folder / RECORD_NAME).exists() and not settings.overwrite:
            raise FinishedError(self.folder)
        run_folder.claim(self.folder, resume, settings.overwrite, nodes.process_rank())

    def _last_whole_one(self) -> str:
        """The run's last checkpoint; the one before where that is damaged, with a sentence."""
        folder = cast(Path, self.folder)
        last, previous = folder / run_folder.LAST, folder / run_folder.PREVIOUS
        if not previous.is_file():
            return str(last)
        try:
            read_run_checkpoint(last)
        except (ValueError, OSError) as error:
            self._device_notes.append(f"{error}; resuming from the one before it, '{previous}'")
            return str(previous)
        return str(last)

    def _same_run(self, path: str) -> None:
        """Refuse to resume another configuration: Lightning would restore its optimizer and schedule silently."""
        checkpoint, folder = _read_checkpoint(path), cast(Path, self.folder)
        owner = checkpoint.get("run_id")
        if owner == folder.name:
            self._resumed_at = int(checkpoint["global_step"])
            return
        beside = Path(path).expanduser().resolve().parent / run_folder.CONFIG
        differ = ""
        if beside.is_file():
            theirs = read_yaml(beside, "the run's configuration")
            fields = identity.differences(plain(self.settings), theirs)
            differ = f"; they differ in {', '.join(sorted(fields)) or 'the data'}"
        raise UsageError(
            f"'{path}' belongs to run {owner}, this configuration is run {folder.name}{differ}. A resumed run keeps "
            "its configuration; to start a new one from these weights use --model.init_from"
        )

    def after_instantiate_classes(self) -> None:
        """Derive the accumulation, and add the loggers."""
        if self.subcommand != "fit":
            return
        self.settings.model.init_from = self._init_from
        self.task.run_id = cast(Path, self.folder).name
        started = self.overrides.get(identity.INIT_FROM)
        self.task.started_from = started if isinstance(started, dict) else None
        cast(Any, self.trainer).datamodule = self.datamodule
        self.task.derive_accumulation(self.trainer)
        self.task.require_evaluation(self.trainer)
        always = {id(callback) for callback in self.trainer_defaults["callbacks"]}
        given = [c for c in cast(Any, self.trainer).callbacks if id(c) not in always]
        require_callbacks(given, self.task.monitored(), self.trainer)
        assert self.folder is not None
        if not self.settings.trainer.fast_dev_run:
            settings = self.settings
            words = {"task": settings.task, "recipe": settings.recipe, "norm": str(self.task.spec)}
            words["seed"] = f"seed {settings.seed_everything}"
            chosen = (settings.tensorboard, settings.wandb, settings.mlflow)
            own = loggers(self.folder, self._resumed_at, nodes.process_rank(), words, *chosen)
            self.trainer.loggers = [*own, *self.trainer.loggers]

    # -- fit ------------------------------------------------------------------------------------------------------

    @property
    def task(self) -> BenchmarkTask:
        """The model."""
        return cast(BenchmarkTask, self.model)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; a run that diverges is a result where that is asked for."""
        try:
            super()._run_subcommand(subcommand)
        except NotFiniteError as error:
            if subcommand != "fit" or self.settings.on_divergence != "record" or self.settings.trainer.fast_dev_run:
                raise
            if self.trainer.is_global_zero:
                print(f"wsbench: diverged, which is recorded: {error}", file=sys.stderr)
                self._write_record(diverged=True)

    @rank_zero_only
    def before_fit(self) -> None:
        """Say what the run is."""
        settings, task = self.settings, self.task
        task.check_trainer(self.trainer)
        task._trainer = self.trainer  # Lightning attaches it in fit
        if not settings.trainer.fast_dev_run:
            write_text_atomically(cast(Path, self.folder) / run_folder.NORMS, f"{task.norm_report}\n")
        parameters = sum(p.numel() for p in task.network.parameters())
        precision = self.trainer.precision_plugin.precision
        report.banner(
            {
                "task": f"{self.choice.task}, {task.network_name}, {parameters / 1e6:.2f} M parameters",
                "recipe": f"{self.choice.recipe} ({self.choice.reason})",
                "data": report.data_line(self.data_identity),
                "classes": report.classes_line(cast(BenchmarkData, self.datamodule).classes),
                "norm": task.norm_report.summary(),
                "batch": report.batch_line(task.batch_numbers(settings.trainer.sync_batchnorm)),
                "steps": f"{task.planned_steps()}, seed {settings.seed_everything}, precision {precision}"
                + ("" if self._resumed_at is None else f"; resumes after step {self._resumed_at}"),
                "run": str(self.folder),
            },
            [
                *_few(task.norm_report.notes),
                *self._data_notes(),
                *self._device_notes,
                *devices.tf32_hint(self.trainer.strategy.root_device, str(precision)),
            ],
        )

    def _data_notes(self) -> list[str]:
        """What a user should know about the data before the run."""
        notes = [
            f"{part.dropped} of {part.count + part.dropped} samples of {name} are left out"
            for name, part in self.data_identity.splits.items()
            if part.dropped
        ]
        if self.choice.recipe == "paper" and self.data_identity.name == "custom":
            notes.append("not the paper's dataset; --recipe small has defaults for a dataset of one's own")
        return notes

    def after_fit(self) -> None:
        """Evaluate the final weights, write the record and the leaderboards, say what came out."""
        trainer, task = self.trainer, self.task
        if self.settings.trainer.fast_dev_run or trainer.interrupted:
            return
        changed = weights_digest(task) != self.recorder.evaluated_weights
        if task.evaluation is None or task.evaluation.step != trainer.global_step or changed:
            trainer.validate(task, datamodule=self.datamodule, verbose=False)
        last = cast(Path, self.folder) / run_folder.LAST
        if changed and last.exists():  # a callback put other weights in place at the end, such as an average
            trainer.save_checkpoint(last)
        if trainer.is_global_zero:
            self._write_record()

    def _guessing(self) -> dict[str, MetricValue]:
        """The metrics of a network that has learned nothing."""
        data = cast(BenchmarkData, self.datamodule)
        names = [name for name in self.task.metrics if not name.startswith("mask_") or getattr(data, "masks", True)]
        return {
            name: MetricValue(value=round(guessing(name, len(data.classes)), 4), n_eval=len(data.val_data),
                              step=self.trainer.global_step)
            for name in names
        }  # fmt: skip

    def _tuning(self) -> Tuning | None:
        """How the rate was chosen, where a tuned sweep has laid that into the run's folder."""
        path = cast(Path, self.folder) / TUNING_NAME
        if not path.is_file():
            return None
        tuning = read_tuning(path)
        if tuning.rate != self.settings.model.lr:
            raise RecordError(f"'{path}' is about the rate {tuning.rate}, this run has {self.settings.model.lr}")
        return tuning

    def _write_record(self, diverged: bool = False) -> None:
        folder, task, trainer, recorder = cast(Path, self.folder), self.task, self.trainer, self.recorder
        batch, machine = recorder.batch, recorder.machine
        if batch is None:  # resumed at its end: no training has started
            batch = task.batch_numbers(self.settings.trainer.sync_batchnorm)
            machine = machine_of(trainer.strategy.root_device, trainer.world_size)
        record = RunRecord(
            id=folder.name,
            task=self.choice.task,
            recipe=self.choice.recipe,
            recipe_digest=self.recipe_digest,
            overrides=self.overrides,
            norm=str(task.spec),
            norm_sources=task.spec.sources,
            network=task.network_name,
            seed=self.settings.seed_everything,
            batch=batch,
            data=self.data_identity,
            steps=trainer.global_step,
            skipped_steps=recorder.skipped_steps,
            metrics=self._guessing() if diverged else evaluation_metrics(task) | task.training_metrics,
            best=self._guessing() if diverged else recorder.best | task.best_training_metrics,
            per_class={} if task.evaluation is None or diverged else task.evaluation.per_class,
            diverged=trainer.global_step if diverged else None,
            tuning=self._tuning(),
            converted=task.norm_report.counts(),
            definitions=task.definitions() | recorder.definitions(),
            analysis=analysis_log.points(folder),
            cost=recorder.cost(task, trainer.global_step * batch.effective_batch),
            provenance=provenance([*self.argv, *plugins.options()], machine, str(trainer.precision_plugin.precision)),
        )
        write_record(record, folder / RECORD_NAME)
        _derive_tables(folder)

    # -- the others -----------------------------------------------------------------------------------------------

    def after_validate(self) -> None:
        """Say over how many samples."""
        evaluation = self.task.evaluation
        if evaluation is not None and self.trainer.is_global_zero:
            values = ", ".join(f"{name} {value:.2f}" for name, value in evaluation.values.items())
            report.console().print(f"{self.task.spec}: {values} over {evaluation.n_eval} samples")
            report.per_class(evaluation.per_class)

    after_test = after_validate

    def after_predict(self) -> None:
        """Say where the files are."""
        files = self.prediction_files
        out = report.console()
        out.print(f"wrote {len(files.written)} files into {files.folder}", soft_wrap=True, markup=False)
        passed = cast(BenchmarkData, self.datamodule).passed_over
        if passed:
            named = ", ".join(str(path) for path in passed)
            out.print(f"passed over {len(passed)} files: {named}", soft_wrap=True, markup=False)


def _derive_tables(folder: Path) -> None:
    """Bring the tables beside a finished run up to date, and show the run; a kill may have come between."""
    runs = folder.parents[1]
    written: list[Path] = []
    try:
        written = update([runs], runs / "leaderboards", of=read_record(folder / RECORD_NAME))
    except (UserError, OSError) as error:
        print(f"wsbench: warning: leaderboards are not updated: {error}", file=sys.stderr)
    show(folder, written)


def _read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of a run; UsageError if it is none."""
    try:
        return read_run_checkpoint(Path(path).expanduser())
    except ValueError as error:
        raise UsageError(str(error)) from error


def _classes_or_default(task: str, given: int | None) -> int:
    """Until the data has been read, and where it is not, a network has the classes that it has by default."""
    default: int = inspect.signature(ENTRIES[task].model).parameters["num_classes"].default
    return given or default


def _seed(value: bool | int) -> int:
    if isinstance(value, bool):
        raise ValueError("--seed_everything must be a number: it is part of the run's identity")
    if not 0 <= value < 2**32:
        raise UsageError(f"--seed_everything {value}: expected a number from 0 to {2**32 - 1}")
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
    # which process has ended, before the others are ended with it
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    for message in (
        ".*LeafSpec.*",
        ".*exists and is not empty.*",  # config.yaml is there before the first checkpoint
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",  # the task logs by itself, see BenchmarkTask
        ".*callbacks used to create the checkpoint.*",  # evaluating needs none of them
        ".*dirpath has changed.*",
        ".*The `srun` command is available on your system but is not used.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # the stream goes on where it was
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # its report is a message of its logger
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")


def fit(argv: Sequence[str]) -> Path:
    """Run ``fit`` with these options, or find it finished; returns the run's folder.

    Raises:
        UserError: something is wrong that the user can mend.
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
    cast(Any, rank_zero_only).rank = nodes.process_rank()  # Lightning's own guess does not know NODE_RANK
    choice = choose(argv[1:], find_dataset, argv[0])
    try:
        return BenchmarkCLI(choice, argv).folder
    except argparse.ArgumentTypeError as error:  # a value in a configuration, which the parser takes as a default
        raise UsageError(str(error)) from error
    except Interrupted as interrupted:
        if nodes.process_rank():  # the first process says it
            raise SystemExit(interrupted.exit_status) from None
        raise
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes 1 of it
            raise Interrupted("stopped by SIGINT", 128 + signal.SIGINT) from None
        raise
    except RuntimeError as error:
        if str(error).startswith("Error(s) in loading state_dict"):
            raise UsageError(f"the checkpoint does not fit the network: {shortened(str(error))}") from error
        if nodes.has_lost_a_process(error) and not isinstance(error, UserError):
            raise nodes.NodeError(
                f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}); its own "
                "output says why; --ckpt_path auto goes on from the last checkpoint"
            ) from error
        if isinstance(error, UserError) or not str(error).startswith("DataLoader worker"):
            raise
        raise UsageError(
            f"a process that loads data has died ({str(error).splitlines()[0]}); is there enough memory (also shared: "
            "/dev/shm)? --data.num_workers 0 loads in this process and shows what is wrong"
        ) from error
    except BaseException:
        lock.discard(run_folder.STARTED)
        raise
    finally:
        finish()
        lock.release()


def main(argv: Sequence[str]) -> int:
    """Run fit, validate, test or predict; returns the exit status."""
    _quiet()
    try:
        _run(argv)
    except FinishedError as finished:
        report.console().print(f"this run is finished: {finished.folder}; --overwrite true runs it again")
        _derive_tables(finished.folder)
    return 0
