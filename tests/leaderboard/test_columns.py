"""Which columns a table of the page has, and what they say."""

from wsbench.leaderboard.page.columns import FIRST, LAST, columns

EMPTY = dict.fromkeys((column.name for column in (*FIRST, *LAST)), "") | {
    "ci95_high": "", "lr_high": "", "steps_to_target": "", "reached": "", "citation": "", "note": "", "changed": {},
}  # fmt: skip
ALWAYS = ["norm", "network", "metric", "mean", "source"]


def test_a_column_is_there_where_a_row_has_something_to_say() -> None:
    row = EMPTY | {"norm": "gn", "devices": "1", "diverged": "0", "source": "run"}
    assert [column.name for column in columns([row], [])] == ALWAYS
    several = [column.name for column in columns([row, row | {"devices": "2", "diverged": "1"}], [])]
    assert several == ["norm", "network", "metric", "mean", "devices", "diverged", "source"]


def test_what_cells_say() -> None:
    row = EMPTY | {
        "mean": "12.3456", "ci95_low": "1", "ci95_high": "2.5", "lr_low": "0.01", "lr_high": "0.1", "target": "60",
        "reached": "2 of 5", "source": "paper", "citation": "Table 3", "note": "x", "changed": {"model.lr": "0.3"},
    }  # fmt: skip
    said = {column.name: column.of(row) for column in columns([row], ["model.lr", "model.width"])}
    assert said["mean"] == "12.35"
    assert said["ci95_low"] == "1.00 to 2.50"
    assert said["lr_low"] == "0.01 to 0.1"
    assert said["target"] == "– (2 of 5)"  # noqa: RUF001
    assert said["source"] == "paper: Table 3 (x)"
    assert (said["model.lr"], said["model.width"]) == ("0.3", "")
