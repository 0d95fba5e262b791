"""``sweep`` from the outside, on this machine: real cells, real kills."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import write_voc
from tests.grid.small import folders, write_grid
from wsbench.__main__ import main
from wsbench.cli.resolver import Resolver
from wsbench.grid import plan as plans
from wsbench.grid.attempt import reason
from wsbench.grid.cells import CLAIM, attempts, note_end, note_start, status
from wsbench.records import read_record, write_record
from wsbench.run.lock import claimed, hold, release

LONG = {"trainer.max_steps": 300, "data.steps_per_epoch": 5}


@pytest.fixture
def data(tmp_path: Path, in_a_folder: None) -> Path:
    return write_voc(tmp_path / "data")


def start(*line: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "wsbench", "sweep", *line],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a job in the background of a shell ignores it, and so would this
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def evaluated() -> bool:
    """Whether a cell has been evaluated twice: then there is a checkpoint."""
    return any(log.read_text().count("val/miou") >= 2 for log in Path("runs/voc").glob("*/metrics.jsonl"))


def test_dry_run_prints_every_command_and_runs_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(Path(), data, {"norm": ["bn", "gn+ws"], "seed": [0, 1]})
    assert main(["sweep", grid, "--dry-run", "--", "--model.lr", "0.5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    for line in out:
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "wsbench", "fit"]
        assert words[-2:] == ["--model.lr", "0.5"]
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", [*(f"table{n}" for n in range(1, 9)), "batch"])
def test_the_packages_sweeps_resolve(name: str, in_a_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Every field and value of the paper's grids exists; they lack nothing but data."""
    assert main(["sweep", name, "--recipe", "paper", "--dry-run"]) == 0
    assert "cannot run here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--axis", "data.micro_batsh=1"), "data.micro_batsh"),
        (("--axis", "batch=3"), "effective_batch"),
        (("--axis", "lr=fast"), "lr"),
        (("--axis", "data.num_workers=0,1"), "two cells are one run"),
        (("--only", "norm=sn"), "there are bn"),
        (("--recipe", "paper"), "has no grid for --recipe paper"),
        (("--devices", "0"), "at least 1"),
        (("--nodes", "2"), "is for --launcher slurm"),
        (("--records", "nowhere"), "is not a folder"),
        (("more",), "one sweep at a time"),
    ],
)
def test_refused_before_anything_runs(
    data: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    grid = write_grid(Path(), data, {"norm": ["bn"]})
    assert main(["sweep", grid, *options]) == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()


def test_no_data_is_an_error_before_anything_runs(in_a_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "table7", "--recipe", "paper"]) == 2
    assert "nothing is run" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_one_failing_cell_stops_no_other_and_nothing_runs_twice(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(Path(), data, {"norm": ["gn16+ws", "bn"], "seed": [0]}, **{"model.aspp_width": 24})
    assert main(["sweep", grid, "--retries", "1"]) == 1  # 24 channels have no 16 groups
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "1 done, 1 failed" in out
    failed, done = sorted(folders(), key=lambda f: (f / "result.json").exists())
    assert [e["event"] for e in attempts(failed)] == ["start", "end"] * 2
    assert "16 groups" in attempts(failed)[-1]["reason"]
    assert "16 groups" in (failed / "cell.log").read_text()
    record = (done / "result.json").read_bytes()

    assert main(["sweep", "status", grid]) == 0
    out = capsys.readouterr().out
    assert "done" in out
    assert "16 groups" in out
    assert main(["sweep", grid, "--only", "norm=bn"]) == 0
    assert "0 to run" in capsys.readouterr().out
    assert (done / "result.json").read_bytes() == record
    assert len(attempts(done)) == 2


@pytest.mark.thorough
@pytest.mark.slow
def test_kill_9_of_a_cell_then_of_the_sweep(data: Path) -> None:
    """What was killed is resumed, the others go on; and a dead sweep holds nothing for ever."""
    grid = write_grid(Path(), data, {"seed": [0]}, **LONG)
    sweep = start(grid, "--retries", "1")
    until(evaluated)
    (folder,) = folders()
    os.killpg(attempts(folder)[0]["pid"], signal.SIGKILL)
    until(lambda: len(attempts(folder)) == 3)
    assert "SIGKILL" in attempts(folder)[1]["reason"]
    cell = attempts(folder)[2]["pid"]
    sweep.kill()
    sweep.communicate()
    os.killpg(cell, signal.SIGKILL)
    out, _ = (again := start(grid)).communicate(timeout=200)
    assert again.returncode == 0, out
    assert read_record(folder / "result.json").steps == 300
    assert "--ckpt_path last" in (folder / "cell.log").read_text()
    assert [e["event"] for e in attempts(folder)] == ["start", "end", "start", "start", "end"]


def test_locks_of_killed_processes_are_removed(run: Path, root: Path) -> None:
    grid = write_grid(Path(), root, {"seed": [0]})
    for name in (CLAIM, "run.lock"):
        (run / name).write_text("{}")
    assert main(["sweep", grid]) == 0
    assert not [path for path in run.iterdir() if path.suffix == ".lock"]


@pytest.mark.slow
def test_two_sweeps_over_one_folder_never_run_a_cell_twice(data: Path) -> None:
    grid = write_grid(Path(), data, {"seed": [0, 1]}, **{"trainer.max_steps": 20})
    both = [start(grid, "--jobs", "1"), start(grid, "--jobs", "1")]
    for sweep in both:
        out, _ = sweep.communicate(timeout=200)
        assert sweep.returncode == 0, out
    for folder in folders():
        assert [e["event"] for e in attempts(folder)] == ["start", "end"]
        assert read_record(folder / "result.json").steps == 20


@pytest.mark.slow
def test_ctrl_c_leaves_resumable_cells(data: Path) -> None:
    grid = write_grid(Path(), data, {"seed": [0]}, **LONG)
    sweep = start(grid)
    until(evaluated)
    sweep.send_signal(signal.SIGINT)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, out
    assert "resumes from the last checkpoints" in out
    (folder,) = folders()
    assert not (folder / "result.json").exists()
    assert (folder / "last.ckpt").exists()
    (cell,) = plans.make(plans.SweepRequest(grid), Resolver()).cells
    assert status(cell).state == "stopped"
    assert "FAILED" not in out


@pytest.mark.slow
def test_a_cell_that_a_scheduler_stops_is_stopped_and_the_sweep_is_not_done(data: Path) -> None:
    grid = write_grid(Path(), data, {"seed": [0]}, **LONG)
    sweep = start(grid)
    until(evaluated)
    (folder,) = folders()
    os.kill(attempts(folder)[0]["pid"], signal.SIGUSR1)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 1, out
    assert "stopped  voc: interrupted by SIGUSR1" in out
    (cell,) = plans.make(plans.SweepRequest(grid), Resolver()).cells
    assert status(cell).state == "stopped"
    assert "resumes from last.ckpt, step" in status(cell).note


def test_states(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Done, running, stopped, failed, missing, stale, each by what lies in the folder."""
    grid = write_grid(Path(), root, {"seed": [0, 1, 2, 3, 4]})
    assert main(["sweep", grid, "--dry-run"]) == 0
    capsys.readouterr()

    def states() -> dict[str, str]:
        assert main(["sweep", "status", grid]) == 0
        rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        return {row[1].strip(): row[2].strip() for row in rows if row[2].strip()}

    assert states() == {"seed 0": "done"} | {f"seed {seed}": "missing" for seed in (1, 2, 3, 4)}
    plan = plans.make(plans.SweepRequest(grid), Resolver())
    cells = {cell.options["seed_everything"]: cell for cell in plan.cells}
    assert cells[0].folder == run
    # by another version
    record = read_record(run / "result.json")
    old = record.provenance.model_copy(update={"wsbench": "0.0.1"})
    write_record(record.model_copy(update={"provenance": old}), run / "result.json")
    cells[1].folder.mkdir()
    (cells[1].folder / "attempts.jsonl").write_text(
        '{"event": "start", "time": "2026-01-01T00:00:00+00:00", "launcher": "local", "host": "h", "pid": 7}\n'
    )
    hold(cells[2].folder)
    cells[3].folder.mkdir()
    (cells[3].folder / "result.json").write_text("{}")
    cells[4].folder.mkdir()
    note_start(cells[4].folder, "local", 7)
    note_end(cells[4].folder, 128 + signal.SIGTERM, reason(128 + signal.SIGTERM, cells[4].folder / "cell.log"))
    try:
        assert states() == {
            "seed 0": "stale", "seed 1": "failed", "seed 2": "running", "seed 3": "failed", "seed 4": "stopped",
        }  # fmt: skip
    finally:
        release()
    assert main(["sweep", grid, "--rerun-stale", "--dry-run", "--only", "seed=0"]) == 0
    assert "--overwrite true" in capsys.readouterr().out


def test_a_changed_cell_is_another_and_the_old_one_is_stale(
    run: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(Path(), root, {"seed": [0]})
    assert main(["sweep", grid]) == 0
    plan = json.loads(Path("runs/sweeps/grid-mini/plan.json").read_text())
    assert [cell["id"] for cell in plan["cells"]] == [run.name]
    capsys.readouterr()
    assert main(["sweep", "status", grid, "--", "--model.lr", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "stale" in out
    assert run.name in out


def test_published_records_count(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(Path(), root, {"seed": [0]})
    target = Path("published/voc") / f"{run.name}.json"
    target.parent.mkdir(parents=True)
    (run / "result.json").rename(target)
    assert main(["sweep", grid, "--runs", "elsewhere", "--records", "published"]) == 0
    assert "1 done; 0 to run" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "cells"), [("mini", 150), ("batch", 72)])
def test_the_published_sweeps_are_what_the_package_would_run(
    in_a_folder: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    cells: int,
) -> None:
    """The records of the miniatures are the cells of the sweeps, under the ids that they have today."""
    published = Path(__file__).parents[2] / "leaderboards" / "records"
    records = [read_record(path) for path in sorted(published.glob("*/*[0-9a-f].json"))]
    data = {r.task: r.data for r in records if r.recipe == "mini" and r.tuning is None and not r.overrides}
    monkeypatch.setattr("wsbench.cli.resolver.Resolver._identity", lambda self, task, options: data[task])
    assert main(["sweep", name, "--recipe", "mini", "--records", str(published)]) == 0
    assert f"{cells} done; 0 to run" in capsys.readouterr().out


def test_a_cell_that_is_being_started_is_running(data: Path) -> None:
    """Between its start and the moment when the run takes its folder, some seconds later."""
    cell = plans.make(plans.SweepRequest(write_grid(Path(), data, {"seed": [0]})), Resolver()).cells[0]
    note_start(cell.folder, "local", 7)
    with claimed(cell.folder / CLAIM) as mine:
        assert mine
        with claimed(cell.folder / CLAIM) as other:
            assert not other
        assert status(cell).state == "running"
    assert status(cell).state == "failed"
    assert "process 7" in status(cell).note
