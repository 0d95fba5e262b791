"""Grids of cells that take a few seconds each."""

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import TINY
from wsbench.records import read_record

#: the fields of a run that takes a second
OPTIONS = dict(zip((name.removeprefix("--") for name in TINY[::2]), map(yaml.safe_load, TINY[1::2]), strict=True))


def write_grid(folder: Path, data: Path, axes: dict[str, list[Any]], **options: Any) -> str:
    """A definition on the tiny VOC under ``data``; its path."""
    fields = {k: v for k, v in OPTIONS.items() if k != "recipe"} | {"data.root": str(data)} | options
    content = {"about": "A test", "grids": {"mini": {"options": fields, "axes": axes}}}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def write_tuned_grid(folder: Path, data: Path, norms: list[str]) -> str:
    """A tuned definition of three rates and two fresh seeds; its path."""
    fields = {k: v for k, v in OPTIONS.items() if k not in ("recipe", "norm")} | {"data.root": str(data)}
    grid = {"options": fields | {"task": "voc"}, "axes": {"norm": norms}, "rates": [0.01, 0.03, 0.1], "most_rates": 3,
            "share": 0.5, "seeds": [100, 101]}  # fmt: skip
    path = folder / "tuned.yaml"
    path.write_text(yaml.safe_dump({"about": "A test", "tuned": {"mini": grid}}))
    return str(path)


def require_tuned(capsys: Any, norms: int = 2) -> None:
    """Both stages have run: every norm's rate is the best of its own trials, which are in its record."""
    records = [read_record(folder / "result.json") for folder in folders()]
    results = [one for one in records if one.tuning is not None]
    assert (len(records) - len(results), len(results)) == (3 * norms, 2 * norms)
    for one in results:
        assert {t.record for t in one.tuning.trials} <= {r.id for r in records if r.norm == one.norm}
        best = max(t.score for t in one.tuning.trials)
        assert one.overrides["model.lr"] in [t.rate for t in one.tuning.trials if t.score == best]
        assert "data.tuning" not in one.overrides
    assert "rate chosen on held-out training data" in capsys.readouterr().out


def folders(runs: Path = Path("runs")) -> list[Path]:
    """Of all runs."""
    return sorted((runs / "voc").iterdir())
