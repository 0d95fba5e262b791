"""SyncBN over two gloo processes against BN of the whole batch, with unequal and empty parts."""

import pickle
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from wsbench.norms import ACTIVATIONS

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

C = 6
#: samples of the two processes, and what follows (N, C)
CASES = [((2, 2), (5, 4)), ((1, 1), (1, 1)), ((1, 1), ()), ((3, 1), (3,)), ((4, 0), (3, 3)), ((1, 0), (1, 1))]


def data(samples: int, rest: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(samples, C, *rest, dtype=torch.double, generator=generator) for _ in range(2))
    return 3 * x + 50, grad


def layer(name: str) -> Any:
    new = ACTIVATIONS[name].build(C).double()
    with torch.no_grad():
        new.weight.copy_(torch.linspace(-1, 2, C))
        new.bias.copy_(torch.linspace(1, -1, C))
    return new


def run(name: str, x: Tensor, grad: Tensor, twice: bool) -> dict[str, Tensor]:
    norm, x = layer(name), x.clone().requires_grad_()
    out = norm(x)
    found = torch.autograd.grad(out, (x, norm.weight, norm.bias), grad, create_graph=twice)
    second = torch.autograd.grad(found[0].square().sum(), x) if twice else (x,)
    by_moments = {}
    if twice and x.dim() == 4:
        other = layer(name)
        var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
        scale, shift = other.from_moments(mean, var, x.shape[2] * x.shape[3])
        by_moments = {"moments": x * scale[..., None, None] + shift[..., None, None]}
    tensors = {"out": out, "x": found[0], "weight": found[1], "bias": found[2], "second": second[0], **by_moments}
    return {k: v.detach() for k, v in tensors.items()} | {k: v.clone() for k, v in norm.named_buffers()}


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))  # fmt: skip
    found = []
    for counts, rest in CASES:
        x, grad = data(sum(counts), rest)
        part = slice(0, counts[0]) if rank == 0 else slice(counts[0], None)
        found.append(run("syncbn", x[part], grad[part], all(counts)))
    (Path(folder) / f"{rank}.pkl").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two() -> list[list[dict[str, Tensor]]]:
    """What both processes found in all cases."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (folder,), nprocs=2)
        return [pickle.loads((Path(folder) / f"{rank}.pkl").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_processes_are_one_batch(two: list[list[dict[str, Tensor]]], case: int) -> None:
    counts, rest = CASES[case]
    first, second = (found[case] for found in two)
    whole = run("bn", *data(sum(counts), rest), all(counts))
    for name in ("out", "x", "second"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), whole[name], rtol=1e-9, atol=1e-9)
    for name in ("weight", "bias"):
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-9, atol=1e-9)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(first[name], whole[name])
        assert torch.equal(first[name], second[name])
    if "moments" in first and "moments" in second:
        torch.testing.assert_close(torch.cat([first["moments"], second["moments"]]), whole["out"])
