"""Grids as data: each sweep of the package is its table, and a wrong definition is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wsbench.grid.definition import Grid, GridError, argv, expand, load, parse_values, select, sweep_names
from wsbench.leaderboard.paper import network_of, paper_rows

NETWORK = {"imagenet": "resnet50", "something": "tsm_resnet50", "voc": "deeplabv3_resnet101", "modelnet40": "dgcnn_tf"}


def grid(**changes: Any) -> Grid:
    return Grid.model_validate({"options": {"task": "voc"}, "axes": {"norm": ["bn", "gn"], "seed": [0, 1]}} | changes)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_table_is_the_papers(number: int) -> None:
    """Networks, norms and images per device of the cells are those of the paper's rows, and no others."""
    cells = expand(load(f"table{number}").grids["paper"])
    (task,) = {c["task"] for c in cells}
    have = {
        (c.get("model.network", NETWORK.get(c["task"])), c["norm"], str(c.get("data.micro_batch", ""))) for c in cells
    }
    assert len(have) == len(cells)
    rows = {(network_of(task, row), row.norm, row.batch_per_gpu) for row in paper_rows(number)}
    assert {cell[:2] for cell in have} == {row[:2] for row in rows}
    given = {cell for cell in have if cell[2]}
    assert {c for c in given if c[0].startswith("res")} <= rows


def test_mini_is_five_tasks_ten_norms_three_seeds() -> None:
    cells = expand(load("mini").grids["mini"])
    assert len(cells) == 5 * 10 * 3
    norms = {(c["task"], c["norm"].replace("gn16", "gn")) for c in cells}
    expected = {a + w for a in ("bn", "gn", "ln", "in", "sn") for w in ("", "+ws")}
    tasks = ("imagenet", "something", "voc", "modelnet40", "coco")
    assert norms == {(task, norm) for task in tasks for norm in expected}


def test_batch_keeps_the_effective_batch() -> None:
    for recipe, effective in (("paper", 256), ("mini", 32)):
        cells = expand(load("batch").grids[recipe])
        assert {c["data.micro_batch"] for c in cells} == {32, 16, 8, 4, 2, 1}
        assert {c["data.effective_batch"] for c in cells} == {effective}


def test_every_sweep_expands() -> None:
    further = ["mini", "batch", "rivals", "tuned", "tuned-batch", "tuned-rivals", "tuned-small"]
    assert sweep_names() == sorted([*(f"table{n}" for n in range(1, 9)), *further])
    for name in sweep_names():
        for each in load(name).grids.values():
            assert expand(each)


def test_product_exclude_include_rules() -> None:
    cells = expand(
        grid(
            exclude=[{"norm": "gn", "seed": 1}],
            include=[{"norm": "sn", "seed": [5, 6]}],
            rules=[{"when": {"norm": "bn"}, "set": {"batch": 8, "model.init_from": "w/{norm}-{seed}.ckpt"}}],
        )
    )
    found = [(c["norm"], c["seed_everything"], c.get("data.micro_batch"), c.get("model.init_from")) for c in cells]
    assert found == [
        ("bn", 0, 8, "w/bn-0.ckpt"), ("bn", 1, 8, "w/bn-1.ckpt"), ("gn", 0, None, None),
        ("sn", 5, None, None), ("sn", 6, None, None),
    ]  # fmt: skip


def test_axes_replace_and_select() -> None:
    cells = expand(grid(), {"seed": [3], "lr": [0.1, 0.2]})
    assert [(c["norm"], c["model.lr"]) for c in cells] == [("bn", 0.1), ("bn", 0.2), ("gn", 0.1), ("gn", 0.2)]
    assert len(select(cells, {"norm": ["gn"], "lr": [0.2]})) == 1
    with pytest.raises(GridError, match="there are bn, gn"):
        select(cells, {"norm": ["ln"]})
    with pytest.raises(GridError, match=r"no cell has the field 'model\.momentum'"):
        select(cells, {"model.momentum": [1]})


def test_argv_depends_on_the_fields_only() -> None:
    cell = {"seed_everything": 1, "norm": "gn+ws", "model.compile": False, "task": "voc", "data.scales": [1.0, 0.5]}
    line = argv(cell, "mini")
    assert line == argv(dict(reversed(cell.items())), "mini")
    assert line == [
        "--task", "voc", "--recipe", "mini", "--norm", "gn+ws", "--data.scales", "[1.0, 0.5]",
        "--model.compile", "false", "--seed_everything", "1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": {"norm": ["gm"]}}, "norm: "),
        ({"axes": {"norm": [False]}}, "quote what could be"),
        ({"axes": {"norm": []}}, "axis 'norm' has no values"),
        ({"axes": {"norm": ["bn", "bn"]}}, "has a value twice"),
        ({"axes": {"seed": [0], "seed_everything": [1]}}, "said twice"),
        ({"axes": {"recipe": ["mini"]}}, "the sweep sets it"),
        ({"exclude": [{"norm": "ln"}]}, "matches no cell"),
        ({"exclude": [{"batch": 1}]}, "no cell has the field 'data.micro_batch'"),
        ({"include": [{"norm": "bn", "seed": 0}]}, "occurs twice"),
        ({"rules": [{"when": {"norm": "ln"}, "set": {"lr": 1}}]}, "matches no cell"),
        ({"options": {"model.init_from": "{network}"}}, "the cell has no such field"),
        ({"exclude": [{"norm": ["bn", "gn"]}]}, "no cell"),
    ],
)
def test_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(GridError, match=words):
        expand(grid(**changes))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("about: x", "expected either grids or tuned"),
        ("about: x\ngrids: {mini: {axes: {norm: bn}}}", "axes.norm: Input should be a valid list"),
        ("about: x\ngrids: {mini: {axes: {norm: [bn]}, exlude: []}}", "exlude: Extra inputs"),
        ("about: [", "is not YAML"),
    ],
)
def test_a_bad_file_names_the_field(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(GridError, match=words) as error:
        load(str(path))
    assert str(path) in str(error.value)
    for missing in ("tabel2", "nowhere.yaml"):
        with pytest.raises(GridError, match=missing):
            load(missing)


def test_values_are_yaml() -> None:
    assert parse_values("lr=0.1,1e-2,a") == ("lr", [0.1, "1e-2", "a"])
    assert parse_values("seed=1") == ("seed", [1])
    assert yaml.safe_load("1e-2") == "1e-2"  # YAML 1.1; jsonargparse reads it as a number
    for bad in ("seed", "=1", "seed="):
        with pytest.raises(GridError, match="is not of the form"):
            parse_values(bad)
