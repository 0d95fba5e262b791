"""Curves of every logger survive a kill and a resume; a missing package is named."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.running import fit, only_run
from wsbench.__main__ import main
from wsbench.records import read_record
from wsbench.run.lines import read_metrics
from wsbench.run.recorder import Recorder
from wsbench.tasks.errors import NotFiniteError

SHORT = (
    "--norm", "bn", "--trainer.max_steps", "2", "--data.steps_per_epoch", "1", "--data.num_workers", "0",
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.effective_batch", "2",
)  # fmt: skip


def scalars(folder: Path, name: str) -> dict[int, float]:
    """``{step: value}`` as TensorBoard shows it; each step once, or this fails."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    events = accumulator.Scalars(name)
    assert len({e.step for e in events}) == len(events), [e.step for e in events]
    return {event.step: event.value for event in events}


def interrupted(root: Path, *options: str) -> Path:
    """A run that has logged six steps and whose checkpoint is of the fourth: as a kill leaves it."""

    def die(self: Recorder, trainer: Trainer, pl_module: object) -> None:
        if trainer.global_step == 6:
            raise NotFiniteError("a kill")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "on_train_epoch_end", die)
        assert fit(root, "--trainer.max_steps", "6", *options) == 2
    folder = only_run()
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    return folder


@pytest.mark.slow
def test_curves_survive_a_resume(root: Path, in_a_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = ("--wandb", "true", "--mlflow", "true")
    folder = interrupted(root, *options)
    before = json.loads((folder / "tracking.json").read_text())
    assert fit(root, "--trainer.max_steps", "6", *options, "--ckpt_path", "last") == 0

    values = read_metrics(folder / "metrics.jsonl")["val/miou"]
    assert list(values) == [2, 4, 6]
    # TensorBoard counts as Lightning does: a step's evaluation stands one before it
    assert list(scalars(folder, "val/miou").values()) == pytest.approx(list(values.values()), rel=1e-5)
    assert json.loads((folder / "tracking.json").read_text()) == before

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{Path.cwd()}/runs/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments() if e.name == "wsbench"])
    assert [run.info.run_id for run in runs] == [before["mlflow"]]
    history = {m.step: m.value for m in client.get_metric_history(before["mlflow"], "val/miou")}
    assert list(history.values()) == pytest.approx(list(values.values()), rel=1e-5)

    sessions = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2
    assert all(session.name.endswith(before["wandb"]) for session in sessions)

    # what the run is can be asked for, and told once; predictions are images of what was evaluated
    (found,) = client.search_runs([runs[0].info.experiment_id], "params.norm = 'gn+ws' and params.weight = 'ws'")
    assert (found.info.run_id, found.data.params["task"]) == (before["mlflow"], "voc")
    assert not client.search_runs([runs[0].info.experiment_id], "params.norm = 'gn'")
    drawn = [Image.open(path) for path in Path("runs/mlflow").rglob("*.png")]
    assert len(drawn) >= 3 * 4
    assert all(image.size in {image.size for image in root_images(root)} for image in drawn)
    assert len(list((folder / "wandb").rglob("*.png"))) >= 3 * 4
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0})
    accumulator.Reload()
    assert len(accumulator.Tags()["images"]) == 4
    assert "_hparams_/session_start_info" in accumulator.summary_metadata
    assert 0 not in [event.step for event in accumulator.Scalars("val/miou")]
    assert not Path("mlruns").exists(), "MLflow's own default lies beside the user's files"


def root_images(root: Path) -> list[Image.Image]:
    return [Image.open(path) for path in root.rglob("JPEGImages/*.jpg")]


@pytest.mark.parametrize("task", ["imagenet", "something", "coco", "modelnet40"])
def test_predictions_are_drawn(task: str, tiny_roots: dict[str, Path], in_a_folder: None) -> None:
    """After each evaluation, of the same samples; point clouds are no images.

    The run is the same run without them: BN's statistics would show a pass in training mode.
    """
    results = []
    for count in (3, 1, 0):
        data = ("--task", task, "--recipe", "small", "--data.root", str(tiny_roots[task]))
        assert main(["fit", *data, *SHORT, "--log_images", str(count), "--overwrite", "true"]) == 0
        (folder,) = Path("runs", task).iterdir()
        record = read_record(folder / "result.json")
        evaluated = record.data.splits["val"].count
        accumulator = EventAccumulator(str(folder), size_guidance={"images": 0})
        accumulator.Reload()
        tags = accumulator.Tags()["images"]
        assert len(tags) == (0 if task == "modelnet40" else min(count, evaluated)), tags
        for tag in tags:
            assert len(accumulator.Images(tag)) == 2
            (width, height) = Image.open(io.BytesIO(accumulator.Images(tag)[-1].encoded_image_string)).size
            assert width >= 24
            assert height >= 24
        results.append({n: m.value for n, m in record.metrics.items()})
    assert results[0] == results[1] == results[2]


def test_any_file_name_can_be_logged(in_a_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's keys have letters, digits and ``_-. /`` only."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "odd" / split / name).mkdir(parents=True)
            for i, odd in enumerate(("q'2.png", "grüße #1 (a).png")):
                Image.new("RGB", (40 + i, 30), (90 * i, 10, 10)).save(tmp_path / "odd" / split / name / odd)
    data = ("--task", "imagenet", "--recipe", "small", "--data.root", str(tmp_path / "odd"), "--data.crop", "32")
    assert main(["fit", *data, *SHORT, "--mlflow", "true", "--data.resize", "32"]) == 0
    assert len(list(Path("runs/mlflow").rglob("*.png"))) >= 4 * 2


def test_tensorboard_is_on_and_can_be_off(root: Path, in_a_folder: None) -> None:
    assert fit(root) == 0
    folder = only_run()
    assert len(scalars(folder, "val/miou")) == 2
    assert fit(root, "--overwrite", "true", "--tensorboard", "false") == 0
    assert only_run() == folder  # where a run logs to is not what it is
    assert not list(folder.glob("events.*"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(
    root: Path, in_a_folder: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert fit(root, f"--{name}", "true") == 2
    assert f"pip install 'wsbench[{name}]'" in capsys.readouterr().err
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.ckpt"))
