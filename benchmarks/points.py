"""What a training step of DGCNN costs without edges, as ratios to holding them: ``python -m benchmarks.points``.

The direct form gathers [x_i, x_j - x_i] for every edge and convolves it, as the published codes do; its k nearest
neighbours are the sorted top-k of one batched distance matrix. Both forms train the same network on the same clouds, in
one interleaved run; peak memory is that of a process that does nothing else, above what it holds before the first step.
"""

import argparse
import json
import multiprocessing
from contextlib import nullcontext
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import interleaved, peak_resident_mib
from wsbench.models import dgcnn
from wsbench.models.edges import nearest_neighbours
from wsbench.norms import normalize

NORMS = ("bn", "gn16", "ln", "in", "gn16+ws")


def published_neighbours(points: Tensor, k: int) -> Tensor:
    """K nearest neighbours as published: the whole batch of distance matrices, sorted top-k. (B, N, C) to (B, N, k)."""
    x = points.detach().transpose(1, 2)
    inner = -2 * torch.matmul(x.transpose(2, 1), x)
    square = torch.sum(x**2, dim=1, keepdim=True)
    distance = -square - inner - square.transpose(2, 1)
    return distance.topk(k=k, dim=-1)[1]


class Step:
    """A training step (forward and backward) of one form."""

    def __init__(self, form: str, norm: str, batch: int, points: int, direct: bool) -> None:
        torch.manual_seed(0)
        self.network = dgcnn.DGCNN(form)  # type: ignore[arg-type]
        with self.network.hold_edges():
            normalize(self.network, norm, torch.zeros(2, 32, 3))
        self.clouds, self.labels = torch.randn(batch, points, 3), torch.randint(0, 40, (batch,))
        self.direct = direct

    def __call__(self) -> None:
        """Do it once."""
        search = patch.object(dgcnn, "nearest_neighbours", published_neighbours)
        with search if self.direct else nullcontext(), self.network.hold_edges() if self.direct else nullcontext():
            F.cross_entropy(self.network(self.clouds), self.labels).backward()  # type: ignore[no-untyped-call]
        self.network.zero_grad()


def _peak(threads: int, out: "multiprocessing.Queue[float]", form: str, norm: str, *size_and_form: int) -> None:
    torch.set_num_threads(threads)
    batch, points, direct = size_and_form
    Step(form, norm, 1, 64, bool(direct))()
    step = Step(form, norm, batch, points, bool(direct))
    before = peak_resident_mib(reset=True)
    step()
    out.put(peak_resident_mib() - before)


def peak_memory_mib(form: str, norm: str, batch: int, points: int, direct: bool) -> float:
    """Peak memory of a step in a process of its own, above what it held before."""
    context = multiprocessing.get_context("spawn")
    out: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=_peak, args=(torch.get_num_threads(), out, form, norm, batch, points, direct))
    process.start()
    value = out.get()
    process.join()
    return value


def neighbours_ratio(channels: int, batch: int, points: int, k: int, rounds: int) -> float:
    """Time of our k nearest neighbours over the published ones."""
    x = torch.randn(batch, points, channels)
    times = interleaved(
        {"ours": lambda: nearest_neighbours(x, k), "published": lambda: published_neighbours(x, k)}, rounds
    )
    return times["ours"] / times["published"]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", default=list(dgcnn.DGCNN_FORMS), choices=dgcnn.DGCNN_FORMS)
    parser.add_argument("--norms", nargs="+", default=list(NORMS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    size = (args.batch, args.points)
    rows = []
    for form in args.forms:
        for norm in args.norms:
            steps = {"ours": Step(form, norm, *size, False), "direct": Step(form, norm, *size, True)}
            times = interleaved(steps, args.rounds, warmup=1)
            memory = {name: peak_memory_mib(form, norm, *size, name == "direct") for name in steps}
            rows.append({"form": form, "norm": norm, "direct_s": times["direct"], "ours_s": times["ours"],
                         "time": times["ours"] / times["direct"], "direct_mib": memory["direct"],
                         "ours_mib": memory["ours"], "memory": memory["ours"] / memory["direct"]})  # fmt: skip
    knn = {c: neighbours_ratio(c, *size, 20, max(args.rounds, 5)) for c in (3, 64, 128)}
    if args.json:
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "batch": args.batch,
                          "points": args.points, "steps": rows, "neighbours": knn}, indent=1))  # fmt: skip
        return
    print(f"batch {args.batch}, {args.points} points, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"medians of {args.rounds} interleaved rounds")
    print("form       norm       direct    ours  time    direct      ours memory")
    for r in rows:
        print(f"{r['form']:10s} {r['norm']:8s} {r['direct_s']:7.2f}s {r['ours_s']:6.2f}s {r['time']:5.2f} "
              f"{r['direct_mib']:6.0f}MiB {r['ours_mib']:6.0f}MiB {r['memory']:6.2f}")  # fmt: skip
    ratios = ", ".join(f"{c} channels {v:.2f}" for c, v in knn.items())
    print(f"k nearest neighbours, time over the published form: {ratios}")


if __name__ == "__main__":
    main()
