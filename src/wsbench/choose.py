"""Which task and recipe a command line means, before a parser for them is built."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from wsbench.run.folder import CONFIG

TASKS = ("imagenet", "something", "voc", "modelnet40", "coco")
RECIPES = ("paper", "mini")


class ChoiceError(ValueError):
    """A command line that does not say what to run; the message names the choices."""


@dataclass(frozen=True)
class Choice:
    """What a command line means."""

    task: str
    recipe: str
    reason: str
    configs: tuple[str, ...]
    """Config files below those of the command line: the recipe, and the run's own behind a checkpoint."""
    ignore_root: bool = False
    """Whether --data.root names no dataset, so that the miniature is used instead."""


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


def _one_of(value: str, choices: Sequence[str], option: str) -> str:
    if value not in choices:
        raise ChoiceError(f"{option} {value}: choose from {', '.join(choices)}")
    return value


def choose(argv: Sequence[str], is_present: Callable[[str, Path], bool]) -> Choice:
    """Task and recipe from the command line, its --config files, or the run behind its --ckpt_path.

    Without a recipe it is ``paper`` where the task's dataset is found under --data.root or $WSBENCH_DATA, else
    ``mini``.

    Args:
        argv: the arguments behind the subcommand.
        is_present: whether a task's dataset lies under a folder.

    Raises:
        ChoiceError: there is no task, or no such task or recipe.
    """
    known = _sniff(argv)
    layers = [_read(path) for path in known.config]
    beside: tuple[str, ...] = ()
    if known.ckpt_path and known.ckpt_path not in ("last", "auto"):
        config = Path(known.ckpt_path).expanduser().resolve().parent / CONFIG
        if config.is_file():
            beside = (str(config),)
            layers = [_read(str(config)), *layers]

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
    present = bool(root) and is_present(task, Path(str(root)).expanduser())
    recipe = "paper" if present else "mini"
    reason = "neither --data.root nor $WSBENCH_DATA names a dataset"
    if root:
        reason = f"the dataset is under '{root}'" if present else f"no dataset of task '{task}' under '{root}'"
    return Choice(task, recipe, reason, (recipe_path(task, recipe), *beside), ignore_root=not present)
