"""A loss that is NaN ends a run with a sentence; or, where that is asked for, it is the run's result."""

from pathlib import Path

import pytest

from tests import tiny
from tests.on_device import SMALL
from wsbench.__main__ import main
from wsbench.records import guessing, read_record
from wsbench.tasks import BenchmarkTask, task_class


def line(task: str, root: Path) -> list[str]:
    return ["fit", "--task", task, "--recipe", "mini", "--data.miniature", "false", "--data.root", str(root),
            "--norm", "gn", "--trainer.max_steps", "6", "--data.steps_per_epoch", "3", "--data.effective_batch", "2",
            "--data.micro_batch", "1", "--data.num_workers", "0", "--trainer.accelerator", "cpu", "--tensorboard",
            "false", *SMALL[task]]  # fmt: skip


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is NaN from the eighth micro-step on, that is from the fourth step on."""
    step, seen = BenchmarkTask.training_step, [0]

    def training_step(task: BenchmarkTask, batch: object, batch_idx: int) -> object:
        seen[0] += 1
        return step(task, batch, batch_idx) * (float("nan") if seen[0] >= 8 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(BenchmarkTask, "training_step", training_step)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_it_is_recorded_as_guessing(
    task: str, tiny_roots: dict[str, Path], diverging: None, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line(task, tiny_roots[task]), "--on_divergence", "record"]) == 0
    (path,) = Path("runs", task).glob("*/result.json")
    record = read_record(path)
    assert record.diverged == record.steps == 4
    assert set(record.metrics) <= set(task_class(task).metrics)
    data = tiny.data(task, tiny_roots[task])
    data.setup("fit")
    for name, metric in record.metrics.items():
        assert metric.value == pytest.approx(guessing(name, len(data.classes)), abs=1e-4)
        assert metric.n_eval == len(data.val_data)
    said = capsys.readouterr()
    assert "diverged, which is recorded" in said.err
    assert "Traceback" not in said.err


def test_it_stops_by_default(
    tiny_roots: dict[str, Path], diverging: None, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line("imagenet", tiny_roots["imagenet"])) == 2
    assert not [*Path("runs").glob("*/*/result.json")]
    assert "lower the learning rate" in capsys.readouterr().err


def test_guessing() -> None:
    assert guessing("top1_error", 10) == 90.0
    assert guessing("top5_error", 4) == 0.0
    assert guessing("top1_acc", 4) == 25.0
    assert guessing("mean_class_acc", 40) == 2.5
    assert guessing("miou", 21) == guessing("box_AP", 80) == 0.0
