"""Which task and recipe a command line means, before a parser for them is built."""

import argparse
import atexit
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from wsbench.configuration.foreign import ConfigurationError, read_yaml, require_no_imports, taken_from_run
from wsbench.errors import UserError
from wsbench.options import Parser
from wsbench.registry import TASKS
from wsbench.run.folder import CONFIG

RECIPES = ("paper", "small", "mini")
#: the four models of the paper's case study, which analyze trains
CASE_STUDY = "gn,gn+ws-mo,gn+ws-do,gn+ws"


class ChoiceError(UserError, ValueError):
    """A command line that does not say what to run; the message names the choices."""


@dataclass(frozen=True)
class RecipeChoice:
    """What a command line means."""

    task: str
    recipe: str
    reason: str
    configs: tuple[str, ...]
    """Config files below those of the command line: the recipe, and what is taken of the run's behind a checkpoint."""

    def recipe_content(self) -> dict[str, Any]:
        """The recipe's YAML."""
        return recipe_content(self.task, self.recipe)


def _sniff(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(add_help=False, argument_default=None)
    for name in ("--task", "--recipe", "--ckpt_path", "--data.root", "--model.network"):
        parser.add_argument(name)
    parser.add_argument("--config", action="append", default=[])
    options, _ = parser.parse_known_args(list(argv))
    return options


def _read(path: str) -> dict[str, Any]:
    try:
        return read_yaml(Path(path), "--config")
    except ConfigurationError as error:
        raise ChoiceError(str(error)) from error


def recipe_path(task: str, recipe: str) -> str:
    """The YAML file of a recipe in the package."""
    with as_file(files("wsbench.conf") / task / f"{recipe}.yaml") as path:
        return str(path)


def recipe_content(task: str, recipe: str) -> dict[str, Any]:
    """A recipe's YAML."""
    return _read(recipe_path(task, recipe))


def _at(layer: dict[str, Any], room: str, name: str) -> Any:
    fields = layer.get(room)
    return fields.get(name) if isinstance(fields, dict) else None


def _one_of(value: Any, choices: Collection[str], option: str) -> str:
    if value not in tuple(choices):
        raise ChoiceError(f"{option} {value}: choose from {', '.join(choices)}")
    return str(value)


#: what was taken of a run's configuration, and the file that it was written into for the parser
_TAKEN: dict[str, str] = {}


def _as_file(content: dict[str, Any]) -> str:
    """A file with these settings, which is there until the process ends."""
    text = yaml.safe_dump(content, sort_keys=True)
    if text not in _TAKEN:
        handle, path = tempfile.mkstemp(prefix="wsbench-", suffix=".yaml")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        atexit.register(Path(path).unlink, missing_ok=True)
        _TAKEN[text] = path
    return _TAKEN[text]


def choose(argv: Sequence[str], locate: Callable[[str, Path], object], command: str = "fit") -> RecipeChoice:
    """Task and recipe from the command line, its --config files, or the run behind its --ckpt_path.

    Without a recipe it is ``paper`` where --data.root or $WSBENCH_DATA is set, and ``mini`` where neither is: a folder
    that the user names is used or rejected, never replaced.

    Args:
        argv: the arguments behind the subcommand.
        locate: finds a task's dataset under a folder, or raises what says why not.
        command: the subcommand; ``fit`` takes more of the run behind a checkpoint.

    Raises:
        ChoiceError: there is no task, or no such task or recipe.
        ConfigurationError: the run behind the checkpoint has a configuration that is none, or that asks for code.
        Exception: what ``locate`` raises.
    """
    options = _sniff(argv)
    layers = [_read(path) for path in options.config]
    beside: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    if options.ckpt_path and options.ckpt_path not in ("last", "auto"):
        if not Path(options.ckpt_path).expanduser().is_file():
            raise ChoiceError(f"--ckpt_path '{options.ckpt_path}' does not exist, or is no file")
        config = Path(options.ckpt_path).expanduser().resolve().parent / CONFIG
        if config.is_file():
            beside = (str(config),)
            content = read_yaml(config, "the run's configuration")
            own = (getattr(options, "model.network"), *(_at(layer, "model", "network") for layer in layers))
            meant = options.task or next((x["task"] for x in reversed(layers) if x.get("task")), content.get("task"))
            layer = taken_from_run(content, config, training=command == "fit", task=meant, own_network=any(own))
            if options.task and layer.get("task") not in (None, options.task):
                raise ChoiceError(
                    f"--task {options.task}: '{options.ckpt_path}' is of a run of task {layer['task']}; leave "
                    "--task out, or start from its weights by --model.init_from"
                )
            taken = (_as_file(layer),)
            layers = [layer, *layers]

    for layer in layers:
        require_no_imports(layer)

    def find(name: str) -> Any:
        if getattr(options, name, None) is not None:
            return getattr(options, name)
        return next((layer[name] for layer in reversed(layers) if layer.get(name) is not None), None)

    task, recipe = find("task"), find("recipe")
    if task is None:
        lost = f" (no {CONFIG} beside '{options.ckpt_path}')" if options.ckpt_path else ""
        raise ChoiceError(f"say what to run with --task{lost}: {', '.join(TASKS)}")
    _one_of(task, TASKS, "--task")
    if recipe is not None:
        source = "--recipe" if options.recipe else f"'{(*beside, *options.config)[-1]}'"
        return RecipeChoice(
            task, _one_of(recipe, RECIPES, "--recipe"), f"by {source}", (recipe_path(task, recipe), *taken)
        )

    roots = [vars(options)["data.root"], *(_at(layer, "data", "root") for layer in reversed(layers))]
    root = next((r for r in roots if r), os.environ.get("WSBENCH_DATA"))
    recipe, reason = "mini", "neither --data.root nor $WSBENCH_DATA names a dataset"
    if root:
        locate(task, Path(str(root)).expanduser())
        recipe, reason = "paper", f"the dataset is under '{root}'"
    return RecipeChoice(task, recipe, reason, (recipe_path(task, recipe), *taken))
