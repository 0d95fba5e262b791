"""The parser of ``fit`` and its like: a function of task, recipe and subcommand."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from wsbench import plugins
from wsbench.configuration import fields
from wsbench.configuration.choice import RecipeChoice
from wsbench.datamodules import data_class
from wsbench.datamodules.base import BenchmarkData
from wsbench.norms import NormSpec, SpecError
from wsbench.options import UsageError
from wsbench.registry import LINKS, TASKS
from wsbench.run import devices
from wsbench.run.stopping import Every
from wsbench.run.wrong_options import ShortErrors
from wsbench.tasks import task_class

#: the Trainer's defaults here, where they are not Lightning's
TRAINER_DEFAULTS: Mapping[str, Any] = {
    "use_distributed_sampler": False,  # its evaluation sampler counts some samples twice
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "logger": False,
}
SEED_DEFAULT = 0


def find_dataset(task: str, root: Path) -> Path:
    """Where a task's dataset lies under a folder; DatasetNotFoundError says what was looked for and what is there."""
    return data_class(task).find(root)


def prepared(task: str, options: Namespace, stage: str) -> BenchmarkData:
    """A task's data, made and read for a stage."""
    data = data_class(task)(**options.as_dict())
    data.prepare_data()
    data.setup(stage)
    return data


def plain(settings: Namespace) -> dict[str, Any]:
    """A subcommand's configuration as nested dictionaries."""
    return {k: v for k, v in settings.as_dict().items() if k != "config" and not k.startswith("__")}


def _norm(text: str) -> str:
    """A normalization spec such as gn+ws."""
    if not isinstance(text, str):  # of a configuration
        raise argparse.ArgumentTypeError(f"--norm {text}: expected a specification such as gn+ws")
    try:
        return str(NormSpec.parse(text))
    except SpecError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _interval(text: str) -> str:
    """How often checkpoints are written: 10m, 500, never."""
    try:
        Every.parse(str(text))
    except OverflowError as error:
        raise argparse.ArgumentTypeError(f"--checkpoint_every {text}: too long") from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--checkpoint_every {error}") from error
    return str(text)


def _seed(value: bool | int) -> int:
    if isinstance(value, bool):
        raise ValueError("--seed_everything must be a number: it is part of the run's identity")
    if not 0 <= value < 2**32:
        raise UsageError(f"--seed_everything {value}: expected a number from 0 to {2**32 - 1}")
    return value


def _classes_or_default(task: str, given: int | None) -> int:
    """Until the data has been read, and where it is not, a network has the classes that it has by default."""
    default: int = inspect.signature(task_class(task)).parameters["num_classes"].default
    return given or default


#: of the options in :data:`wsbench.configuration.fields.RUN`
_TYPES: dict[str, Any] = {
    "task": str, "recipe": str, "norm": _norm, "import": list[str], "runs": str, "overwrite": bool,
    "output": str, "analysis": bool, "tensorboard": bool, "wandb": bool, "mlflow": bool,
    "log_images": int,
    "matmul_precision": Literal[devices.MATMUL], "tf32_convolutions": bool, "checkpoint_every": _interval,
    "snapshots": int, "on_divergence": Literal["stop", "record"],
}  # fmt: skip


def add_options(parser: LightningArgumentParser, choice: RecipeChoice) -> None:
    """Add the options beside trainer, model and data, and let fields follow each other."""
    defaults: dict[str, Any] = {"task": choice.task, "recipe": choice.recipe, "import": plugins.requested()}
    for field in fields.RUN:
        kind = _TYPES[field.name]
        default = defaults.get(field.name, yaml.safe_load(field.default) if kind in (bool, int) else field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=default, help=field.help)
    for link in (*LINKS, *TASKS[choice.task].links):
        compute = partial(_classes_or_default, choice.task) if link.field == "model.num_classes" else link.compute
        parser.link_arguments(link.source, link.field, compute_fn=compute)
    parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)


def fit_parser(choice: RecipeChoice, configs: Sequence[str]) -> LightningArgumentParser:
    """A parser that takes what ``fit`` takes, and raises argparse.ArgumentError for what it does not.

    Args:
        choice: task and recipe.
        configs: files with defaults; of one field the last file's counts.
    """
    parser = ShortErrors(default_config_files=list(configs), exit_on_error=False)
    parser.allow_abbrev = False  # an abbreviation is a typo
    parser.add_argument("--config", action="config")
    parser.add_argument("--seed_everything", type=bool | int, default=SEED_DEFAULT)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(task_class(choice.task), "model")
    parser.add_lightning_class_args(data_class(choice.task), "data")
    add_options(parser, choice)
    parser.add_method_arguments(Trainer, "fit", skip={"model", "train_dataloaders", "val_dataloaders", "datamodule"})
    return parser


def recipe_defaults(choice: RecipeChoice) -> dict[str, Any]:
    """The configuration that the recipe alone makes, without the run behind a checkpoint."""
    return plain(fit_parser(choice, choice.configs[:1]).get_defaults())
