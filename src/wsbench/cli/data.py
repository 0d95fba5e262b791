"""``python -m wsbench data TASK``: verify a dataset, fetch what may be fetched, build what the recipe needs."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from wsbench.configuration.choice import recipe_content
from wsbench.datamodules import data_class
from wsbench.datamodules.prepare import preparation
from wsbench.datamodules.prepare.base import Asked, Preparation
from wsbench.datamodules.prepare.checks import Finding
from wsbench.datamodules.prepare.verify import verify
from wsbench.options import UsageError
from wsbench.registry import TASKS
from wsbench.run.report import console


def _command(task: str, root: Path, official: bool, options: dict[str, Any], prepared: Preparation) -> str:
    """The command that trains on the dataset."""
    recipe = "paper" if official else "small"
    defaults = recipe_content(task, recipe)["data"]
    needed = prepared.command_options(options, defaults)
    of_model = prepared.model_options(options, recipe_content(task, recipe)["model"]["network"])
    further = "".join(f" --model.{name} {value}" for name, value in of_model.items())
    further += "".join(f" --data.{name} {value}" for name, value in needed.items())
    recipe = "" if official else " --recipe small"
    return f"python -m wsbench fit --task {task} --norm gn+ws{recipe} --data.root {root}{further}"


def _printable(text: str) -> str:
    """With what is no character (of a file's name that is not UTF-8, say) written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _say(text: str) -> None:
    """A line of its own, not broken, so that a path can be copied."""
    console().print(_printable(text), soft_wrap=True, markup=False, highlight=False, emoji=False)


def _show(root: Path, findings: Sequence[Finding]) -> None:
    table = Table(title=escape(_printable(str(root))))
    for column in ("", "what", "expected", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        cells = (finding.what, finding.expected, finding.found)
        table.add_row("ok" if finding.ok else "!!", *(escape(_printable(cell)) for cell in cells))
    console().print(table)
    for finding in findings:
        for problem in finding.problems:
            _say(f"{finding.what}: {problem}")


def main(args: argparse.Namespace) -> int:
    """Returns 0 if everything can be read and the official set, if it is that, is complete; 1 if not."""
    asked = Asked(**{field.name: getattr(args, field.name) for field in fields(Asked)})
    prepared = preparation(args.task)
    useless = sorted({*asked.given()} - {*prepared.takes})
    if useless:
        owners = [task for task in TASKS if {*preparation(task).takes} & {*useless}]
        named = ", ".join("--" + name.replace("_", "-") for name in useless)
        raise UsageError(f"{args.task} has no use for {named}; belongs to {', '.join(owners)}")
    kind, out = data_class(args.task), console()
    out.print(f"layout:\n{kind.layout}\n", highlight=False, markup=False)
    if args.root is None:
        out.print("nothing to verify: give --root FOLDER, or set $WSBENCH_DATA")
        return 1
    root = Path(args.root).expanduser()
    built = prepared.build(root, asked)
    if built:
        _say(built)
    options = prepared.options(root, asked)
    findings, data = verify(kind, root, args.all, **options)
    official = data is not None and data.resembles_official
    if official:
        findings += prepared.check_official(root, asked)
    _show(root, findings)
    wrong = [f for f in findings if not f.ok]
    step = f"ready: {_command(args.task, root, official, options, prepared)}"
    if data is None and prepared.lacks_val(root):
        step = (
            "there is no val: lay out one as above, or let recommend hold out a fifth: python -m wsbench recommend "
            f"--task {args.task} --data.root {root} --budget 1h"
        )
    elif wrong:
        step = next((f.hint for f in wrong if f.hint), f"repair: {', '.join(f.what for f in wrong)}")
    _say(f"next: {step}")
    return 1 if wrong else 0
