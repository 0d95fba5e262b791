"""The task and the data behind a checkpoint of a run."""

from pathlib import Path
from typing import Any

from wsbench.configuration import fields
from wsbench.configuration.choice import ChoiceError
from wsbench.configuration.foreign import read_yaml, taken_from_run
from wsbench.datamodules import BenchmarkData, data_class
from wsbench.errors import UserError, shortened
from wsbench.norms import NormMismatchError
from wsbench.registry import LINKS, TASKS
from wsbench.run.folder import CONFIG, data_options, model_options
from wsbench.tasks import BenchmarkTask, task_class
from wsbench.tasks.formats import read_run_checkpoint


def read_settings(checkpoint: Path, config: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's content and the configuration of its run.

    Args:
        checkpoint: of a run.
        config: the run's configuration; None: ``config.yaml`` beside the checkpoint.

    Raises:
        ChoiceError: a file is missing or is not what it should be.
    """
    path = config or checkpoint.expanduser().resolve().parent / CONFIG
    for file, what in ((checkpoint, "--ckpt_path"), (path, "the run's configuration")):
        if not file.expanduser().is_file():
            raise ChoiceError(f"{what} '{file}' does not exist; a run's folder has both, or say --config FILE")
    try:
        content = read_run_checkpoint(checkpoint.expanduser())
    except ValueError as error:
        raise ChoiceError(str(error)) from error
    settings = read_yaml(path, "the run's configuration")
    if config is None:  # beside the checkpoint, from wherever that is
        settings = taken_from_run(settings, path, training=False, remedy=f"name the file: --config {path}")
    if settings.get("task") not in TASKS or not isinstance(settings.get("model"), dict):
        raise ChoiceError(f"'{path}' is not a run's configuration: it names no task and model")
    if not isinstance(settings.setdefault("data", {}), dict):
        raise ChoiceError(f"'{path}' is not a run's configuration: its data has no fields")
    for room in ("data", "model"):
        options = {field.name for field in fields.of_room(room, settings["task"])}
        followed = {link.field.removeprefix(f"{room}.") for link in (*LINKS, *TASKS[settings["task"]].links)}
        unknown = sorted(set(settings[room]) - options - followed)
        if unknown:
            raise ChoiceError(f"'{path}': {settings['task']} has no field {room}.{unknown[0]}")
    if content.get("classes"):  # in files of the first version coco's number counted background
        settings["data"]["num_classes"] = len(content["classes"])
    return content, settings


def load_run(checkpoint: Path, config: Path | None = None) -> tuple[BenchmarkTask, dict[str, Any]]:
    """The task behind a checkpoint, in evaluation mode, and its configuration.

    Args:
        checkpoint: of a run.
        config: the run's configuration; None: ``config.yaml`` beside the checkpoint.

    Raises:
        ChoiceError: a file is missing or is not what it should be.
        NormMismatchError: the configuration names another normalization than the checkpoint.
    """
    content, settings = read_settings(checkpoint, config)
    task = build_task(settings)
    load_weights(task, content, checkpoint)
    return task.eval(), settings


def build_task(settings: dict[str, Any]) -> BenchmarkTask:
    """The task of a run's configuration, with the weights that it has before any checkpoint is loaded."""
    try:
        return task_class(settings["task"])(**{**model_options(settings), "init_from": None})
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ChoiceError(
            f"the run's configuration makes no {settings['task']} model: {shortened(str(error))}"
        ) from error


def load_weights(task: BenchmarkTask, content: dict[str, Any], checkpoint: Path) -> None:
    """Load the weights in a checkpoint's ``content``, which was read from ``checkpoint``.

    Raises:
        ChoiceError: they do not fit the task.
        NormMismatchError: they were trained under another normalization.
    """
    try:
        task.on_load_checkpoint(content)
        task.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        if isinstance(error, NormMismatchError):
            raise
        raise ChoiceError(f"'{checkpoint}' and its run's configuration do not belong together: {error}") from error


def load_data(settings: dict[str, Any]) -> BenchmarkData:
    """The data of a run, from its configuration; not set up yet."""
    if "seed_everything" not in settings:
        raise ChoiceError("the run's configuration has no seed_everything; without it its samples are not known")
    return data_class(settings["task"])(**data_options(settings))
