"""LightningCLI with --task, --recipe and --norm, which expand into conf/: fit, validate, test, predict."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from wsbench.analysis.callback import check_options
from wsbench.cli.ending import evaluate_last_weights, write_run_record
from wsbench.cli.parser import SEED_DEFAULT, TRAINER_DEFAULTS, add_options, prepared
from wsbench.cli.session import SaveConfig, Session, read_checkpoint
from wsbench.configuration.choice import RecipeChoice
from wsbench.datamodules import BenchmarkData, data_class
from wsbench.errors import UserError, shortened
from wsbench.norms import ACTIVATIONS, NormSpec
from wsbench.options import UsageError
from wsbench.records import write_text_atomically
from wsbench.registry import TASKS
from wsbench.run import devices, nodes, report
from wsbench.run import folder as run_folder
from wsbench.run.callbacks import require_callbacks
from wsbench.run.checkpoints import WholeCheckpoints
from wsbench.run.progress import progress_callback
from wsbench.run.recorder import PredictionFiles
from wsbench.run.stopping import Every, Stopping
from wsbench.run.wrong_options import ShortErrors
from wsbench.tasks import BenchmarkTask, task_class
from wsbench.tasks.accumulation import derive_accumulation
from wsbench.tasks.errors import NotFiniteError
from wsbench.tasks.sync_batch_norm import SyncBatchNorms

#: what the parser says about a class that cannot be made of what was given; the first reason is the class's own
_OF_CLASS = re.compile(r"Does not validate against.*?Errors:\s+- (.+?)\n", re.DOTALL)


class BenchmarkCLI(LightningCLI):
    """LightningCLI for one task, with the recipe as the default configuration and a run folder per configuration.

    Args:
        choice: task and recipe.
        argv: the command line, subcommand first; it is ``sys.argv`` too, for the processes that DDP starts.
    """

    def __init__(self, choice: RecipeChoice, argv: Sequence[str]) -> None:
        self.choice, self.argv = choice, list(argv)
        #: of a run that is fitted
        self.session: Session | None = None
        self._read_already: BenchmarkData | None = None
        self._device_notes: list[str] = []
        super().__init__(
            model_class=task_class(choice.task),
            datamodule_class=data_class(choice.task),
            seed_everything_default=SEED_DEFAULT,
            auto_configure_optimizers=False,  # else --optimizer and --lr_scheduler silently overrule the recipe
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=dict(TRAINER_DEFAULTS),
            parser_class=ShortErrors,
            parser_kwargs={argv[0]: {"default_config_files": list(choice.configs)}},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static, and all of them
        """Only the one that is run: the parsers of the others take as long to make."""
        return {self.argv[0]: LightningCLI.subcommands()[self.argv[0]]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser to which an abbreviation is a typo."""
        parser = super().init_parser(**kwargs)
        parser.allow_abbrev = False
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options beside trainer, model and data."""
        add_options(parser, self.choice)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the command line and the configuration decide, never hyper-parameters inside a checkpoint."""

    @property
    def settings(self) -> Namespace:
        """The configuration of the subcommand."""
        return cast(Namespace, self.config[self.subcommand])

    @property
    def task(self) -> BenchmarkTask:
        """The model of this command, which is a task."""
        return cast(BenchmarkTask, self.model)

    @property
    def _session(self) -> Session:
        assert self.session is not None
        return self.session

    # -- before ---------------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Look at the options; find the run's folder and claim it; add the callbacks that every run has."""
        settings = self.settings
        settings.task, settings.recipe = self.choice.task, self.choice.recipe
        devices.multiply_float32(settings.matmul_precision, settings.tf32_convolutions)
        devices.require_trainer(settings.trainer.as_dict())
        if self.subcommand != "fit":
            self._before_evaluation(settings)
            return
        self._choose_devices(settings)
        self._require_options(settings)
        self.session = Session(self.choice, settings)
        settings.trainer.default_root_dir = str(self.session.folder)
        self.session.open()
        self.trainer_defaults["callbacks"] = self.session.callbacks()

    def _choose_devices(self, settings: Namespace) -> None:
        """The miniature, which is to run anywhere, takes the devices that its small batch divides among."""
        trainer, data = settings.trainer, settings.data
        if self.choice.recipe != "mini" or trainer.devices != "auto":
            return
        available = devices.available_devices(str(trainer.accelerator))
        taken = devices.dividing(available, data.effective_batch, data.micro_batch)
        if taken < available:
            trainer.devices = taken
            self._device_notes = [
                f"{taken} of {available} devices: the miniature's step of {data.effective_batch} has no part for each; "
                "--trainer.devices and --data.effective_batch say otherwise"
            ]

    def _require_options(self, settings: Namespace) -> None:
        """UsageError for options of ``fit`` that exclude each other; wait for the other nodes."""
        if not settings.runs or settings.runs.startswith("~"):
            raise UsageError(f"--runs '{settings.runs}': expected a folder, without ~")
        trainer = settings.trainer
        elsewhere = [word for word in self.argv if word.partition("=")[0] == "--trainer.default_root_dir"]
        if elsewhere:
            raise UsageError(f"{elsewhere[0]}: a run has a folder of its own under --runs; say --runs FOLDER")
        endless = all(end in (None, -1) for end in (trainer.max_steps, trainer.max_epochs))
        if trainer.max_epochs is None and endless:  # Lightning would take 1,000 epochs
            raise UsageError("the run has no end: set --trainer.max_steps or --trainer.max_epochs (-1: until stopped)")
        if trainer.sync_batchnorm and ACTIVATIONS[NormSpec.parse(settings.norm).act].facts.across_devices:
            raise UsageError(f"--norm {settings.norm} sees all devices by itself; leave --trainer.sync_batchnorm out")
        nodes.meet(int(trainer.num_nodes))
        check_options(settings.norm, settings.analysis, settings.snapshots, settings.model.compile, endless)

    def _before_evaluation(self, settings: Namespace) -> None:
        if settings.ckpt_path is None and settings.model.init_from is None:
            raise UsageError(
                f"{self.subcommand} needs --ckpt_path, for instance runs/{settings.task}/ID/last.ckpt; or published "
                "weights of the whole network by --model.init_from"
            )
        if settings.ckpt_path is not None:
            self._before_checkpoint(settings)
        elif settings.data.num_classes is None and self.subcommand != "predict":
            self._read_already = prepared(self.choice.task, settings.data, "validate")
            settings.model.num_classes = self._read_already.num_classes
        settings.trainer.enable_checkpointing = False
        self.trainer_defaults["callbacks"] = [Stopping(None, Every())]
        if self.subcommand == "predict":
            self._before_predictions(settings)

    def _before_predictions(self, settings: Namespace) -> None:
        output = Path(settings.output).expanduser()
        if output.exists() and not output.is_dir():
            raise UsageError(f"--output '{output}' is a file; name a folder")
        if settings.data.pictures and output.resolve() == Path(settings.data.pictures).expanduser().resolve():
            raise UsageError("--output and --data.pictures are the same folder; masks would overwrite your images")
        self.prediction_files = PredictionFiles(output)
        self.trainer_defaults["callbacks"].insert(0, self.prediction_files)
        if settings.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(progress_callback())
        settings.return_predictions = False

    def _before_checkpoint(self, settings: Namespace) -> None:
        if not Path(settings.ckpt_path).expanduser().is_file():
            raise UsageError(f"--ckpt_path '{settings.ckpt_path}' does not exist")
        classes = read_checkpoint(settings.ckpt_path).get("classes")
        given = settings.data.num_classes
        entry = TASKS[self.choice.task]
        before = entry.counted_background and given == len(classes or ()) + 1
        if classes and given not in (None, len(classes)) and not before:
            raise UsageError(
                f"--data.num_classes {given} was given, the checkpoint is of {len(classes)} classes "
                f"({', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}); leave the option out"
            )
        if classes:
            settings.model.num_classes = len(classes)
        if classes and entry.classes_of_data:  # which are compared by name
            settings.data.num_classes = None
        settings.model.init_from = None  # the checkpoint has the weights

    def _require_whole_network(self) -> None:
        """Evaluating needs every weight: by a checkpoint of the run, or published weights of the whole network."""
        if self.settings.ckpt_path is None and not self.task.all_weights_loaded:
            raise UsageError(
                f"{self.subcommand} --model.init_from: the file has no weights for all of '{self.task.network_name}' "
                "(another last layer, or a backbone only), so its output would be random; use --ckpt_path"
            )

    before_validate = before_test = before_predict = _require_whole_network

    # -- the classes ----------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Make model, data and Trainer; data that was read to find out what the run is stays the run's."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            why = _OF_CLASS.search(str(error))
            if isinstance(error, UserError) or why is None:
                raise
            raise UsageError(f"a class that an option names cannot be made: {shortened(why[1])}") from error
        read = self._read_already if self.session is None else self.session.data
        if read is not None:
            self.datamodule = read

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer; BN is synchronized by wsbench's layer, checkpoints are written by it, and it keeps time."""
        settings = self.config_init[self.subcommand].trainer
        plugins_given = settings.plugins or []
        given = list(plugins_given) if isinstance(plugins_given, list | tuple) else [plugins_given]
        if settings.sync_batchnorm:
            given.append(SyncBatchNorms())
        if not any(isinstance(plugin, CheckpointIO) for plugin in given):
            given.append(WholeCheckpoints(self._folders_of_checkpoints))
        return super().instantiate_trainer(**kwargs | {"plugins": given, "max_time": None})

    def _folders_of_checkpoints(self) -> list[Any]:
        """Where this run's checkpoints lie, by its own command line."""
        own = None if self.session is None else self.session.folder
        callbacks = getattr(self.trainer, "checkpoint_callbacks", [])
        return [own, *(getattr(callback, "dirpath", None) for callback in callbacks)]

    def after_instantiate_classes(self) -> None:
        """Look whether the checkpoint fits, derive the accumulation, and add the loggers."""
        if self.settings.ckpt_path is not None:
            content = read_checkpoint(self.settings.ckpt_path)
            self.task.require_checkpoint(content, resume=self.subcommand == "fit")
        if self.session is None:
            return
        self.session.introduce(self.task)
        cast(Any, self.trainer).datamodule = self.datamodule
        derive_accumulation(self.trainer)
        self.task.require_evaluation(self.trainer)
        always = {id(callback) for callback in self.trainer_defaults["callbacks"]}
        given = [c for c in cast(Any, self.trainer).callbacks if id(c) not in always]
        require_callbacks(given, self.task.monitored(), self.trainer)
        if not self.session.is_dry:
            self.trainer.loggers = [*self.session.loggers(self.task), *self.trainer.loggers]

    # -- fit ------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; a run that diverges is a result where that is asked for."""
        try:
            super()._run_subcommand(subcommand)
        except NotFiniteError as error:
            if self.session is None or self.session.is_dry or self.settings.on_divergence != "record":
                raise
            if self.trainer.is_global_zero:
                print(f"wsbench: diverged, which is recorded: {error}", file=sys.stderr)
                write_run_record(self.session, self.trainer, self.task, self.argv, diverged=True)

    @rank_zero_only
    def before_fit(self) -> None:
        """Say what the run is."""
        session, settings, task = self._session, self.settings, self.task
        task.check_trainer(self.trainer)
        task.trainer = self.trainer  # which Lightning does in fit, after this
        if not session.is_dry:
            write_text_atomically(session.folder / run_folder.NORMS, f"{task.norm_report}\n")
            session.describe(task, self.trainer)
        parameters = sum(p.numel() for p in task.network.parameters())
        precision = self.trainer.precision_plugin.precision
        resumes = "" if session.resumed_at is None else f"; resumes after step {session.resumed_at}"
        report.banner(
            {
                "task": f"{self.choice.task}, {task.network_name}, {parameters / 1e6:.2f} M parameters",
                "recipe": f"{self.choice.recipe} ({self.choice.reason})",
                "data": report.data_line(session.identity),
                "classes": report.classes_line(session.data.classes),
                "norm": task.norm_report.summary(),
                "batch": report.batch_line(task.batch_numbers(settings.trainer.sync_batchnorm)),
                "steps": f"{task.planned_steps()}, seed {settings.seed_everything}, precision {precision}{resumes}",
                "run": str(session.folder),
            },
            [
                *_few(task.norm_report.notes),
                *session.data_notes(),
                *self._device_notes,
                *session.notes,
                *devices.tf32_hint(self.trainer.strategy.root_device, str(precision)),
            ],
        )

    def after_fit(self) -> None:
        """Evaluate the final weights, write the record and the leaderboards, say what came out."""
        session = self._session
        if session.is_dry or self.trainer.interrupted:
            return
        evaluate_last_weights(session, self.trainer, self.task)
        if self.trainer.is_global_zero:
            write_run_record(session, self.trainer, self.task, self.argv)

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


def _few(notes: Sequence[str], most: int = 3) -> list[str]:
    short = [note.replace("note: ", "") for note in notes[:most]]
    return short + ([f"and {len(notes) - most} more"] if len(notes) > most else [])
