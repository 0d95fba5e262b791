"""Two gloo processes are one with twice the accumulation, for every task; what happens when one of them ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from tests import tiny
from wsbench.records import read_record
from wsbench.run.nodes import NodeError, meet, process_rank
from wsbench.tasks.errors import TaskOptionError


def test_sigterm_before_the_first_step_says_so(tmp_path: Path) -> None:
    """Nothing of it is left, and the status is a shell's for the signal; the imports alone take longer than this."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wsbench", "fit", "--task", "voc", "--norm", "gn+ws"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    handler = f"/proc/{process.pid}/status"
    deadline = time.monotonic() + 30
    while not int(Path(handler).read_text().split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
        assert time.monotonic() < deadline, "it does not listen"
        time.sleep(0.02)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert (said, process.returncode) == ("wsbench: stopped by SIGTERM\n", 143)
    assert list(tmp_path.iterdir()) == []


CRASH = """
from lightning.pytorch.callbacks import Callback
class Crash(Callback):
    def on_validation_end(self, trainer, pl_module):
        raise RuntimeError("a callback of the user's")
"""


def test_a_crash_with_workers_ends_the_process(tmp_path: Path, tiny_roots: dict[str, Path]) -> None:
    """The traceback keeps the loaders alive; at exit Python waits for their workers, which have to go."""
    (tmp_path / "crash.py").write_text(CRASH)
    command = [
        sys.executable, "-m", "wsbench", "fit", "--task", "voc", "--recipe", "small", "--norm", "gn", "--data.root",
        str(tiny_roots["voc"]), "--data.num_workers", "2", "--data.crop", "33", "--data.steps_per_epoch", "1",
        "--trainer.max_steps", "2", "--trainer.callbacks+=crash.Crash", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "a callback of the user's" in done.stderr


#: a norm of each kind: fused, with statistics of a sample; coco's is the one that its heads have
NORM = "gn+ws"


class Stop(Callback):
    """Ends a run after an epoch, as an interruption would: the schedule is that of the whole."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.global_step >= self.step


#: rates at which rounding does not grow from step to step; Adam would divide rounding by itself where a gradient is 0
CALM: dict[str, dict[str, Any]] = {
    "imagenet": {"lr": 0.01}, "something": {"lr": 0.001}, "modelnet40": {"optimizer": "sgd", "lr": 0.01},
}  # fmt: skip


def run(task: str, root: Path, folder: Path, world: int) -> dict[str, Any]:
    """Four steps of four samples in float64 with two evaluations; and the same, stopped after two and resumed."""
    found: dict[str, Any] = {}
    for name, stops in (("whole", (4,)), ("resumed", (2, 4))):
        checkpoint = folder / f"{task}-{world}-{name}.ckpt"
        for stop in stops:
            stopping = Stop(stop)
            torch.manual_seed(1)
            model = tiny.model(task, NORM, **CALM.get(task, {}))
            data = tiny.data(task, root, micro_batch=1, effective_batch=4)
            saving = ModelCheckpoint(folder, checkpoint.stem, save_top_k=1, every_n_epochs=1)
            trainer = tiny.trainer(
                max_steps=4, precision="64-true", accumulate_grad_batches=4 // world, devices=world,
                strategy=DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
                callbacks=[saving, stopping], enable_checkpointing=True,
            )  # fmt: skip
            trainer.fit(model, data, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
        assert model.evaluation is not None
        found[name] = {
            "weights": {k: v.detach().clone() for k, v in model.state_dict().items() if v.dtype == torch.float64},
            "values": model.evaluation.values,
            "samples": model.evaluation.n_eval,
            "files": sorted(p.name for p in folder.glob(f"{task}-{world}-{name}*")),
        }
    return found


def first_of(n: int, **kwargs: Any) -> torch.Tensor:
    """torchvision draws anchors and regions per device; here it takes the first ones."""
    return torch.arange(n, device=kwargs.get("device"))


def work(rank: int, folder: str, port: int, roots: dict[str, Path]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2", "NODE_RANK": "0", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.randperm = first_of  # type: ignore[assignment]
    found = {task: run(task, root, Path(folder), 2) for task, root in roots.items()}
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tiny_roots: dict[str, Path]) -> dict[str, Any]:
    """What two processes find, and one."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        mp.start_processes(work, (folder, 29_900 + os.getpid() % 90, tiny_roots), nprocs=2, start_method="spawn")
        ranks = [torch.load(Path(folder) / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]
        patch.setattr(torch, "randperm", first_of)
        return {
            task: (*(r[task] for r in ranks), run(task, root, Path(folder), 1)) for task, root in tiny_roots.items()
        }


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("task", tiny.TASKS)
def test_two_processes_are_one(task: str, both: dict[str, Any]) -> None:
    first, second, one = both[task]
    for name in ("whole", "resumed"):
        two, alone = first[name], one[name]
        for key, value in alone["weights"].items():
            assert float((two["weights"][key] - value).abs().max()) < 1e-10 * max(1.0, float(value.abs().max())), key
            assert torch.equal(two["weights"][key], second[name]["weights"][key]), "both processes hold the same"
        assert two["values"] == pytest.approx(alone["values"], abs=1e-6)
        assert (two["samples"], second[name]["samples"]) == (tiny.COUNTS[task]["val"],) * 2, "each sample once"
        assert len(two["files"]) == 1, "one process writes"
    for key, value in first["whole"]["weights"].items():
        assert torch.equal(value, first["resumed"]["weights"][key]), f"{key}: resumed to the same bits"


def test_more_devices_than_evaluation_samples_are_refused(tiny_roots: dict[str, Path]) -> None:
    model, data = tiny.model("voc", "gn"), tiny.data("voc", tiny_roots["voc"])
    trainer = tiny.trainer(devices=4, strategy="ddp")
    trainer.datamodule = data  # type: ignore[attr-defined]
    data.setup("fit")
    with pytest.raises(TaskOptionError, match="the evaluation has 3 samples, fewer than the 4 devices"):
        model.require_evaluation(trainer)


DIES = """
import os
from wsbench.tasks import BenchmarkTask
step = BenchmarkTask.training_step
def training_step(self, batch, batch_idx):
    if self.global_rank == {rank} and self.global_step == 1:
        os._exit(7)
    return step(self, batch, batch_idx)
BenchmarkTask.training_step = training_step
"""


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.thorough), 1])
def test_a_process_that_dies_ends_the_other_with_a_sentence(rank: int, tmp_path: Path) -> None:
    """Within a minute; gloo notices a closed connection at once, Lightning looks every five seconds."""
    (tmp_path / "dies.py").write_text(DIES.format(rank=rank))
    line = [sys.executable, "-m", "wsbench", "fit", "--import", "dies", "--task", "imagenet", "--recipe", "mini",
            "--norm", "gn", "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp",
            "--trainer.max_steps", "200"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    out, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "another process of this run has ended" in out or "terminated with code 7" in out
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and str(tmp_path) in _command_lines():
        time.sleep(0.5)
    assert str(tmp_path) not in _command_lines(), "nothing is left running"
    assert not list(tmp_path.glob("runs/imagenet/*/result.json"))


def _command_lines() -> str:
    """The working folders of all processes of this user."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return "\n".join(found)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "1"}, 1),
        ({"NODE_RANK": "1"}, 1),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 1),
        ({"GROUP_RANK": "2"}, 2),
        ({"SLURM_PROCID": "5"}, 5),
        ({"SLURM_PROCID": "5", "LOCAL_RANK": "0"}, 0),
    ],
)
def test_one_place_tells_the_rank(environment: dict[str, str], rank: int) -> None:
    assert bool(process_rank(environment)) == bool(rank)


@pytest.mark.parametrize("name", ["RANK", "NODE_RANK", "LOCAL_RANK"])
def test_a_rank_that_is_no_number(name: str) -> None:
    with pytest.raises(NodeError, match=f"{name}=x in the environment: expected a number"):
        process_rank({name: "x"})


def test_nodes_that_cannot_meet_are_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NodeError, match="num_nodes 2 without a launcher needs MASTER_ADDR, MASTER_PORT, NODE_RANK"):
        meet(2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(29_800 + os.getpid() % 90))
    monkeypatch.setenv("NODE_RANK", "2")
    with pytest.raises(NodeError, match="a node from 0 to 1"):
        meet(2)
    monkeypatch.setenv("NODE_RANK", "0")
    monkeypatch.setenv("WSBENCH_START_TIMEOUT", "1")
    with pytest.raises(NodeError, match=r"not all 2 nodes met at 127\.0\.0\.1:.* within 1 s"):
        meet(2)


@pytest.mark.thorough
@pytest.mark.ddp
@pytest.mark.slow
def test_two_nodes_without_a_launcher_share_a_folder(tmp_path: Path) -> None:
    common = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(29_700 + os.getpid() % 90)}  # fmt: skip
    line = [sys.executable, "-m", "wsbench", "fit", "--task", "imagenet", "--recipe", "mini", "--norm", "gn",
            "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "2",
            "--trainer.max_steps", "2"]  # fmt: skip
    nodes = [
        subprocess.Popen(line, cwd=tmp_path, env=common | {"NODE_RANK": str(node)}, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for node in (1, 0)
    ]  # fmt: skip
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    (record,) = tmp_path.glob("runs/imagenet/*/result.json")
    assert '"devices": 2' in record.read_text()


@pytest.mark.ddp
@pytest.mark.slow
def test_synchronized_bn_says_how_many_samples_it_sees(tmp_path: Path) -> None:
    """By the Trainer's flag, on CPUs; Lightning converts BN when training starts, and back before the record."""
    line = [sys.executable, "-m", "wsbench", "fit", "--task", "modelnet40", "--recipe", "mini", "--norm", "bn",
            "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp",
            "--trainer.sync_batchnorm", "true", "--trainer.max_steps", "1", "--data.micro_batch", "8",
            "--trainer.limit_val_batches", "1"]  # fmt: skip
    done = subprocess.run(
        line, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("runs/modelnet40/*/result.json")
    batch = read_record(path).batch
    assert (batch.devices, batch.norm_batch) == (2, 2 * batch.micro_batch)
    assert f"batch statistics over {batch.norm_batch}" in " ".join(done.stdout.split())
