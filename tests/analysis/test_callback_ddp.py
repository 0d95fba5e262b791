"""Gradient shares under DDP: two gloo processes against one with their data together."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from tests.norms.nets import batches, net
from tests.tasks.test_window import Module
from wsbench.analysis import GradientShares
from wsbench.analysis.log import read
from wsbench.tasks.window import WindowCallback

pytestmark = [pytest.mark.ddp, pytest.mark.slow]


def train(folder: Path, rank: int, world: int) -> None:
    """Every process sees every second micro-batch; alone it sees them all and accumulates twice as long."""
    data = [batch for i, batch in enumerate(batches(8)) if i % world == rank]
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True) if world > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=strategy, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, max_epochs=2,
        accumulate_grad_batches=4 // world, use_distributed_sampler=False, limit_val_batches=0,
        callbacks=[GradientShares(folder), WindowCallback()],
    )  # fmt: skip
    module = Module(net())
    module.network.use_maybe = rank == 0  # a layer that one of the processes does not use
    trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]


def work(rank: int, folder: str, port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2", "NODE_RANK": "0", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    torch.set_num_threads(1)
    train(Path(folder) / "two", rank, 2)
    dist.destroy_process_group()


def test_two_devices_measure_what_one_does() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (folder, 29_500 + os.getpid() % 400), nprocs=2, start_method="spawn")
        lines = read(Path(folder) / "two")
        assert [line["step"] for line in lines] == [0, 2]
        assert all(line["network"]["error"] < 1e-12 for line in lines), "one of the ranks' gradients would be missing"
        assert len((Path(folder) / "two" / "analysis.jsonl").read_text().splitlines()) == 2, "written by one rank"

        both = Path(folder) / "both"
        module_lines = []
        with pytest.MonkeyPatch.context() as patch:
            # alone, the layer takes part for the even micro-batches
            calls = iter(range(10**6))
            real = Module.training_step

            def step(self: Module, batch: object, batch_idx: int) -> object:
                self.network.use_maybe = next(calls) % 2 == 0
                return real(self, batch, batch_idx)

            patch.setattr(Module, "training_step", step)
            train(both, 0, 1)
        module_lines = read(both)
    for ours, theirs in zip(lines, module_lines, strict=True):
        for name in theirs["layers"]:
            for how in ("mean_of_ratios", "ratio_of_sums"):
                for part in "ABR":
                    assert ours["layers"][name][how][part] == pytest.approx(
                        theirs["layers"][name][how][part], rel=1e-8, abs=1e-13
                    )
