"""Grids as data: ``conf/sweep/NAME.yaml`` to the options of every cell. docs/sweeps.md explains the fields."""

import difflib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wsbench.errors import UserError, shortened

#: short names of the fields that grids are mostly made of
ALIASES = {
    "seed": "seed_everything", "network": "model.network", "batch": "data.micro_batch",
    "effective_batch": "data.effective_batch", "lr": "model.lr", "steps": "trainer.max_steps",
}  # fmt: skip
#: fields that the sweep sets by itself
RESERVED = ("recipe", "runs", "ckpt_path", "overwrite", "config")
#: bytes of a definition, at most
LARGEST = 1 << 20
#: cells of a grid, at most
MOST_CELLS = 100_000
#: what a cell's command line begins with; the seed ends it
_FIRST = ("task", "recipe", "norm")

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]
Options = dict[str, Value]


class GridError(UserError, ValueError):
    """A grid's definition, or a choice from it, that makes no sense; the message names the file and the field."""


class Rule(BaseModel):
    """Further options of the cells that match."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    when: dict[str, Value] = Field(min_length=1)
    then: dict[str, Value] = Field(min_length=1, alias="set")


class Grid(BaseModel):
    """The cells of one recipe: the product of the axes, less ``exclude``, plus ``include``, with ``rules`` applied."""

    model_config = ConfigDict(extra="forbid")

    options: dict[str, Value] = {}
    axes: dict[str, list[Value]] = Field(min_length=1)
    include: list[dict[str, Value]] = []
    exclude: list[dict[str, Value]] = []
    rules: list[Rule] = []


def next_rate(rate: float, down: bool = False) -> float:
    """The half decade above, or below: 0.01, 0.03, 0.1."""
    text = f"{rate:.0e}"
    mantissa, exponent = int(text[0]), int(text.partition("e")[2])
    if mantissa not in (1, 3) or float(text) != rate:
        raise ValueError(f"{rate} is no half decade: 1 or 3 times a power of ten")
    if down:
        return float(f"3e{exponent - 1}") if mantissa == 1 else float(f"1e{exponent}")
    return float(f"3e{exponent}") if mantissa == 1 else float(f"1e{exponent + 1}")


class TunedGrid(BaseModel):
    """The methods that are tuned, and how."""

    model_config = ConfigDict(extra="forbid")

    options: dict[str, Value] = {}
    axes: dict[str, list[Value]] = Field(min_length=1)
    exclude: list[dict[str, Value]] = []
    rules: list[Rule] = []
    rates: list[float] = Field(min_length=3)
    """The grid of learning rates at first: half decades, ascending."""
    most_rates: int = Field(10, ge=3)
    share: float = Field(0.2, gt=0, lt=1)
    """Of the training data, held out in stage 1."""
    tuning_seeds: list[int] = Field([1000], min_length=1)
    seeds: list[int] = Field([100, 101, 102, 103, 104], min_length=2)
    """Of stage 2; no seed of stage 1 is among them."""

    @field_validator("rates")
    @classmethod
    def _half_decades(cls, rates: list[float]) -> list[float]:
        if any(next_rate(low) != high for low, high in itertools.pairwise(rates)):
            raise ValueError("expected half decades without a gap, ascending, such as 0.003, 0.01, 0.03, 0.1")
        return rates


class Definition(BaseModel):
    """A sweep: what it is, and its grid for each recipe; or for each recipe the methods that it tunes."""

    model_config = ConfigDict(extra="forbid")

    about: str = Field(min_length=1)
    grids: dict[str, Grid] = {}
    tuned: dict[str, TunedGrid] = {}

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Definition":
        if bool(self.grids) == bool(self.tuned):
            raise ValueError("expected either grids or tuned, with a grid in it")
        return self


def sweep_names() -> list[str]:
    """The sweeps that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in (files("wsbench.conf") / "sweep").iterdir())


def text_of(name: str) -> str:
    """The text of a definition.

    Args:
        name: a sweep of the package, or the path of a YAML file.

    Raises:
        GridError: there is none.
    """
    if name in sweep_names():
        return (files("wsbench.conf") / "sweep" / f"{name}.yaml").read_text(encoding="utf-8")
    if Path(name).suffix in (".yaml", ".yml"):
        try:
            with Path(name).open("rb") as file:
                return file.read(LARGEST).decode("utf-8")
        except OSError as error:
            raise GridError(f"cannot read the sweep '{name}': {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise GridError(f"the sweep '{name}' is no text: {error}") from error
    near = difflib.get_close_matches(name, sweep_names(), n=1)
    hint = f"did you mean {near[0]}? There are" if near else "choose from"
    raise GridError(f"no sweep '{name}'; {hint} {', '.join(sweep_names())}, or name a YAML file")


def load(name: str) -> Definition:
    """Read a definition.

    Args:
        name: a sweep of the package, or the path of a YAML file.

    Raises:
        GridError: there is none, or it is not a definition.
    """
    text = text_of(name)
    try:
        return Definition.model_validate(yaml.safe_load(text))
    except RecursionError as error:
        raise GridError(f"sweep '{name}' is nested too deeply") from error
    except yaml.YAMLError as error:
        raise GridError(f"sweep '{name}' is not YAML: {shortened(str(error))}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise GridError(f"sweep '{name}': {problems}") from error


def field_name(name: str) -> str:
    """The full name of a field that may be short: ``seed`` is ``seed_everything``."""
    return ALIASES.get(name, name)


def _canonical(name: str, value: Any) -> Any:
    if name != "norm":
        return value
    if not isinstance(value, str):
        raise GridError(f"norm: {value!r} is not a specification (in YAML, quote what could be a number or a boolean)")
    from wsbench.norms import NormSpec, SpecError  # torch, which reading and listing sweeps does without

    try:
        return str(NormSpec.parse(value))
    except SpecError as error:
        raise GridError(f"norm: {error}") from error


def full(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the full names of their fields.

    Raises:
        GridError: a field is said twice, or is one that the sweep sets.
    """
    named: dict[str, Any] = {}
    for short, value in options.items():
        name = field_name(short)
        if name in RESERVED:
            raise GridError(f"'{short}' is not a field of a grid; the sweep sets it")
        if name in named:
            raise GridError(f"'{short}' is said twice, also as '{name}'")
        named[name] = [_canonical(name, v) for v in value] if isinstance(value, list) else _canonical(name, value)
    return named


def _matches(cell: Options, condition: Mapping[str, Any]) -> bool:
    def one(name: str, wanted: Any) -> bool:
        have = cell.get(name)
        return have == wanted or (isinstance(wanted, list) and have in wanted)

    return all(one(name, wanted) for name, wanted in condition.items())


def _known(fields: Iterable[str], cells: Sequence[Options], what: str) -> None:
    options = sorted({name for cell in cells for name in cell})
    for name in fields:
        if name not in options:
            raise GridError(f"{what}: no cell has the field '{name}'; they have {', '.join(options)}")


def _product(options: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> list[Options]:
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_CELLS:
        size = " x ".join(f"{len(values)} {name}" for name, values in axes.items())
        raise GridError(
            f"the grid has {count:,} cells ({size}), at most {MOST_CELLS:,} can be kept track of; leave values out"
        )
    return [dict(options) | dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _axes(given: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for name, values in full({name: list(values) for name, values in given.items()}).items():
        if not values:
            raise GridError(f"axis '{name}' has no values")
        if len({json.dumps(v) for v in values}) < len(values):
            raise GridError(f"axis '{name}' has a value twice: {values}")
        axes[name] = values
    return axes


def expand(grid: Grid, axes: Mapping[str, Sequence[Any]] | None = None) -> list[Options]:
    """The options of every cell, under full names.

    Args:
        grid: the definition.
        axes: axes that replace those of the grid, or join them.

    Raises:
        GridError: a field or value is wrong, a condition matches nothing, a cell occurs twice, there is no cell.
    """
    options = full(grid.options)
    replaced = _axes(axes or {})
    both = _axes(grid.axes) | replaced
    options = {name: value for name, value in options.items() if name not in both}
    cells = _product(options, both)
    for excluded in map(full, grid.exclude):
        _known(excluded, cells, "exclude")
        left = [cell for cell in cells if not _matches(cell, excluded)]
        if len(left) == len(cells) and not axes:
            raise GridError(f"exclude {excluded} matches no cell")
        cells = left
    for further in map(full, grid.include):
        lists = {name: value if isinstance(value, list) else [value] for name, value in further.items()}
        cells += _product(options, {name: v for name, v in replaced.items() if name not in lists} | lists)
    cells = [_ruled(cell, cells, grid.rules, strict=not axes) for cell in cells]
    if not cells:
        raise GridError("the grid has no cell")
    number = Counter(json.dumps(cell, sort_keys=True) for cell in cells)
    twice = next((text for text, count in number.items() if count > 1), None)
    if twice is not None:
        raise GridError(f"a cell occurs twice: {twice}")
    return cells


def _ruled(cell: Options, cells: Sequence[Options], rules: Sequence[Rule], strict: bool) -> Options:
    """The cell with the options of all rules that match it; what an axis or an earlier rule says stays."""
    ruled = dict(cell)
    for rule in rules:
        when = full(rule.when)
        if strict and not any(_matches(other, when) for other in cells):
            raise GridError(f"rule {rule.when} matches no cell")
        if _matches(cell, when):
            ruled = full(rule.then) | ruled
    return {name: _filled(value, ruled) for name, value in ruled.items()}


def _filled(value: Any, cell: Options) -> Any:
    """``weights/{norm}.ckpt`` with the cell's norm."""
    if not isinstance(value, str) or "{" not in value:
        return value
    text = value
    for name, short in [(field_name(s), s) for s in (*ALIASES, *cell)]:
        if name in cell:
            text = text.replace(f"{{{short}}}", str(cell[name]))
    if "{" in text:
        raise GridError(f"'{value}': the cell has no such field; it has {', '.join(sorted(cell))}")
    return text


def select(cells: Sequence[Options], only: Mapping[str, Sequence[Any]]) -> list[Options]:
    """The cells whose fields have one of the values.

    Raises:
        GridError: there is no such field, or no such cell.
    """
    chosen = list(cells)
    for name, values in full({name: list(values) for name, values in only.items()}).items():
        _known([name], cells, "--only")
        left = [cell for cell in chosen if cell.get(name) in values]
        if not left:
            present = sorted({str(cell.get(name)) for cell in chosen})
            raise GridError(f"--only {name}={','.join(map(str, values))}: no cell; there are {', '.join(present)}")
        chosen = left
    return chosen


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def argv(cell: Options, recipe: str) -> list[str]:
    """The arguments of ``fit`` for a cell, in an order that depends on nothing but the fields."""
    fields = {"recipe": recipe, **cell}
    last = ["seed_everything"] if "seed_everything" in fields else []
    middle = sorted(set(fields) - {*_FIRST, *last})
    order = [name for name in _FIRST if name in fields] + middle + last
    return [part for name in order for part in (f"--{name}", _text(fields[name]))]


def parse_values(text: str) -> tuple[str, list[Any]]:
    """``FIELD=V1,V2`` of the command line; values are read as YAML reads them.

    Raises:
        GridError: it is not of that form.
    """
    name, equals, values = text.partition("=")
    if not equals or not name or not values:
        raise GridError(f"'{text}' is not of the form FIELD=VALUE,VALUE")
    try:
        read = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError as error:
        raise GridError(f"'{text}': {error}") from error
    return name, read
