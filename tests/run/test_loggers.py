"""Curves of every logger survive a kill and a resume; a missing package is named."""

import json
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.running import fit, only_run
from wsbench.run.lines import read_metrics
from wsbench.run.recorder import Recorder
from wsbench.tasks.errors import NotFiniteError


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
