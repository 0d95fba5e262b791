"""Each method at its own rate: equal trials, edges that grow, fresh seeds, and no look at the reporting split."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from tests.conftest import write_voc
from tests.grid.small import OPTIONS
from tests.test_records import make_record
from wsbench.__main__ import main
from wsbench.grid.cells import Cell, Resolved
from wsbench.grid.definition import GridError, TunedGrid, load, next_rate
from wsbench.grid.tuned import Method, Protocol, grown, methods
from wsbench.records import Trial, Tuning, chosen, read_record, write_record
from wsbench.registry import TASKS
from wsbench.run.identity import LR, SHARE, id_of

GRID = {"options": {"task": "imagenet"}, "axes": {"norm": ["bn", "gn+ws"]}, "rates": [0.01, 0.03, 0.1]}


def test_half_decades() -> None:
    rates = [0.001]
    while len(rates) < 9:
        rates.append(next_rate(rates[-1]))
    assert rates == [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    assert [next_rate(rate, down=True) for rate in rates[1:]] == rates[:-1]
    with pytest.raises(ValueError, match="no half decade"):
        next_rate(0.02)


def test_the_middle_of_ties_is_chosen() -> None:
    assert chosen({0.01: 50.0, 0.03: 100.0, 0.1: 100.0, 0.3: 100.0}, higher_is_better=True) == 0.1
    assert chosen({0.01: 5.0, 0.03: 5.0, 0.1: 9.0}, higher_is_better=False) == 0.01


def test_the_grid_grows_for_all_where_one_needs_it() -> None:
    rates = [0.01, 0.03, 0.1]
    inside, low, high = (
        {0.01: 9.0, 0.03: 5.0, 0.1: 9.0},
        {0.01: 5.0, 0.03: 6.0, 0.1: 9.0},
        {0.01: 9.0, 0.03: 8.0, 0.1: 1.0},
    )
    assert grown(rates, [inside, inside], [90, 90], False, 9) == rates
    assert grown(rates, [inside, low], [90, 90], False, 9) == [0.003, *rates]
    assert grown(rates, [high, low], [90, 90], False, 9) == [0.003, *rates, 0.3]
    assert grown(rates, [high, low], [90, 90], False, 4) == [0.003, *rates], "no more than was said"
    at_chance = {0.01: 90.0, 0.03: 90.0, 0.1: 90.0}
    assert grown(rates, [inside, at_chance], [90, 90], False, 9) == rates, "what learns nowhere moves no edge"


@dataclass
class FakeCell:
    """A cell whose result is known."""

    options: dict[str, Any]
    score: float
    ran: bool = False
    folder: Path = Path("nowhere")
    resolved: Any = field(default_factory=lambda: SimpleNamespace(task="imagenet", id="known"))

    @property
    def id(self) -> str:
        return repr(sorted(self.options.items()))

    def finished(self) -> bool:
        return self.ran

    def renew_tuning(self, tuning: Any) -> bool:
        return False

    def record(self) -> Any:
        metrics = {"top1_error": SimpleNamespace(value=self.score)}
        per_class = {"top1_error": dict.fromkeys(map(str, range(10)), 0.0)}
        identity = "-".join(str(self.options.get(name)) for name in ("norm", LR, "seed_everything", SHARE))
        return SimpleNamespace(metrics=metrics, id=identity, seed=self.options["seed_everything"], diverged=None,
                               per_class=per_class)  # fmt: skip


def run(protocol: Protocol, most: int = 20) -> list[tuple[int, list[FakeCell]]]:
    """All stages, and what was run in each."""
    found = []
    for _ in range(most):
        stage = protocol.stage()
        fresh = [cast(FakeCell, cell) for _, cell in stage.cells if not cell.finished()]
        for cell in fresh:
            cell.ran = True
        found.append((stage.number, fresh))
        if stage.number == 2:
            return found
    raise AssertionError("it does not end")


def protocol(error: Callable[[str, float], float], **changes: Any) -> Protocol:
    grid = TunedGrid.model_validate(GRID | changes)

    def cell_of(options: dict[str, Any]) -> Cell:
        return cast(Cell, FakeCell(options, error(options["norm"], options[LR])))

    return Protocol(grid, methods(grid), cell_of)


def test_both_stages() -> None:
    best = {"bn": 0.003, "gn+ws": 0.3}

    def error(norm: str, rate: float) -> float:
        ratio = rate / best[norm]
        return 10 + 20 * abs(ratio - 1 if ratio > 1 else 1 / ratio - 1) ** 0.5

    stages = run(one := protocol(error))
    first = [cell for number, cells in stages if number == 1 for cell in cells]
    tried = {norm: sorted(c.options[LR] for c in first if c.options["norm"] == norm) for norm in best}
    assert tried["bn"] == tried["gn+ws"] == [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "equal trials"
    assert all(cell.options[SHARE] == 0.2 for cell in first), "none looks at val"
    (_, second) = stages[-1]
    assert {(c.options["norm"], c.options[LR]) for c in second} == {*best.items()}
    assert all(SHARE not in cell.options for cell in second)
    assert {c.options["seed_everything"] for c in second} == {100, 101, 102, 103, 104}
    assert not {c.options["seed_everything"] for c in second} & {c.options["seed_everything"] for c in first}
    tuning = one.tuning(one.methods[0], tried["bn"])
    assert (tuning.rate, len(tuning.trials), tuning.metric) == (0.003, 7, "top1_error")


def test_an_end_is_reached_where_every_rate_is_better_than_the_one_before() -> None:
    stages = run(protocol(lambda norm, rate: 50 / (1 + rate), most_rates=5))
    assert sum(len(cells) for number, cells in stages if number == 1) == 2 * 5


def test_a_rate_that_changes_nothing_is_refused() -> None:
    """An option of every cell that sets the rate would make one run of all trials."""
    grid = TunedGrid(**GRID)  # type: ignore[arg-type]

    def cell_of(options: dict[str, Any]) -> Cell:
        return cast(Cell, FakeCell(options | {LR: 0.5}, 50.0))

    with pytest.raises(GridError, match="at different rates are one run"):
        Protocol(grid, methods(grid), cell_of).stage()


def test_what_is_there_is_not_run_again() -> None:
    one = protocol(lambda norm, rate: 50 + abs(rate - 0.03))
    stage = one.stage()
    cast(FakeCell, stage.cells[0][1]).ran = True
    assert one.stage().number == 1
    assert sum(not cell.finished() for _, cell in one.stage().cells) == 5


def test_settings_do_not_wait_for_one_another() -> None:
    """A network whose trials are done gets its results while another's grid still grows; both are counted."""
    changes = {"axes": {"norm": ["bn", "gn+ws"], "model.network": ["quick", "slow"]}}
    grid = TunedGrid.model_validate(GRID | changes)
    cells: list[FakeCell] = []

    def cell_of(options: dict[str, Any]) -> Cell:
        quick = options["model.network"] == "quick"
        cells.append(FakeCell(options, 50 + (abs(options[LR] - 0.03) if quick else -options[LR])))
        return cast(Cell, cells[-1])

    one = Protocol(grid, methods(grid), cell_of)
    assert len(one.stage().cells) == 2 * 2 * 3
    for cell in cells:
        cell.ran = True
    stage = one.stage()
    assert stage.number == 1
    assert {dict(m.options)["model.network"] for m, _ in stage.second} == {"quick"}
    assert len(stage.second) == 2 * 5
    assert {c.options[LR] for m, c in stage.first if not c.finished()} == {0.3}
    assert {dict(m.options)["model.network"] for m, _ in stage.first} == {"slow"}
    assert len(one.cells(stage)) == 2 * 3 + 2 * 4 + 2 * 5
    stages = run(one)
    assert stages[-1][0] == 2
    assert len({c.id for _, fresh in stages for c in fresh if SHARE not in c.options}) == 2 * 2 * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [0.02, 0.06, 0.2]}, "no half decade"),
        ({"rates": [0.01, 0.1, 0.3]}, "without a gap"),
        ({"rates": [0.01]}, "at least 3"),
        ({"share": 0}, "greater than 0"),
        ({"seeds": [1000, 1]}, "of both stages"),
        ({"options": {"task": "imagenet", "lr": 0.1}}, "sets model.lr by itself"),
        ({"axes": {"norm": ["gn"], "seed": [0, 1]}}, "sets seed_everything by itself"),
        ({"axes": {"batch": [1, 2]}}, "needs the axis norm"),
        ({"axes": {"norm": ["gn+wz"]}}, "unknown weight normalization 'wz'"),
    ],
)
def test_grids_that_make_no_sense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"about": "x", "tuned": {"mini": GRID | changes}}))
    with pytest.raises(GridError, match=message):
        methods(load(str(path)).tuned["mini"])


def test_every_tuned_sweep_of_the_package_has_methods() -> None:
    """The paper's ten norms on every task; DGCNN's GN has 16 groups."""
    for name in ("tuned", "tuned-batch", "tuned-rivals", "tuned-small"):
        for grid in load(name).tuned.values():
            assert methods(grid)
    chosen = [dict(method.options) for method in methods(load("tuned").tuned["mini"])]
    by_task = {task: {o["norm"] for o in chosen if o["task"] == task} for task in TASKS}
    paper = {f"{act}{ws}" for act in ("bn", "gn", "ln", "in", "sn") for ws in ("", "+ws")}
    clouds = {norm.replace("gn", "gn16") for norm in paper}
    assert by_task == dict.fromkeys(TASKS, paper) | {"modelnet40": clouds}


def test_settings_are_tuned_apart() -> None:
    grid = TunedGrid.model_validate(GRID | {"options": {}, "axes": {"task": ["imagenet", "voc"], "norm": ["bn", "gn"]}})
    found = methods(grid)
    assert len({method.setting for method in found}) == 2
    assert isinstance(found[0], Method)


@pytest.mark.slow
@pytest.mark.parametrize("field", [SHARE, LR, "seed_everything", "lr", "seed"])
def test_rules_set_nothing_that_is_tuned(field: str) -> None:
    rule = {"when": {"norm": "bn"}, "set": {field: 0.5}}
    with pytest.raises(GridError, match=r"a tuned grid sets .* by itself"):
        methods(TunedGrid.model_validate(GRID | {"rules": [rule]}))


@pytest.mark.parametrize("word", ["--data.tuning", "--seed_everything=5", "--model.lr", "--data={tuning: null}"])
def test_options_of_fit_change_nothing_that_is_tuned(
    word: str, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials that would be scored on the reporting split are not run."""
    Path("grid.yaml").write_text(yaml.safe_dump({"about": "x", "tuned": {"mini": GRID}}))
    further = [word] if "=" in word else [word, "null"]
    assert main(["sweep", "grid.yaml", "--dry-run", "--", *further]) == 2
    assert f"{word.partition('=')[0]} may not come after --" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_from_the_command_line(tmp_path: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials and results by real runs; records say how, tables keep them apart, and nothing is run twice."""
    data = write_voc(tmp_path / "data")
    fields = {k: v for k, v in OPTIONS.items() if k != "recipe"} | {"data.root": str(data), "trainer.max_steps": 2}
    grid = {"options": fields, "axes": {"norm": ["gn"]}, "rates": [0.01, 0.03, 0.1], "most_rates": 3, "share": 0.4,
            "seeds": [100, 101]}  # fmt: skip
    Path("grid.yaml").write_text(yaml.safe_dump({"about": "x", "tuned": {"mini": grid}}))
    assert main(["sweep", "grid.yaml", "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["sweep", "grid.yaml", "--jobs", "2"]) == 0
    records = [read_record(path) for path in Path("runs/voc").glob("*/result.json")]
    trials, results = [r for r in records if r.tuning is None], [r for r in records if r.tuning is not None]
    assert (len(trials), sorted(r.seed for r in results)) == (3, [100, 101])
    for record in results:
        assert record.tuning is not None
        assert {trial.record for trial in record.tuning.trials} == {trial.id for trial in trials}
        assert record.data.splits["val"].checksum != trials[0].data.splits["val"].checksum
    names = {path.name.partition(".")[0] for path in Path("runs/leaderboards").glob("voc-mini*")}
    assert len([n for n in names if n.endswith("-tuned")]) == len([n for n in names if n.endswith("-trials")]) == 1
    capsys.readouterr()
    assert main(["sweep", "grid.yaml"]) == 0
    assert "started" not in capsys.readouterr().out
    assert main(["sweep", "status", "grid.yaml"]) == 0
    assert "5" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["own", "published"])
def test_a_finished_result_says_the_trials_that_came_after_it(where: str, tmp_path: Path) -> None:
    """The grid grew for another norm; the rate is as it was, and nothing is run again."""
    trials = [Trial(rate=rate, seed=1000, record=f"t{rate}", score=50.0, diverged=False) for rate in (0.01, 0.03, 0.1)]
    first = Tuning(metric="miou", share=0.2, trials=tuple(trials), rate=0.03)
    more = Trial(rate=0.003, seed=1000, record="t0.003", score=10.0, diverged=False)
    second = first.model_copy(update={"trials": (more, *trials)})
    record = make_record(tuning=first, schema_version=7)
    identity = id_of(record) or record.id
    resolved = Resolved(record.task, record.recipe, tmp_path / "runs", identity, None, None)
    record = record.model_copy(update={"id": identity})
    published = tmp_path / "records"
    cell = Cell({}, (), resolved, published=published)
    path = cell.folder / "result.json" if where == "own" else published / record.task / f"{record.id}.json"
    write_record(record, path)
    (path.with_name("metrics.jsonl") if where == "own" else path.with_suffix(".metrics.jsonl")).write_text("log\n")
    assert cell.renew_tuning(second)
    assert read_record(cell.folder / "result.json") == record.model_copy(update={"tuning": second})
    assert (cell.folder / "metrics.jsonl").read_text() == "log\n"
    assert not cell.renew_tuning(second)
    if where == "published":
        assert read_record(path) == record
