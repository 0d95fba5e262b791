"""Which task and recipe a command line means, before a parser for them is built."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from wsbench.errors import UserError
from wsbench.plugins import OPTION, requested
from wsbench.run.folder import CONFIG

TASKS = ("imagenet", "something", "voc", "modelnet40", "coco")
RECIPES = ("paper", "small", "mini")


class ChoiceError(UserError, ValueError):
    """A command line that does not say what to run; the message names the choices."""


@dataclass(frozen=True)
class Choice:
    """What a command line means."""

    task: str
    recipe: str
    reason: str
    configs: tuple[str, ...]
    """Config files below those of the command line: the recipe, and the run's own behind a checkpoint."""

    def recipe_content(self) -> dict[str, Any]:
        """The recipe's YAML."""
        return recipe_content(self.task, self.recipe)


def _sniff(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=None)
    for name in ("--task", "--recipe", "--ckpt_path", "--data.root"):
        parser.add_argument(name)
    parser.add_argument("--config", action="append", default=[])
    known, _ = parser.parse_known_args(list(argv))
    return known


def _read(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ChoiceError(f"cannot read --config '{path}': {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ChoiceError(f"--config '{path}' is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ChoiceError(f"--config '{path}' holds no settings")
    return content


def recipe_path(task: str, recipe: str) -> str:
    """The YAML file of a recipe in the package."""
    with as_file(files("wsbench.conf") / task / f"{recipe}.yaml") as path:
        return str(path)


def recipe_content(task: str, recipe: str) -> dict[str, Any]:
    """A recipe's YAML."""
    return _read(recipe_path(task, recipe))


def _require_imports(layers: Sequence[dict[str, Any]]) -> None:
    """Nothing is imported because a file says so: whoever starts a run names the modules."""
    for layer in layers:
        for name in layer.get(OPTION.removeprefix("--")) or []:
            if name not in requested():
                raise ChoiceError(f"the configuration was made with {OPTION} {name}, a module that would be run; if "
                                  f"you trust it, add {OPTION} {name}")  # fmt: skip


def _one_of(value: str, choices: Sequence[str], option: str) -> str:
    if value not in choices:
        raise ChoiceError(f"{option} {value}: choose from {', '.join(choices)}")
    return value


def choose(argv: Sequence[str], locate: Callable[[str, Path], object]) -> Choice:
    """Task and recipe from the command line, its --config files, or the run behind its --ckpt_path.

    Without a recipe it is ``paper`` where --data.root or $WSBENCH_DATA is set, and ``mini`` where neither is: a folder
    that the user names is used or refused, never replaced.

    Args:
        argv: the arguments behind the subcommand.
        locate: finds a task's dataset under a folder, or raises what says why not.

    Raises:
        ChoiceError: there is no task, or no such task or recipe.
        Exception: what ``locate`` raises.
    """
    known = _sniff(argv)
    layers = [_read(path) for path in known.config]
    beside: tuple[str, ...] = ()
    if known.ckpt_path and known.ckpt_path not in ("last", "auto"):
        config = Path(known.ckpt_path).expanduser().resolve().parent / CONFIG
        if config.is_file():
            beside = (str(config),)
            layers = [_read(str(config)), *layers]

    _require_imports(layers)

    def find(name: str) -> Any:
        if getattr(known, name, None) is not None:
            return getattr(known, name)
        return next((layer[name] for layer in reversed(layers) if layer.get(name) is not None), None)

    task, recipe = find("task"), find("recipe")
    if task is None:
        lost = f" (no {CONFIG} beside '{known.ckpt_path}')" if known.ckpt_path else ""
        raise ChoiceError(f"say what to run with --task{lost}: {', '.join(TASKS)}")
    _one_of(task, TASKS, "--task")
    if recipe is not None:
        source = "--recipe" if known.recipe else f"'{(*beside, *known.config)[-1]}'"
        return Choice(task, _one_of(recipe, RECIPES, "--recipe"), f"by {source}", (recipe_path(task, recipe), *beside))

    roots = [vars(known)["data.root"], *((layer.get("data") or {}).get("root") for layer in reversed(layers))]
    root = next((r for r in roots if r), os.environ.get("WSBENCH_DATA"))
    recipe, reason = "mini", "neither --data.root nor $WSBENCH_DATA names a dataset"
    if root:
        locate(task, Path(str(root)).expanduser())
        recipe, reason = "paper", f"the dataset is under '{root}'"
    return Choice(task, recipe, reason, (recipe_path(task, recipe), *beside))
