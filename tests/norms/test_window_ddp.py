"""The accumulation window under DDP: two gloo processes, against the same without a window."""

import os
import pickle
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.norms.nets import Net, batches, difference, gradients, net
from wsbench.norms import AccumulationWindow, WindowError

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

#: keyword arguments of DDP, and in which micro-steps of four the layer ``maybe`` takes part
CASES: dict[str, tuple[dict[str, Any], tuple[bool, ...]]] = {
    "plain": ({}, (True, True, True, True)),
    "bucket views": ({"gradient_as_bucket_view": True, "bucket_cap_mb": 1e-3}, (True, True, True, True)),
    "unused parameters": ({"find_unused_parameters": True}, (True, True, False, True)),
    "left out at the end": ({"find_unused_parameters": True}, (True, True, True, False)),
    "left out throughout": ({"find_unused_parameters": True}, (False, False, False, False)),
    "left out, bucket views": (
        {"find_unused_parameters": True, "gradient_as_bucket_view": True}, (False, True, False, False)
    ),
}  # fmt: skip


class Outputs(nn.Module):
    """A dictionary of outputs, of which the loss takes the second."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.net(x)
        return {"unused": out * 2, "out": out}


def train(rank: int, options: dict[str, Any], used: tuple[bool, ...], on: bool) -> dict[str, torch.Tensor]:
    model = net()
    ddp = DistributedDataParallel(Outputs(model), **options)
    window = AccumulationWindow(ddp if len(options) == 1 else ddp.module) if on else None
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for s in range(3):
        data = batches(len(used), seed=10 * s + rank)
        for i, (x, y) in enumerate(data):
            last = i == len(data) - 1
            model.use_maybe = used[i]
            with nullcontext() if last else ddp.no_sync(), window.micro_step(last) if window else nullcontext():
                (F.cross_entropy(ddp(x)["out"], y) / len(data)).backward()
        found = gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return found | {f"weight of {k}": v.detach() for k, v in model.named_parameters()}


def work(rank: int, folder: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    out: dict[str, Any] = {}
    for name, (options, used) in CASES.items():
        results = [train(rank, options, used, on) for on in (True, False)]
        out[name] = difference(*results)
        out[f"{name}: weights"] = results[0]["weight of stem.weight"]
    model = Outputs(net())
    window = AccumulationWindow(model)
    for i, (x, y) in enumerate(batches(2)):
        model.net.use_maybe = i == 0
        window.begin(last=i == 1)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x)["out"], model(x)["out"]), "copied, hook and all"
        F.cross_entropy(model.net(x), y).backward()
        try:
            window.end()
        except WindowError as error:
            out["error"] = str(error)
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (folder, 29_500 + os.getpid() % 400), nprocs=2, start_method="spawn")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_weights(case: str, results: list[dict[str, Any]]) -> None:
    for ours in results:
        assert ours[case] < 1e-11
    weights = [ours[f"{case}: weights"] for ours in results]
    assert torch.equal(*weights), "the processes agree"


def test_a_gradient_that_could_not_be_averaged_is_refused(results: list[dict[str, Any]]) -> None:
    assert "'net.maybe' was not used in the last micro-step" in results[0]["error"]
    assert "call the Outputs that the window was made for" in results[0]["error"]
