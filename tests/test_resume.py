"""A killed run resumed is the run that was not killed; two processes are one with twice the accumulation."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import TINY, write_voc
from wsbench.records import read_record
from wsbench.run.lines import read_metrics

COMMAND = [sys.executable, "-m", "wsbench", "fit", *TINY]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("data"), train=7)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*COMMAND, *options], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "runs" / "voc").iterdir()
    return found


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run_folder(folder) / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn+ws"])
def test_killed_and_resumed_bit_for_bit(root: Path, tmp_path: Path, norm: str) -> None:
    """SIGKILL between checkpoints; BN so that running statistics are part of it; more steps than a kill can miss."""
    options = ("--data.root", str(root), "--norm", norm, "--trainer.max_steps", "120", "--data.steps_per_epoch", "5")
    finish(start(tmp_path / "whole", *options))
    process = start(tmp_path / "killed", *options)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        logs = list((tmp_path / "killed").glob("runs/voc/*/metrics.jsonl"))
        if logs and logs[0].read_text().count("val/miou") >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = run_folder(tmp_path / "killed")
    assert process.returncode == -signal.SIGKILL, "it was to be killed before its end"
    assert not (folder / "result.json").exists(), "no record of a run that did not end"
    reached = int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"])
    assert 0 < reached < 120
    finish(start(tmp_path / "killed", *options, "--ckpt_path", "last"))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    records = [read_record(run_folder(tmp_path / name) / "result.json") for name in ("whole", "killed")]
    assert records[0].metrics == records[1].metrics
    assert records[0].best == records[1].best
    assert records[0].id == records[1].id
    logs = [read_metrics(run_folder(tmp_path / name) / "metrics.jsonl") for name in ("whole", "killed")]
    assert logs[0] == logs[1], "the curves are those of the unbroken run"


@pytest.mark.thorough
@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_are_twice_the_accumulation(root: Path, tmp_path: Path) -> None:
    """gn+ws in float64: same steps, same weights; and an odd number of validation images, each counted once."""
    options = (
        "--data.root", str(root), "--norm", "gn+ws", "--trainer.precision", "64-true", "--data.effective_batch", "4",
        "--trainer.log_every_n_steps", "1",
    )  # fmt: skip
    finish(start(tmp_path / "one", *options))
    out = finish(start(tmp_path / "two", *options, "--trainer.devices", "2", "--trainer.strategy", "ddp"))
    assert "1 per device x 2 micro-steps x 2 device(s) = 4" in out
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    initial = max(float((one[k] - two[k]).abs().max() / one[k].abs().max().clamp(min=1e-3)) for k in one)
    assert initial < 1e-9, f"relative difference {initial}"
    records = [read_record(run_folder(tmp_path / name) / "result.json") for name in ("one", "two")]
    assert [r.batch.devices for r in records] == [1, 2]
    assert [r.batch.accumulate for r in records] == [4, 2]
    assert [r.metrics["miou"].n_eval for r in records] == [5, 5], "torch's sampler would have counted six"
    assert records[0].metrics["miou"].value == pytest.approx(records[1].metrics["miou"].value, abs=1e-6)
    losses = [read_metrics(run_folder(tmp_path / name) / "metrics.jsonl")["train/loss"] for name in ("one", "two")]
    assert losses[0].keys() == losses[1].keys()
    assert all(losses[0][step] == pytest.approx(losses[1][step], rel=1e-6) for step in losses[0])


@pytest.mark.thorough
@pytest.mark.ddp
@pytest.mark.slow
def test_batch_norm_under_two_processes_is_not(root: Path, tmp_path: Path) -> None:
    """The control: what the test above would say if it could not fail. BN sees one image here, two there."""
    options = (
        "--data.root",
        str(root),
        "--norm",
        "bn",
        "--trainer.precision",
        "64-true",
        "--data.effective_batch",
        "4",
    )
    finish(start(tmp_path / "one", *options, "--data.micro_batch", "4"))
    finish(
        start(
            tmp_path / "two", *options, "--data.micro_batch", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"
        )
    )
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((one[k] - two[k]).abs().max()) for k in one if k.endswith("weight")) > 1e-6
