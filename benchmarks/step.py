"""What a training step costs under each normalization, batch 1: ``python -m benchmarks.step``.

For every task's network at the paper's sizes the time of a micro-step of K = 1, 8 and 64 that make an optimizer step,
relative to plain GN: bn, sn, gn+ws with the accumulation window and without, by the authors' formula, gn+wn. A window
of K costs a first micro-step (it opens), K - 2 in the middle and a last one (it closes); each kind is timed by itself
in one interleaved run, and the figure for K is their mean with these weights. ``--whole TASK ...`` also runs all 64.
``--device cuda`` does it on a GPU, waiting for it before each look at the clock.

Then peak memory above weights and gradients (each in a process of its own; Linux), the window's own work timed
directly, the kernels of a micro-step, what Lightning's loop adds to the bare one, and inference of folded networks.
``--compile TASK ...`` compares with torch.compile.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.contenders import BASE, FORMS, NETWORKS, Contender
from benchmarks.timing import Kernels, clock, interleaved, keep_freed_memory, peak_resident_mib, return_freed_memory
from wsbench.norms import AccumulationWindow, fold
from wsbench.tasks.window import WindowCallback

WINDOWS = (1, 8, 64)
ROUNDS = {"resnet18 64px": 30, "imagenet": 9, "something": 3, "voc": 3, "modelnet40": 9, "coco": 3}


def kinds(contenders: dict[str, Contender], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of the first, a middle, the last and the only micro-step of a window, interleaved."""
    times: dict[str, dict[str, list[float]]] = {
        name: {kind: [] for kind in ("first", "middle", "last", "only")} for name in contenders
    }
    for i in range(rounds + 1):
        for name, c in contenders.items():
            for kind in ("first", "middle", "last", "only"):
                if kind in ("first", "only"):
                    c.zero()
                start = clock()
                c.micro_step(last=kind in ("last", "only"))
                if i:
                    times[name][kind].append(clock() - start)
            c.zero()
    return {name: {k: statistics.median(v) for k, v in row.items()} for name, row in times.items()}


def per_micro_step(row: dict[str, float], count: int) -> float:
    """Seconds a micro-step of ``count`` that make a step."""
    return row["only"] if count == 1 else (row["first"] + row["last"] + (count - 2) * row["middle"]) / count


def whole_windows(contenders: dict[str, Contender], count: int, rounds: int) -> dict[str, float]:
    """Seconds a micro-step, all ``count`` of them run."""
    works = {name: lambda c=c: c.whole(count) for name, c in contenders.items()}
    return {name: seconds / count for name, seconds in interleaved(works, rounds, warmup=1).items()}


# -- memory, kernels, the window's own work -------------------------------------------------------------------------


def _peak(out: "multiprocessing.Queue[float]", threads: int, device: str, task: str, form: str) -> None:
    torch.set_num_threads(threads)
    torch.set_default_device(device)
    return_freed_memory()
    c = Contender(task, form)
    for p in c.network.parameters():
        p.grad = torch.zeros_like(p)  # weights and gradients are there before
    before = _peak_mib(device, reset=True)
    for p in c.network.parameters():
        p.grad = None
    c.whole(4)
    out.put(_peak_mib(device) - before)


def _peak_mib(device: str, reset: bool = False) -> float:
    if device == "cpu":
        return peak_resident_mib(reset)
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


def peak_memory_mib(task: str, form: str) -> float:
    """Peak memory of an optimizer step of four micro-steps above weights and gradients, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    out: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(
        target=_peak, args=(out, torch.get_num_threads(), torch.get_default_device().type, task, form)
    )
    process.start()
    value = out.get(timeout=1800)  # raises if the process was killed
    process.join()
    return value


def kernels(c: Contender) -> int:
    """Of a micro-step in the middle of a window."""
    c.micro_step()
    with Kernels() as counted:
        c.micro_step()
    if c.window is not None:
        c.window.drop()
    c.zero()
    return int(counted.count)


def own_work(task: str, rounds: int) -> dict[str, float]:
    """Seconds that a window spends on itself: opening, and one backward through all standardizations with the sums."""
    c = Contender(task, "gn+ws, window")
    window = cast(AccumulationWindow, c.window)
    opened, steady, closed = [], [], []
    for i in range(rounds + 1):
        start = clock()
        window.begin(last=False)
        middle = clock()
        window.begin(last=False)
        for one in window.layers:
            one.in_use(one.layer.normalized_parameters)
        window.end()
        again = clock()
        gradients = [torch.ones_like(one.leaf) for one in window.layers if one.leaf is not None]
        for one, gradient in zip(window.layers, gradients, strict=True):
            cast(Tensor, one.leaf).grad = gradient
        adding = [torch.ones_like(g) for g in gradients]
        stop = clock()
        window.begin(last=True)
        uses = [cast(Tensor, one.in_use(one.layer.normalized_parameters)) for one in window.layers]
        torch.autograd.backward(uses, adding)
        window.end()
        if i:
            opened.append(middle - start)
            steady.append(again - middle)
            closed.append(clock() - stop)
        c.zero()
    return {"open": statistics.median(opened), "each": statistics.median(steady), "close": statistics.median(closed)}


# -- Lightning, inference, compile ----------------------------------------------------------------------------------


class _Clock(Callback):
    """The time of an epoch's loop, without setting up the Trainer."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self.seconds -= clock()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.seconds += clock()


class _Loop(LightningModule):
    """The network in Lightning's loop, with nothing else."""

    def __init__(self, c: Contender) -> None:
        super().__init__()
        self.network, self._loss = c.network, c.loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Forward."""
        return self._loss()

    def configure_optimizers(self) -> Any:
        """SGD that changes nothing."""
        return torch.optim.SGD(self.parameters(), 0.0)


def lightning_overhead(task: str, count: int, rounds: int) -> float:
    """Time of ``count`` micro-steps and a step of SGD in Lightning's loop over that in a bare loop, window on."""
    bare = Contender(task, "gn+ws, window")
    inside = Contender(task, "gn+ws, window")
    cast(AccumulationWindow, inside.window).close()
    optimizer = torch.optim.SGD(bare.network.parameters(), 0.0)
    module = _Loop(inside)
    data: DataLoader[Any] = DataLoader(torch.zeros(count, 1), batch_size=1)  # type: ignore[arg-type]

    def loop() -> None:
        for i, _ in enumerate(data):
            bare.micro_step(i == count - 1)
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {"bare": [], "lightning": []}
    for i in range(rounds + 1):
        start = clock()
        loop()
        middle = clock()
        ticking, where = _Clock(), torch.get_default_device().type
        trainer = Trainer(accelerator=where, devices=1, logger=False, enable_checkpointing=False, max_epochs=1,
                          enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=count,
                          callbacks=[WindowCallback(simple_loop=True), ticking])  # fmt: skip
        trainer.fit(module, data)
        if i:
            times["bare"].append(middle - start)
            times["lightning"].append(ticking.seconds)
    return statistics.median(times["lightning"]) / statistics.median(times["bare"])


def inference(task: str, rounds: int) -> dict[str, float]:
    """Seconds of a forward pass at batch 1 in evaluation: gn, gn+ws as trained, gn+ws folded."""
    plain, trained = Contender(task, "gn").network.eval(), Contender(task, "gn+ws, no window")
    network, x = trained.network.eval(), trained.example
    networks = {"gn": plain, "gn+ws": network, "gn+ws, folded": fold(network)}
    with torch.no_grad():
        return interleaved({name: lambda n=n: n(x) for name, n in networks.items()}, rounds)  # type: ignore[misc]


def compiled(task: str, rounds: int) -> dict[str, float]:
    """Seconds a micro-step of 8, and of how many the compiler had to look again after the first window."""
    from torch._dynamo.utils import counters

    contenders = {name: Contender(task, name) for name in ("gn", "gn+ws, window")}
    for name in list(contenders):
        other = Contender(task, name)
        other.network.compile()
        other.whole(8)
        contenders[f"{name}, compiled"] = other
    graphs = counters["stats"]["unique_graphs"]
    times = whole_windows(contenders, 8, rounds)
    return times | {"recompiled": float(counters["stats"]["unique_graphs"] - graphs)}


# -- tables ---------------------------------------------------------------------------------------------------------


def measure(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network."""
    rounds = args.rounds or ROUNDS[task]
    contenders = {form: Contender(task, form) for form in FORMS}
    table = kinds(contenders, rounds)
    row: dict[str, Any] = {
        "rounds": rounds,
        "seconds": {f: {f"K={k}": per_micro_step(table[f], k) for k in WINDOWS} for f in FORMS},
        "kinds": table,
        "kernels": {form: kernels(c) for form, c in contenders.items()},
    }
    row["ratio"] = {f: {k: v / row["seconds"][BASE][k] for k, v in by_k.items()} for f, by_k in row["seconds"].items()}
    work = own_work(task, 9)
    row["window"] = work | {
        "share of 64 micro-steps": (work["open"] + 63 * work["each"] + work["close"]) / (64 * table[BASE]["middle"])
    }
    if task in args.whole:
        two = {form: contenders[form] for form in (BASE, "gn+ws, window")}
        seconds = whole_windows(two, 64, args.whole_rounds)
        row["whole windows of 64"] = seconds | {"ratio": seconds["gn+ws, window"] / seconds[BASE]}
    contenders.clear()
    if args.memory:
        row["memory"] = {form: peak_memory_mib(task, form) for form in FORMS}
        row["effective weights MiB"] = effective_weights_mib(task)
    if task in ("resnet18 64px", "imagenet"):
        row["lightning / bare"] = lightning_overhead(task, 64 if task != "imagenet" else 16, 5)
    if task in ("resnet18 64px", "imagenet"):
        row["inference"] = inference(task, 15)
    if task in args.compile:
        row["compiled"] = compiled(task, 5)
    return row


def effective_weights_mib(task: str) -> float:
    """Size of all effective weights."""
    c = Contender(task, "gn+ws, window")
    layers = cast(AccumulationWindow, c.window).layers
    return sum(s.layer.weight.numel() * s.layer.weight.element_size() for s in layers) / 2**20


def show(task: str, row: dict[str, Any]) -> None:
    """Print a network's table."""
    print(f"\n{task}: plain gn takes {1e3 * row['seconds'][BASE]['K=64']:.1f} ms a micro-step ({row['rounds']} rounds)")
    memory = row.get("memory")
    print(f"{'time / gn':28s}" + "".join(f"{f'K={k}':>8s}" for k in WINDOWS) + "   kernels   peak memory")
    for form in FORMS:
        ratios = "".join(f"{row['ratio'][form][f'K={k}']:8.2f}" for k in WINDOWS)
        peak = f"{memory[form]:10.0f} MiB" if memory else ""
        print(f"{form:28s}{ratios}{row['kernels'][form]:10d}{peak}")
    w = row["window"]
    print(f"the window's own work: open {1e3 * w['open']:.1f} ms, each micro-step {1e3 * w['each']:.2f} ms, close "
          f"{1e3 * w['close']:.1f} ms: {100 * w['share of 64 micro-steps']:.2f} % of 64 micro-steps")  # fmt: skip
    if memory:
        print(f"effective weights {row['effective weights MiB']:.0f} MiB; gn+ws with the window takes "
              f"{memory['gn+ws, window'] - memory[BASE]:.0f} MiB more than gn")  # fmt: skip
    if "whole windows of 64" in row:
        print(f"whole windows of 64: gn+ws with the window / gn {row['whole windows of 64']['ratio']:.3f}")
    if "lightning / bare" in row:
        print(f"Lightning's loop / a bare loop: {row['lightning / bare']:.3f}")
    if "inference" in row:
        t = row["inference"]
        print("inference / gn: " + ", ".join(f"{name} {seconds / t['gn']:.2f}" for name, seconds in t.items()))
    if "compiled" in row:
        t = row["compiled"]
        print(f"torch.compile / eager: gn {t['gn, compiled'] / t['gn']:.2f}, gn+ws with the window "
              f"{t['gn+ws, window, compiled'] / t['gn+ws, window']:.2f}; recompiled {t['recompiled']:.0f}")  # fmt: skip


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, help="default: 30 for small networks, 3 for the largest")
    parser.add_argument("--whole", nargs="*", default=["imagenet", "resnet18 64px"], choices=list(NETWORKS))
    parser.add_argument("--whole-rounds", type=int, default=3)
    parser.add_argument("--compile", nargs="*", default=[], choices=list(NETWORKS))
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip the processes for peak memory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    keep_freed_memory()
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    machine = {"machine": f"{name}, {os.cpu_count()} cores", "threads": args.threads,
               "torch": torch.__version__, "batch": 1}  # fmt: skip
    if not args.json:
        print(", ".join(f"{k} {v}" for k, v in machine.items()))
    rows = {}
    for task in args.tasks:
        rows[task] = measure(task, args)
        if not args.json:
            show(task, rows[task])
    if args.json:
        print(json.dumps(machine | {"networks": rows}, indent=1))


if __name__ == "__main__":
    main()
