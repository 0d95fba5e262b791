"""The fields of fit, validate, test and predict, read from the sources, which are not imported: help in no time.

What they are is said once, in the signatures and docstrings of the tasks, the data and Lightning's Trainer; this module
parses those files.
"""

import ast
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wsbench.configuration.choice import RECIPES, recipe_content
from wsbench.options import UsageError, nearest
from wsbench.registry import LINKS, TASKS


@dataclass(frozen=True)
class Field:
    """An option of the command line."""

    name: str
    type: str
    default: str
    help: str


#: options beside those of trainer, model and data; the parser takes default and help from here
RUN = (
    Field("task", "str", "", f"one of {', '.join(TASKS)}"),
    Field("recipe", "str", "", f"one of {', '.join(RECIPES)} (default: paper with a dataset, mini without)"),
    Field("norm", "str", "gn+ws", "normalization: ACT[GROUPS][+WEIGHT[-VARIANT]][@SEMANTICS]; `norms` lists them"),
    Field("import", "list[str]", "", "a module with norms of your own (docs/plugin.md)"),
    Field("runs", "str", "runs", "folder of run folders"),
    Field("overwrite", "bool", "False", "start an unfinished or finished run over"),
    Field("output", "str", "predictions", "folder that predict writes to"),
    Field("analysis", "bool", "False", "measure gradient shares (docs/analysis.md)"),
    Field("tensorboard", "bool", "True", "write TensorBoard's files into the run's folder"),
    Field("wandb", "bool", "False", "log to Weights & Biases (extra wandb)"),
    Field("mlflow", "bool", "False", "log to MLflow (extra mlflow)"),
    Field("log_images", "int", "4", "predictions that loggers get as images after each evaluation"),
    Field("matmul_precision", "str", "highest", "of float32 on GPUs: highest is float32, high and medium round"),
    Field("tf32_convolutions", "bool", "True", "cuDNN may round float32 to TF32 (torch's default)"),
    Field("checkpoint_every", "str", "10m", "between epochs: a time (10m, 1h30m), optimizer steps (500), or never"),
    Field("on_divergence", "str", "stop", "of a loss that is NaN or infinite: stop, or record (a result: guessing)"),
    Field("snapshots", "int", "0", "keep the weights of so many steps for analyze"),
)
#: what LightningCLI adds
_LIGHTNING = (
    Field("seed_everything", "int", "0", "seed of initialization, shuffling and augmentation"),
    Field("ckpt_path", "str", "None", "a checkpoint; for fit, `last` resumes this run, `auto` if there is one"),
    Field("config", "file", "", "settings, for instance a run's config.yaml; options after it override it"),
    Field("print_config", "", "", "print the resolved configuration and stop"),
)
_LINKS = (*LINKS, *(link for task in TASKS.values() for link in task.links))
_UNLISTED = ("help", "trainer", "model", "data", "weights_only", "verbose", "return_predictions", "data.seed",
             *(link.field for link in _LINKS))  # fmt: skip


@dataclass(frozen=True)
class _Class:
    """A class as its source says it."""

    bases: tuple[str, ...]
    summary: str
    fields: tuple[Field, ...]
    takes_more: bool
    fixes: frozenset[str]
    """Arguments that it gives to its base by itself."""
    task: str | None


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(f"this needs {package}, which is not installed: pip install 'wsbench[train]'")
    return Path(spec.origin).parent


def _described(docstring: str) -> dict[str, str]:
    """What the section ``Args:`` says of each argument."""
    _, _, section = docstring.partition("Args:\n")
    descriptions: dict[str, str] = {}
    indent = None
    name = ""
    for line in section.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        if depth < indent:
            break
        before, colon, after = line.strip().partition(":")
        if depth == indent and colon and before.isidentifier():
            name, descriptions[before] = before, after.strip()
        elif name:
            descriptions[name] = f"{descriptions[name]} {line.strip()}".strip()
    return descriptions


def _class(node: ast.ClassDef) -> _Class:
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    told = _described(ast.get_docstring(node) or "")
    fields: list[Field] = []
    if init is not None:
        told |= _described(ast.get_docstring(init) or "")
        arguments = [*init.args.args[1:], *init.args.kwonlyargs]
        values = [*init.args.defaults, *init.args.kw_defaults]
        defaults: list[ast.expr | None] = [*[None] * (len(arguments) - len(values)), *values]
        for argument, default in zip(arguments, defaults, strict=True):
            kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
            text = "" if default is None else ast.unparse(default)
            fields.append(Field(argument.arg, kind, text, told.get(argument.arg, "")))
    task = next((n.value.value for n in node.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
                 and [ast.unparse(t) for t in n.targets] == ["task"]), None)  # fmt: skip
    bases = tuple(ast.unparse(base) for base in node.bases)
    more = init is None or init.args.kwarg is not None
    summary = (ast.get_docstring(node) or "").partition("\n")[0]
    fixed: set[str] = set()
    for call in ast.walk(init) if init is not None else ():
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            fixed |= {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    return _Class(bases, summary, tuple(fields), more, frozenset(fixed), None if task is None else str(task))


@cache
def _classes(package: str) -> Mapping[str, _Class]:
    classes: dict[str, _Class] = {}
    for path in sorted(_folder(package).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = _class(node)
    return classes


def _with_inherited(name: str, classes: Mapping[str, _Class]) -> Iterator[Field]:
    one = classes[name]
    yield from one.fields
    if one.takes_more:
        for base in one.bases:
            if base in classes:
                yield from (field for field in _with_inherited(base, classes) if field.name not in one.fixes)


@cache
def of_room(room: str, task: str) -> tuple[Field, ...]:
    """The fields of ``model`` or ``data`` of a task, its own first."""
    classes = _classes({"model": "wsbench.tasks", "data": "wsbench.datamodules"}[room])
    name = next(name for name, one in classes.items() if one.task == task)
    named: dict[str, Field] = {}
    linked = {"data.seed", *(link.field for link in (*LINKS, *TASKS[task].links))}
    for field in _with_inherited(name, classes):
        if f"{room}.{field.name}" not in linked:
            named.setdefault(field.name, field)
    return tuple(named.values())


@cache
def of_trainer() -> tuple[Field, ...]:
    """The fields of Lightning's Trainer."""
    path = _folder("lightning") / "pytorch" / "trainer" / "trainer.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Trainer")
    return _class(node).fields


def names(tasks: Collection[str] = tuple(TASKS)) -> list[str]:
    """All options, with ``--``."""
    options = [field.name for field in (*RUN, *_LIGHTNING)]
    for task in tasks:
        options += [f"{room}.{field.name}" for room in ("data", "model") for field in of_room(room, task)]
    options += [f"trainer.{field.name}" for field in of_trainer()]
    return [f"--{name}" for name in dict.fromkeys(options)]


def require_known(argv: Sequence[str]) -> None:
    """Refuse options that no parser would know.

    Args:
        argv: behind the subcommand.

    Raises:
        UsageError: there are some; with the nearest right names.
    """
    options = names()
    unknown = []
    for word in argv:
        name = word.removeprefix("--").partition("=")[0].removesuffix("+")
        if not word.startswith("--") or name in _UNLISTED or f"--{name}" in options:
            continue
        parts = name.split(".")
        if len(parts) > 2 and f"--{'.'.join(parts[:2])}" in options:  # of a class that the option names
            continue
        if len(parts) == 2 and parts[0] in ("trainer", "model", "data") and parts[1] == "help":
            continue
        task = _value(argv, "--task")
        unknown.append(nearest(word, names((task,)) if task in TASKS else options))
    if unknown:
        raise UsageError("; ".join(unknown))


def _value(argv: Sequence[str], option: str) -> str | None:
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _shown(room: str, fields: Sequence[Field]) -> Iterator[str]:
    for field in fields:
        name = f"{room}.{field.name}" if room else field.name
        default = f" (default: {field.default})" if field.default else ""
        yield f"  --{name} {field.type}".rstrip()
        text = f"{field.help}{default}".replace("``", "`").strip()
        yield from textwrap.wrap(text, 112, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _of_recipe(fields: Sequence[Field], values: Mapping[str, Any], recipe: str) -> list[Field]:
    """With the recipe's defaults in place of the class's."""
    return [replace(f, default=f"{values[f.name]}, of {recipe}") if f.name in values else f for f in fields]


def help_text(argv: Sequence[str]) -> str:
    """What ``COMMAND --task TASK --help [trainer]`` prints.

    Args:
        argv: with the subcommand first.

    Raises:
        UsageError: there is no such task or recipe.
    """
    if "trainer" in argv[1:]:
        lines = ["Lightning's Trainer; a recipe sets some of these", *_shown("trainer", of_trainer())]
        return "\n".join(lines) + "\n"
    task, recipe = _value(argv, "--task"), _value(argv, "--recipe") or "paper"
    for option, value, choices in (("--task", task, TASKS), ("--recipe", recipe, RECIPES)):
        if value not in choices:
            raise UsageError(f"{option} {value}: choose from {', '.join(choices)}")
    assert task is not None
    content = recipe_content(task, recipe)
    lines = [
        f"usage: python -m wsbench {argv[0]} --task {task} [options]",
        "",
        "the run",
        *_shown("", (*RUN, *_LIGHTNING)),
    ]
    for room, title in (("data", "the data"), ("model", "the network and its optimizer")):
        fields = _of_recipe(of_room(room, task), content.get(room, {}), recipe)
        lines += ["", f"{title} (defaults of {recipe} where it has one)", *_shown(room, fields)]
    trainer = ", ".join(f"--trainer.{name} {value}" for name, value in content.get("trainer", {}).items())
    lines += ["", f"Lightning's Trainer ({recipe}: {trainer})", f"  {argv[0]} --help trainer lists its fields"]
    return "\n".join(lines) + "\n"
