"""What a user does with a device, for the emulated one (test_cuda.py) and for a real one (test_gpu.py)."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.test_recipes import interrupt_second_epoch, samples_of
from wsbench.__main__ import main
from wsbench.records import RunRecord, read_record

SMALL: dict[str, tuple[str, ...]] = {
    "imagenet": ("--data.crop", "32", "--data.resize", "32"),
    "something": ("--data.crop", "32", "--data.resize", "32"),
    "voc": ("--data.crop", "33", "--model.aspp_width", "32"),
    "coco": ("--model.width", "32", "--model.rois", "16"),
    "modelnet40": ("--data.points", "32", "--model.k", "4"),
}


def from_fit_to_prediction(
    task: str, norm: str, precision: str, root: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: Sequence[str],
) -> RunRecord:  # fmt: skip
    """Fit two steps; the same, interrupted and resumed; predict. In the current folder; the record of the first."""
    line = ["fit", "--task", task, "--recipe", "mini", "--data.miniature", "false", "--norm", norm,
            "--data.root", str(root), "--trainer.max_steps", "2", "--data.steps_per_epoch", "1",
            "--trainer.precision", precision, *options]  # fmt: skip
    assert main([*line, "--runs", "whole"]) == 0
    (folder,) = Path("whole", task).iterdir()
    record = read_record(folder / "result.json")
    with patch.context() as once:
        interrupt_second_epoch(once)
        assert main(line) == 130
    assert main([*line, "--ckpt_path", "last"]) == 0
    (cut,) = Path("runs", task).iterdir()
    assert read_record(cut / "result.json").metrics == record.metrics
    pictures = samples_of(task, root, Path("mine"))
    capsys.readouterr()
    given = ["--data.pictures", str(pictures), "--output", "out"]
    evaluating = [v for name, v in pairwise(options) if name == "--trainer.inference_mode"]
    given += ["--trainer.inference_mode", *evaluating] if evaluating else []
    assert main(["predict", "--ckpt_path", str(folder / "last.ckpt"), *given]) == 0
    assert len(Path("out/predictions.csv").read_text().splitlines()) == 3
    return record
