"""``recommend`` as a user runs it, on a folder of images without a val; each run in this process."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.datamodules.prepare.test_split import photos
from wsbench.__main__ import main
from wsbench.cli.resolver import Resolver
from wsbench.datamodules.prepare import preparation
from wsbench.grid import attempt
from wsbench.grid.attempt import Outcome
from wsbench.grid.cells import Cell, note_end, note_start
from wsbench.grid.launcher import Event, Say
from wsbench.recommend import measure, recommend_command
from wsbench.records import read_record

TINY = (
    "--", "--data.crop", "16", "--data.resize", "16", "--data.min_steps_per_epoch", "2", "--data.num_workers", "0",
    "--data.effective_batch", "4", "--trainer.accelerator", "cpu",
)  # fmt: skip


class Here:
    """Runs cells one after another in this process; ends after some if it is told to."""

    name = "local"
    jobs = 1

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.left: int | None = None

    def options(self) -> list[str]:
        return []

    def run(self, cells: Sequence[Cell], say: Say) -> None:
        for cell in cells:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            note_start(cell.folder, self.name, 1)
            status = main(cell.command())
            note_end(cell.folder, status, "" if status == 0 else "it failed")
            self.ran.append(cell.id)
            say(Event(cell, "ended", Outcome(status, "")))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    launcher = Here()
    monkeypatch.setattr(recommend_command, "launcher_of", lambda args: launcher)
    return launcher


def line(root: Path, *options: str) -> list[str]:
    return [
        "recommend", "--task", "imagenet", "--data.root", str(root), "--networks", "resnet_mini", *options, *TINY
    ]  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return photos(tmp_path / "my pictures", {"cat": 12, "dog": 12})


@pytest.mark.slow
def test_an_answer(pictures: Path, here: Here, in_a_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    asked = line(pictures, "--budget", "1h", "--norms", "gn,gn+ws")
    assert main([*asked[: asked.index("--")], "--dry-run", *asked[asked.index("--") :]]) == 0
    said = capsys.readouterr().out
    assert "a fifth of its samples was held out" in said
    assert "20 train, 4 val, 2 classes (cat, dog)" in said
    assert "4 per device x 1 micro-steps = 4" in said
    assert len(here.ran) == 2  # what it measured
    # shortened here: a test has no hour
    out = Path("recommend/imagenet-my pictures")
    written = json.loads((out / recommend_command.PLAN).read_text())
    written["plan"] |= {"epochs": 1, "rates": [0.01, 0.03, 0.1], "most_rates": 3, "tuning_seeds": 1, "seeds": 2}
    (out / recommend_command.PLAN).write_text(json.dumps(written))
    # interrupted, and said again
    here.left = 3
    assert main(asked) == 130
    assert "the same command resumes" in capsys.readouterr().err
    here.left = None
    assert main(asked) == 0
    assert len(here.ran) == 2 + 6 + 4, "nothing was run twice"
    said = capsys.readouterr().out
    assert "continues with the plan" in said
    assert "in your own code:" in said or "nothing can be recommended" in said
    answer = json.loads((out / recommend_command.ANSWER).read_text())
    page = (out / recommend_command.PAGE).read_text()
    assert answer["title"] in page.replace("&#39;", "'")
    records = [read_record(path) for path in (out / "runs").rglob("result.json")]
    assert {r.id for r in records} >= set(answer["records"])
    assert len(answer["records"]) == 10
    final = [r for r in records if r.tuning is not None]
    assert {r.seed for r in final} == {100, 101}
    assert all(r.data.splits["val"].count == 4 for r in final)
    # again: there is nothing to do
    assert main(asked) == 0
    assert len(here.ran) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "soon"], "--budget: 'soon' is no duration"),
        (["--budget", "1h", "--norms", "gn"], "--norms gn: expected two or more"),
        (["--budget", "1h", "--norms", "gn,xn"], "--norms: "),
        (["--budget", "1h", "--micro-batch", "3"], "--micro-batch 3: expected auto, or a divisor of 4"),
        (["--budget", "1h", "--networks", "resnet5000"], "--networks resnet5000: it is none of wsbench's"),
        (["--budget", "1h", "--networks", "torchvision:vgg11"], "'bn' has nothing to apply to"),
        (["--budget", "1h", "--jobs", "0"], "--jobs 0: at least 1"),
    ],
)
def test_refused_before_anything_runs(
    options: list[str], message: str, pictures: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line(pictures, *options)) == 2
    assert message in capsys.readouterr().err


def test_options_that_it_sets(pictures: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    for further, message in (
        (["--model.lr", "0.1"], "--model.lr may not come after --"),
        (["--model", '{"lr": 0.5}'], "--model may not come after --"),
        (["--data={micro_batch: 1}"], "--data may not come after --"),
        (["--config", "mine.yaml"], "--config may not come after --"),
        (["--print_config"], "--print_config may not come after --"),
        (["--model.learning_rate", "0.1"], "there is no option --model.learning_rate"),
    ):
        assert main([*line(pictures, "--budget", "1h"), *further]) == 2
        assert message in capsys.readouterr().err
    assert main(line(pictures / "nothing", "--budget", "1h")) == 2
    assert "is no folder" in capsys.readouterr().err
    (pictures.parent / "empty").mkdir()
    assert main(line(pictures.parent / "empty", "--budget", "1h")) == 2
    said = capsys.readouterr().err
    assert "holds no data of imagenet" in said
    assert "it is empty" in said
    assert "--recipe" not in said, "which recommend does not take"


def test_a_wrong_option_leaves_no_split(
    pictures: Path, here: Here, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--micro-batch", "3"], ["--", "--data.cropp", "16"]):
        assert main(["recommend", "--task", "imagenet", "--data.root", str(pictures), "--budget", "1h", *wrong]) == 2
        assert ("--micro-batch 3" if wrong[0] == "--micro-batch" else "cropp") in capsys.readouterr().err
        assert not Path("recommend").exists() or not any(Path("recommend").rglob("split*"))
    assert here.ran == []


def test_an_answer_inside_the_data_would_be_data(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    assert main(line(Path(), "--budget", "1h")) == 2
    assert "lies in the data's folder" in capsys.readouterr().err
    assert sorted(p.name for p in pictures.iterdir()) == ["cat", "dog"]


def test_pretrained_is_not_a_file(pictures: Path, in_a_folder: None) -> None:
    """It is resolved without looking for weights on disk or on the network."""
    made = preparation("imagenet").split(pictures, Path("out"))
    resolved = Resolver()([
        "--task", "imagenet", "--recipe", "small", "--data.root", str(made), "--norm", "gn", "--model.network",
        "torchvision:resnet18", "--model.init_from", "pretrained", "--model.init_from_any_norm", "true",
    ])  # fmt: skip
    assert resolved.problem is None


@pytest.mark.slow
def test_what_does_not_fit_is_halved(
    pictures: Path, here: Here, in_a_folder: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that ends for want of memory makes fewer samples at a time, not an error."""
    ordinary = Here.run

    def run(self: Here, cells: Sequence[Cell], say: Say) -> None:
        for cell in cells:
            if cell.options["data.micro_batch"] > 2:
                note_start(cell.folder, self.name, 1)
                note_end(cell.folder, 2, "memory is used up (CUDA out of memory); lower --data.micro_batch")
                say(Event(cell, "ended", Outcome(2, "out of memory")))
            else:
                ordinary(self, [cell], say)

    monkeypatch.setattr(Here, "run", run)
    asked = line(pictures, "--budget", "1h", "--norms", "gn,gn+ws")
    assert main([*asked[: asked.index("--")], "--dry-run", *asked[asked.index("--") :]]) == 0
    said = capsys.readouterr().out
    assert "4 at a time do not fit into memory" in said
    assert "2 per device x 2 micro-steps = 4" in said


@pytest.mark.slow
def test_too_small_a_budget_is_said_before_it_is_spent(
    pictures: Path, here: Here, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line(pictures, "--budget", "5s", "--norms", "gn,gn+ws")) == 2
    assert "the least that says something takes about" in capsys.readouterr().err
    assert len(here.ran) == 2


def test_wsbenchs_own_words_count_as_memory() -> None:
    assert attempt._OUT_OF_MEMORY.search("wsbench: error: memory is used up; lower --data.micro_batch")
    assert measure.STEPS > 1
