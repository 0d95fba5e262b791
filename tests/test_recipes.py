"""What users run: the recipes' own YAML through the command line, by epochs, on data in the official layouts.

Only sizes are overridden. None of these runs is of the miniature's recipe.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import tiny
from wsbench.__main__ import main
from wsbench.records import read_record
from wsbench.registry import TASKS
from wsbench.run.lines import read_metrics
from wsbench.tasks import BenchmarkTask, task_class

pytestmark = pytest.mark.usefixtures("in_a_folder")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of several threads differ in their last bits from run to run, and first steps at rate 0.1 are chaotic."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


EPOCHS = 2
#: sizes that let a recipe run in seconds; everything else is the recipe's
SIZES = {
    "imagenet": "--data.crop 32 --data.resize 36 --data.effective_batch 6 --model.network resnet_mini",
    "something": "--data.crop 32 --data.resize 36 --data.micro_batch 1 --data.effective_batch 4 "
    "--model.network tsm_resnet_mini",
    "voc": "--data.train_set train --data.crop 65 --data.effective_batch 2 --data.steps_per_epoch null "
    "--model.network deeplabv3_resnet_mini --model.aspp_width 32",
    "modelnet40": "--data.points 64 --data.micro_batch 5 --data.effective_batch 10 --model.k 4 --model.width 0.5",
    "coco": "--data.micro_batch 1 --data.effective_batch 2 --data.steps_per_epoch null --model.min_size 96 "
    "--model.max_size 128 --model.network mask_rcnn_resnet_mini --model.width 32 --model.head_convs 1 "
    "--model.fc_width 32 --model.anchor_size 8 --model.proposals 30 --model.rois 16 --model.warmup_steps 2",
}
STEPS = {"imagenet": 3, "something": 3, "voc": 2, "modelnet40": 2, "coco": 2}


def line(task: str, recipe: str, root: Path, *further: str) -> list[str]:
    """``fit`` for two epochs."""
    sizes = SIZES[task].split()
    if recipe == "small":  # its network is small already, and it takes what there is
        sizes = [s for pair in zip(sizes[::2], sizes[1::2], strict=True) for s in pair if pair[0] != "--model.network"]
        sizes += ["--data.min_steps_per_epoch", "1"]
    common = ["--trainer.max_steps", "-1", "--trainer.max_epochs", str(EPOCHS), "--trainer.accelerator", "cpu"]
    return ["fit", "--task", task, "--recipe", recipe, "--data.root", str(root), "--data.num_workers", "1",
            *common, *sizes, *further]  # fmt: skip


def interrupt_second_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    step = BenchmarkTask.training_step

    def stop(task: BenchmarkTask, batch: Any, batch_idx: int) -> Tensor:
        if task.current_epoch == 1:
            raise KeyboardInterrupt
        return step(task, batch, batch_idx)

    monkeypatch.setattr(BenchmarkTask, "training_step", stop)


def samples_of(task: str, root: Path, folder: Path) -> Path:
    """Two of the task's own files, to predict."""
    folder.mkdir()
    if task == "something":
        for clip in sorted((root / "20bn-something-something-v1").iterdir())[:2]:
            (folder / clip.name).symlink_to(clip)
    elif task == "modelnet40":
        for mesh in sorted(root.rglob("*.off"))[:2]:
            (folder / mesh.name).symlink_to(mesh)
    else:
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 256, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "small"])
@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_recipe_from_data_to_export(
    task: str, recipe: str, tiny_roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = tiny_roots[task]
    assert main(line(task, recipe, root, "--runs", "whole")) == 0
    out = capsys.readouterr().out
    (folder,) = Path("whole", task).iterdir()
    whole = read_record(folder / "result.json")
    assert (whole.recipe, whole.steps, whole.data.name) == (recipe, EPOCHS * STEPS[task], "custom")
    assert "paper Table" not in out, "the paper's number is not that of other data"
    assert all(metric.step == whole.steps for metric in whole.metrics.values())
    monitor = f"val/{DATA_TASKS[task].monitor}"
    assert len(read_metrics(folder / "metrics.jsonl")[monitor]) == EPOCHS
    classes = torch.load(folder / "last.ckpt", weights_only=True)["classes"]
    assert len(classes) == (11 if task == "voc" else 6 if task == "something" else 10)
    assert whole.per_class
    assert all(set(values) <= set(classes) for values in whole.per_class.values())

    with monkeypatch.context() as patch:
        interrupt_second_epoch(patch)
        assert main(line(task, recipe, root)) == 130
    (cut,) = Path("runs", task).iterdir()
    assert not (cut / "result.json").exists()
    assert main(line(task, recipe, root, "--ckpt_path", "last")) == 0
    resumed = read_record(cut / "result.json")
    assert (resumed.id, resumed.metrics) == (whole.id, whole.metrics), "resumed to the same bits"

    checkpoint = str(folder / "last.ckpt")
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", checkpoint]) == 0
    value = whole.metrics[DATA_TASKS[task].monitor].value
    assert f"{DATA_TASKS[task].monitor} {value:.2f}" in capsys.readouterr().out
    pictures = samples_of(task, root, Path("mine"))
    assert main(["predict", "--ckpt_path", checkpoint, "--data.pictures", str(pictures), "--output", "out"]) == 0
    rows = Path("out/predictions.csv").read_text().splitlines()
    assert len(rows) == 3
    for path in Path("out").glob("*.json"):
        assert "NaN" not in json.dumps(json.loads(path.read_text()))
    if task != "coco":  # tests/test_export.py has detectors
        assert main(["export", "--ckpt_path", checkpoint, "--format", "torchscript"]) == 0
        files = {"wsbench.json": ""}
        torch.jit.load(folder / "last.pt", _extra_files=files)
        assert json.loads(files["wsbench.json"])["classes"] == classes


DATA_TASKS = {task: task_class(task) for task in TASKS}


def test_every_task_has_its_recipes() -> None:
    for task in TASKS:
        for recipe in ("paper", "small"):
            text = (Path(__file__).parents[1] / "conf" / task / f"{recipe}.yaml").read_text()
            assert "num_classes" not in text, "classes follow from the data"
            assert "miniature" not in text
