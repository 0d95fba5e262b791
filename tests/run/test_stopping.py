"""A run that is told to stop ends with a whole step, says how it goes on, and goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.on_device import SMALL
from wsbench.__main__ import main
from wsbench.errors import UserError
from wsbench.records import read_record
from wsbench.run.stopping import Every, seconds_of
from wsbench.tasks import BenchmarkTask

#: two epochs of three steps of four micro-steps
STEPS, ACCUMULATE = 6, 4


def line(root: Path, *further: str, norm: str = "gn+ws") -> list[str]:
    return ["fit", "--task", "imagenet", "--recipe", "mini", "--data.miniature", "false", "--data.root", str(root),
            "--norm", norm, "--trainer.max_steps", str(STEPS), "--data.steps_per_epoch", "3",
            "--data.effective_batch", "8", "--data.micro_batch", "2", *SMALL["imagenet"], *further]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def root(tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny_roots["imagenet"]


def at_micro_step(patch: pytest.MonkeyPatch, place: int, act: Callable[[], object]) -> None:
    """Do ``act`` once, in the ``place``-th training step of the process."""
    step, seen = BenchmarkTask.training_step, [0]

    def training_step(task: BenchmarkTask, batch: Any, batch_idx: int) -> Tensor:
        seen[0] += 1
        if seen[0] == place:
            act()
        return step(task, batch, batch_idx)

    patch.setattr(BenchmarkTask, "training_step", training_step)


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def weights(runs: str) -> dict[str, Any]:
    (folder,) = Path(runs, "imagenet").iterdir()
    state: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return state


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("norm", ["gn+ws", "bn"])
@pytest.mark.parametrize(
    ("number", "place", "step"),
    [
        (signal.SIGTERM, 2, 1),  # in the first step's second micro-step
        (signal.SIGINT, 8, 2),
        (signal.SIGUSR1, 17, 5),
    ],
)
def test_a_signal(
    number: int, place: int, step: int, norm: str, root: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert main(line(root, "--runs", "whole", norm=norm)) == 0
    with monkeypatch.context() as patch:
        at_micro_step(patch, place, kill(number))
        assert main(line(root, norm=norm)) == 128 + number
    said = capsys.readouterr()
    name = signal.Signals(number).name
    assert f"{name}: stopping after this optimizer step" in said.out
    assert f"wsbench: stopped by {name} at step {step}: 'runs/imagenet/" in said.err
    assert f"holds step {step}; the same command with --ckpt_path auto resumes" in said.err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
    assert main([*line(root, norm=norm), "--ckpt_path", "auto"]) == 0
    said = capsys.readouterr()
    assert f"resumes after step {step}" in said.out
    assert "unreliable" not in said.err
    assert same(weights("runs"), weights("whole"))
    records = [read_record(next(Path(runs).glob("*/*/result.json"))) for runs in ("runs", "whole")]
    assert records[0].metrics == records[1].metrics
    assert records[0].best == records[1].best


@pytest.mark.parametrize("place", [12, 24])
def test_in_the_last_step_of_an_epoch_or_of_the_run(
    place: int, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluation begins, and is given up; what had been saved before is there."""
    assert main(line(root, "--runs", "whole")) == 0
    with monkeypatch.context() as patch:
        at_micro_step(patch, place, kill(signal.SIGTERM))
        assert main([*line(root), "--checkpoint_every", "1"]) == 143
    step = place // ACCUMULATE
    assert f"stopped by SIGTERM at step {step}: " in capsys.readouterr().err
    (folder,) = Path("runs/imagenet").iterdir()
    assert not (folder / "result.json").exists()
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == step - 1
    assert main([*line(root), "--ckpt_path", "auto"]) == 0
    assert same(weights("runs"), weights("whole"))


def test_in_an_evaluation(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with monkeypatch.context() as patch:
        evaluate = BenchmarkTask.validation_step

        def validation_step(task: BenchmarkTask, batch: Any, batch_idx: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            evaluate(task, batch, batch_idx)

        patch.setattr(BenchmarkTask, "validation_step", validation_step)
        assert main(line(root)) == 130
        assert "stopped by SIGINT at step 3: no checkpoint had been written yet" in capsys.readouterr().err
    assert main([*line(root), "--ckpt_path", "auto"]) == 0


def test_twice_is_at_once(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.1)  # at once it would be the echo of the first: see below
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        at_micro_step(patch, 6, twice)
        assert main([*line(root), "--checkpoint_every", "1"]) == 130
    assert "last.ckpt' holds step 1; " in capsys.readouterr().err


def test_an_echo_is_one_signal(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`timeout` signals a process and then its group: the step is finished, and saved, all the same."""

    def echo() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        at_micro_step(patch, 6, echo)
        assert main([*line(root), "--checkpoint_every", "1"]) == 143
    assert "last.ckpt' holds step 2; " in capsys.readouterr().err


def test_the_time_that_a_start_may_take(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no part of what the run is, and the run is not finished by it."""
    assert main(line(root, "--runs", "whole")) == 0
    assert main([*line(root), "--trainer.max_time", "00:00:00:00"]) == 75
    assert "stopped by --trainer.max_time at step 1: " in capsys.readouterr().err
    (folder,) = Path("runs/imagenet").iterdir()
    assert folder.name == next(Path("whole/imagenet").iterdir()).name
    assert not (folder / "result.json").exists()
    assert main([*line(root), "--ckpt_path", "auto", "--trainer.max_time", "01:00:00:00"]) == 0
    assert same(weights("runs"), weights("whole"))


@pytest.mark.parametrize(("every", "steps"), [("2", [2, 3, 5, 6]), ("never", [3, 6]), ("1h", [3, 6])])
def test_how_often(every: str, steps: list[int], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of an epoch there is one anyway."""
    from wsbench.run.checkpoints import WholeCheckpoints

    seen: list[int] = []
    save = WholeCheckpoints.save_checkpoint

    def noted(self: WholeCheckpoints, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if Path(path).name == "last.ckpt":
            seen.append(checkpoint["global_step"])
        save(self, checkpoint, path)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", noted)
    assert main([*line(root), "--checkpoint_every", every]) == 0
    assert seen == steps


def test_an_interval_that_is_none(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line(root), "--checkpoint_every", "often"]) == 2
    assert "'often' is no duration such as 10m" in capsys.readouterr().err


def test_durations() -> None:
    assert Every.parse("10m") == Every(seconds=600.0)
    assert Every.parse("1d2h3m4s") == Every(seconds=93784.0)
    assert Every.parse("500") == Every(steps=500)
    assert Every.parse("never") == Every()
    for wrong in ("", "0", "m", "10", "10 m", "-5m", "0s"):
        if wrong != "10":
            with pytest.raises(ValueError, match="is no duration"):
                Every.parse(wrong)
    assert seconds_of("00:01:02:03") == 3723.0
    assert seconds_of({"minutes": 2}) == seconds_of(timedelta(minutes=2)) == 120.0
    assert seconds_of(None) is None
    with pytest.raises(UserError, match=r"max_time 'an hour': expected DD:HH:MM:SS"):
        seconds_of("an hour")


# -- inside an optimizer step ---------------------------------------------------------------------------------------


def every_step(root: Path, *further: str, norm: str = "gn+ws", every: int = 1) -> list[str]:
    """With a ModelCheckpoint of the user's own, which knows nothing of optimizer steps."""
    return line(root, "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
                f"--trainer.callbacks.every_n_train_steps={every}", "--trainer.callbacks.dirpath=own",
                "--trainer.callbacks.save_top_k=-1", *further, norm=norm)  # fmt: skip


def test_a_checkpoint_of_ones_own_after_a_resume_is_between_steps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_micro_step(patch, 6, kill(signal.SIGTERM))
        assert main(every_step(root)) == 143
    before = {p: p.read_bytes() for p in Path("own").iterdir()}
    assert main([*every_step(root), "--ckpt_path", "auto"]) == 0
    for path in Path("own").iterdir():
        content = torch.load(path, weights_only=True)
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        assert progress["processed"] % ACCUMULATE == 0, path
    assert all(p.read_bytes() == content for p, content in before.items())


def on_exception(root: Path, norm: str) -> list[str]:
    return every_step(root, "--trainer.callbacks.save_on_exception=true", norm=norm, every=100)


def inside_a_step(root: Path, monkeypatch: pytest.MonkeyPatch, norm: str) -> str:
    """A checkpoint that an exception leaves after 6 micro-steps of 4 and 4."""

    def fail() -> None:
        raise ValueError("on purpose")

    with monkeypatch.context() as patch:
        at_micro_step(patch, 7, fail)
        with pytest.raises(ValueError, match="on purpose"):
            main(on_exception(root, norm))
    found = [p for p in Path("own").rglob("*.ckpt") if micro_steps(p) % ACCUMULATE]
    assert len(found) == 1
    return str(found[0])


def micro_steps(path: Path) -> int:
    content = torch.load(path, weights_only=True)
    done: int = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
    return done


def test_a_checkpoint_from_inside_a_step_runs_it_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = inside_a_step(root, monkeypatch, "gn+ws")
    assert main([*on_exception(root, "gn+ws"), "--runs", "whole"]) == 0
    with pytest.warns(
        UserWarning, match=r"in the middle of an optimizer step, after \d of 4 micro-steps: that step is run again"
    ):
        assert main([*on_exception(root, "gn+ws"), "--ckpt_path", path]) == 0
    assert same(weights("runs"), weights("whole"))


def test_where_statistics_have_moved_it_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = inside_a_step(root, monkeypatch, "bn")
    assert main([*on_exception(root, "bn"), "--ckpt_path", path]) == 2
    assert "those samples have moved statistics such as 'network." in capsys.readouterr().err


# -- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.ddp
@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wsbench", "fit", "--task", "imagenet", "--recipe", "mini", "--norm", "gn",
               "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp",
               "--trainer.max_steps", "2000"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    log, deadline = tmp_path / "runs", time.monotonic() + 120
    while not [*log.glob("imagenet/*/metrics.jsonl")] and time.monotonic() < deadline:
        time.sleep(0.2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    second = [c for c in children if "LOCAL_RANK=1" in Path(f"/proc/{c}/environ").read_text().split("\0")]
    os.kill(int(second[0]), signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143, out
    assert "stopped by SIGTERM at step" in out
    assert len([*log.glob("imagenet/*/last.ckpt")]) == 1


@pytest.mark.ddp
@pytest.mark.slow
def test_resumed_on_another_number_of_devices_the_record_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it takes the same steps, and evaluates where it would have."""
    calm = ("--trainer.accelerator", "cpu", "--trainer.precision", "64-true", "--model.lr", "0.001")
    assert main(line(root, "--runs", "whole", *calm)) == 0
    with monkeypatch.context() as patch:
        at_micro_step(patch, 6, kill(signal.SIGTERM))
        assert main(line(root, *calm)) == 143
    command = [sys.executable, "-m", "wsbench", *line(root, *calm), "--ckpt_path", "auto",
               "--trainer.devices", "2", "--trainer.strategy", "ddp"]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    record = read_record(next(Path("runs").glob("*/*/result.json")))
    assert record.batch.devices == 2
    assert record.definitions["devices"] == "to step 2 on 1 device"
    evaluated = [
        [row["step"] for row in map(json.loads, path.read_text().splitlines()) if "val/top1_error" in row]
        for path in (next(Path(runs).glob("*/*/metrics.jsonl")) for runs in ("runs", "whole"))
    ]
    assert evaluated == [[3, 6], [3, 6]]
    whole = weights("whole")
    for name, weight in weights("runs").items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-8, atol=1e-9)
