"""From a sweep's name to its cells, all of them resolved and checked before anything runs; and the plan on disk."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

import wsbench
from wsbench.configuration.choice import RECIPES, ChoiceError
from wsbench.grid.cells import Cell, Resolved, label, now, varying
from wsbench.grid.definition import GridError, argv, expand, load, select, text_of
from wsbench.records import write_text_atomically

PLAN = "plan.json"
SWEEPS = "sweeps"

Resolve = Callable[[Sequence[str]], Resolved]


class _WrittenCell(BaseModel):
    options: dict[str, Any]
    id: str = Field(pattern=r"^([0-9a-f]{12}|\?)$")
    task: str = Field(pattern=r"^[a-z0-9]+$")
    argv: list[str] = []
    steps: int | None = None


class _Written(BaseModel):
    """A plan on disk; fields that earlier versions did not write have defaults."""

    asked: str = ""
    written: str = Field("", pattern=r"^[\w:+-]*$")
    reason: str = ""
    about: str = ""
    cells: list[_WrittenCell] = []
    left: list[_WrittenCell] = []


@dataclass(frozen=True)
class SweepRequest:
    """What is asked of a sweep."""

    name: str
    """Of a sweep in the package, or a YAML file."""
    recipe: str | None = None
    """None: paper where all of its datasets are there, else mini."""
    axes: Mapping[str, Sequence[Any]] | None = None
    only: Mapping[str, Sequence[Any]] | None = None
    runs: Path = Path("runs")
    further: Sequence[str] = ()
    """Arguments of ``fit`` for every cell."""
    renew_stale: bool = False
    published: Path | None = None


@dataclass(frozen=True)
class Plan:
    """A sweep's cells, resolved."""

    name: str
    recipe: str
    reason: str
    about: str
    cells: tuple[Cell, ...]
    runs: Path
    asked: str = ""
    """Of what it follows from: :func:`asked`."""

    @property
    def folder(self) -> Path:
        """Where the sweep keeps its plan."""
        return self.runs / SWEEPS / f"{self.name}-{self.recipe}"

    def labels(self) -> dict[str, str]:
        """``{id: words}`` that tell the cells apart."""
        fields = varying(self.cells)
        return {cell.id: label(cell, fields) for cell in self.cells}

    def problems(self) -> list[str]:
        """Why cells cannot run, each reason once."""
        return list(dict.fromkeys(cell.resolved.problem for cell in self.cells if cell.resolved.problem))


def make(
    choice: SweepRequest, resolve: Resolve, options: Sequence[str] = (), stale: Callable[[Cell], bool] | None = None
) -> Plan:
    """Expand and resolve a sweep.

    Args:
        choice: what is asked for.
        resolve: says what a command line of ``fit`` would run.
        options: further arguments of ``fit`` that the launcher needs.
        stale: whether a cell's result is to be renewed.

    Raises:
        GridError: the definition or the choice is wrong.
        Exception: what ``resolve`` raises for a field or value that does not exist, with the cell in its message.
    """
    definition = load(choice.name)
    if definition.tuned:
        raise GridError(f"sweep '{choice.name}' tunes; its cells follow from one another")
    name = Path(choice.name).stem
    recipes = [recipe for recipe in RECIPES if recipe in definition.grids]
    if set(definition.grids) - set(RECIPES):
        raise GridError(f"sweep '{name}': grids are of recipes {', '.join(RECIPES)}, not {', '.join(definition.grids)}")
    if choice.recipe is not None and choice.recipe not in recipes:
        raise GridError(f"sweep '{name}' has no grid for --recipe {choice.recipe}; it has {', '.join(recipes)}")

    def cells_of(recipe: str) -> list[Cell]:
        chosen = select(expand(definition.grids[recipe], choice.axes), choice.only or {})
        cells = [cell_of(fields, recipe, choice, resolve, options) for fields in chosen]
        _distinct(cells)
        return cells

    recipe, reason = choice.recipe or recipes[0], "by --recipe" if choice.recipe else "the only one"
    cells = cells_of(recipe)
    if choice.recipe is None and len(recipes) > 1:
        reason = "its datasets are there"
        lacking = next((c.resolved.problem for c in cells if c.resolved.id is None), None)
        if recipe == "paper" and lacking:
            recipe, reason = "mini", "a dataset of the paper's is not there; --recipe paper says which"
            cells = cells_of(recipe)
    if choice.renew_stale and stale is not None:
        cells = [Cell(c.options, c.argv, c.resolved, stale(c), c.published) for c in cells]
    return Plan(name, recipe, reason, definition.about, tuple(cells), choice.runs, asked(choice, options))


def cell_of(
    fields: dict[str, Any], recipe: str, choice: SweepRequest, resolve: Resolve, options: Sequence[str] = ()
) -> Cell:
    """A cell, resolved.

    Args:
        fields: its options under full names.
        recipe: its recipe.
        choice: what is asked of the sweep.
        resolve: says what a command line of ``fit`` would run.
        options: further arguments of ``fit``.

    Raises:
        GridError: a field or value does not exist.
    """
    line = [*argv(fields, recipe), *options, *choice.further]
    if choice.runs != Path("runs"):
        line += ["--runs", str(choice.runs)]
    try:
        resolved = resolve(line)
    except ChoiceError as error:
        raise GridError(f"cell {' '.join(line)}: {error}") from error
    return Cell(fields, tuple(line), resolved, published=choice.published)


def _distinct(cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.resolved.id is None:
            continue
        other = seen.setdefault(cell.id, cell)
        if other is not cell:
            raise GridError(
                f"two cells are one run, {cell.id}: {' '.join(other.argv)} and {' '.join(cell.argv)}; a field that "
                "changes no number is no axis"
            )


def _key(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)


def read(folder: Path) -> dict[str, Any]:
    """The plan that was written into a sweep's folder; empty if there is none, or if what is there is none.

    It can be made again from the definition, so a damaged one counts as none: a sweep is told by its cells' folders.
    """
    path = folder / PLAN
    if not path.exists():
        return {}
    try:
        return _Written.model_validate_json(path.read_bytes()).model_dump()
    except ValidationError:
        return {}


def folder_of(choice: SweepRequest, recipe: str) -> Path:
    """Where a sweep keeps its plan."""
    return choice.runs / SWEEPS / f"{Path(choice.name).stem}-{recipe}"


def asked(choice: SweepRequest, options: Sequence[str]) -> str:
    """SHA-256 of all that a plan follows from, but for the data."""
    parts = [wsbench.__version__, text_of(choice.name), choice.recipe, choice.axes, choice.only, str(choice.runs),
             [*choice.further], str(choice.published), [*options]]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def as_written(choice: SweepRequest, options: Sequence[str]) -> tuple[Plan, str] | None:
    """The plan as it was when the sweep was last run, and when that was; None if something else is asked for now.

    It is read in no time. Whether the data has changed since is not looked at.
    """
    key = asked(choice, options)
    for recipe in RECIPES if choice.recipe is None else [choice.recipe]:
        content = read(folder_of(choice, recipe))
        if not content or content["asked"] != key:
            continue
        cells = tuple(
            Cell(
                c["options"], tuple(c["argv"]),
                Resolved(c["task"], recipe, choice.runs, c["id"], None, c["steps"]), published=choice.published,
            )
            for c in content["cells"]
        )  # fmt: skip
        plan = Plan(Path(choice.name).stem, recipe, content["reason"], content["about"], cells, choice.runs, key)
        return plan, content["written"]
    return None


def former_ids(folder: Path) -> dict[str, str]:
    """``{options as JSON: id}`` of the last plan that was run; what a cell was then."""
    return {_key(cell["options"]): cell["id"] for cell in read(folder).get("cells", [])}


def write(plan: Plan) -> None:
    """Write the plan; cells of the earlier one that this one has not stay in it, as ``left`` or under the old id."""
    earlier = read(plan.folder)
    current = [
        {"options": c.options, "id": c.id, "task": c.resolved.task, "argv": list(c.argv), "steps": c.resolved.steps}
        for c in plan.cells
    ]
    ids = {cell["id"] for cell in current}
    left = [cell for cell in (*earlier.get("left", []), *earlier.get("cells", [])) if cell["id"] not in ids]
    unique = {cell["id"]: cell for cell in left}
    content = {
        "name": plan.name, "recipe": plan.recipe, "reason": plan.reason, "about": plan.about, "asked": plan.asked,
        "written": now(), "cells": current, "left": [*unique.values()],
    }  # fmt: skip
    write_text_atomically(plan.folder / PLAN, json.dumps(content, indent=1) + "\n")
