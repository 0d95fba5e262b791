"""A leaderboard that is wrong is found out, whatever is wrong."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_records import make_record
from wsbench.__main__ import main
from wsbench.leaderboard.check import check, problems_of
from wsbench.leaderboard.derive import update
from wsbench.records import BatchNumbers, MetricValue, RunRecord, Trial, Tuning, read_record, write_record
from wsbench.run.identity import id_of


def clean(**changes: object) -> RunRecord:
    record = make_record(**changes)
    provenance = record.provenance.model_copy(update={"commit": "c" * 40, "dirty": False})
    return record.model_copy(update={"provenance": provenance})


def value(number: float) -> dict[str, MetricValue]:
    return {"miou": MetricValue(value=number, n_eval=3, step=4)}


def write_run(record: RunRecord, folder: Path) -> Path:
    write_record(record, folder / "result.json")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 4, "val/miou": record.metrics["miou"].value}) + "\n")
    return folder


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    """Three seeds, published."""
    folder = tmp_path / "leaderboards"
    for seed, number in enumerate((40.0, 42.0, 44.0)):
        run = write_run(clean(id=f"{seed:012d}", seed=seed, metrics=value(number)), tmp_path / "runs" / str(seed))
        assert main(["leaderboard", "submit", str(run), "--leaderboards", str(folder)]) == 0
    return folder


def test_submitted_is_right(boards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(boards) == []
    assert main(["leaderboard", "check", "--leaderboards", str(boards)]) == 0
    assert "3 records" in capsys.readouterr().out
    assert (boards / "records" / "voc" / "000000000001.metrics.jsonl").is_file()


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_table_edited_by_hand(boards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = boards / "voc-mini.wide.csv"
    table.write_text(table.read_text().replace("42.0", "62.0"))
    assert main(["leaderboard", "check", "--leaderboards", str(boards)]) == 1
    assert "voc-mini.wide.csv' is not what the records say" in capsys.readouterr().out
    (boards / "mine.csv").write_text("x\n")
    assert any("mine.csv' has no record" in p for p in check(boards))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["metrics"]["miou"].update(value=140.0), "is no percentage"),
        (lambda r: r["metrics"]["miou"].update(value=41.0), "metrics.jsonl at step 4"),
        (lambda r: r["metrics"]["miou"].update(n_eval=2), "is over 2 of 3 samples"),
        (lambda r: r["batch"].update(effective_batch=9), "is not the product"),
        (lambda r: r["batch"].update(norm_batch=4), "norm_batch 4 is neither"),
        (lambda r: r["provenance"].update(dirty=True), "clean commit"),
        (lambda r: r["cost"].update(samples_per_second=0.0), "must be above 0"),
        (lambda r: r.update(steps=2), "is of step 4, the run has 2"),
        (lambda r: r.update(seed=1), "are the same run"),
        (lambda r: r.update(id="9" * 12), "a file is called by its record"),
    ],
)
def test_a_record_that_cannot_be_right(boards: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    edit(boards / "records" / "voc" / f"{0:012d}.json", change)
    update([boards / "records"], boards)
    assert any(words in problem for problem in check(boards)), check(boards)


def test_errors_in_the_wrong_order() -> None:
    numbers = {k: MetricValue(value=v, n_eval=3, step=4) for k, v in (("top1_error", 20.0), ("top5_error", 30.0))}
    assert any("is above top1_error" in p for p in problems_of(clean(task="imagenet", metrics=numbers)))
    assert not problems_of(clean())


@pytest.mark.parametrize(
    ("norm", "norm_batch", "fine"),
    [("gbn4+ws", 4, True), ("gbn4+ws", 8, True), ("gbn", 8, True), ("gbn4", 3, False), ("gbn16", 8, True),
     ("gn+ws", 4, False)],
)  # fmt: skip
def test_ghost_batches_are_parts_of_a_micro_batch(norm: str, norm_batch: int, fine: bool) -> None:
    numbers = BatchNumbers(micro_batch=8, accumulate=1, devices=1, effective_batch=8, norm_batch=norm_batch)
    found = problems_of(clean(norm=norm, batch=numbers))
    assert any("norm_batch" in problem for problem in found) != fine


def test_submit_refuses_and_writes_nothing(boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in boards.rglob("*") if p.is_file()}

    def refused(run: Path, *options: str) -> str:
        assert main(["leaderboard", "submit", str(run), "--leaderboards", str(boards), *options]) == 2
        assert {p: p.read_bytes() for p in boards.rglob("*") if p.is_file()} == before
        return capsys.readouterr().err

    assert "is no finished run" in refused(tmp_path / "nowhere")
    assert "clean commit" in refused(write_run(make_record(id="5" * 12, seed=5), tmp_path / "a"))
    assert "with the same results" in refused(tmp_path / "runs" / "0")
    assert "are the same run" in refused(write_run(clean(id="6" * 12, seed=0), tmp_path / "b"))
    renewed = write_run(clean(id=f"{0:012d}", seed=0, metrics=value(41.0)), tmp_path / "c")
    assert "say why it is renewed" in refused(renewed)
    (renewed / "metrics.jsonl").unlink()
    assert "is missing" in refused(renewed, "--note", "x")


def test_several_at_once_are_all_or_none(boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in boards.rglob("*") if p.is_file()}
    good = write_run(clean(id="7" * 12, seed=7), tmp_path / "good")
    bad = write_run(clean(id="8" * 12, seed=7), tmp_path / "bad")
    line = ["leaderboard", "submit", "--leaderboards", str(boards)]
    assert main([*line, str(good), str(bad)]) == 2
    assert "are the same run" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in boards.rglob("*") if p.is_file()} == before
    assert main([*line, str(good), str(tmp_path / "runs" / "0")]) == 0
    assert "1 of 2 runs published" in capsys.readouterr().out
    assert check(boards) == []


def test_a_tuned_run_is_published_with_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone it is refused, and nothing is written."""
    tuning = Tuning(metric="miou", share=0.2, rate=0.1,
                    trials=(Trial(rate=0.1, seed=1000, record="9" * 12, score=42.0, diverged=False),))  # fmt: skip
    made = clean(seed=100, schema_version=7, tuning=tuning, overrides={"model.lr": 0.1})
    run = write_run(made.model_copy(update={"id": id_of(made)}), tmp_path / "run")
    assert main(["leaderboard", "submit", str(run), "--leaderboards", str(tmp_path / "boards")]) == 2
    assert "is not published" in capsys.readouterr().err
    assert not (tmp_path / "boards").exists()


def git(folder: Path, *line: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *line], cwd=folder, check=True, capture_output=True
    )


def test_since_a_revision(boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git(boards, "init", "-q")
    git(boards, "add", "-A")
    git(boards, "commit", "-qm", "first")
    assert check(boards, "HEAD") == []

    target = boards / "records" / "voc" / f"{2:012d}.json"
    kept = target.read_bytes()
    target.unlink()
    update([boards / "records"], boards)
    assert any("is lost" in p and " 2 miou" in p for p in check(boards, "HEAD"))
    target.write_bytes(kept)

    moved = write_run(clean(id=f"{2:012d}", seed=2, metrics=value(90.0)), tmp_path / "moved")
    write_record(read_record(moved / "result.json"), target)  # around `submit`
    shutil.copy(moved / "metrics.jsonl", target.with_name(f"{2:012d}.metrics.jsonl"))
    update([boards / "records"], boards)
    assert any("the mean moved from 42.0 to 57.3333, out of its interval" in p for p in check(boards, "HEAD"))

    note = "the loss had a defect"
    assert main(["leaderboard", "submit", str(moved), "--leaderboards", str(boards), "--note", note]) == 0
    assert check(boards, "HEAD") == []
    assert read_record(target).note == note
    assert main(["leaderboard", "check", "--leaderboards", str(boards), "--base", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_what_is_committed_is_right() -> None:
    assert check(Path(__file__).parents[2] / "leaderboards") == []


def test_an_id_is_the_hash_of_what_the_record_holds() -> None:
    """A record whose labels, overrides or recipe were edited is not that of its run any more."""
    record = make_record(schema_version=4, recipe_digest="d" * 64)
    right = record.model_copy(update={"id": id_of(record)})
    assert not [problem for problem in problems_of(right) if "says that it is run" in problem]
    edited = right.model_copy(update={"overrides": {"model.lr": 1.0}})
    (problem,) = [p for p in problems_of(edited) if "says that it is run" in p]
    assert problem == f"it says that it is run {right.id}, and what it holds is run {id_of(edited)}"
