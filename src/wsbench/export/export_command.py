"""``python -m wsbench export``: a run's network with its effective weights baked in, checked against PyTorch."""

import argparse
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import wsbench
from wsbench.configuration.restore import load_run
from wsbench.errors import UserError
from wsbench.export.writers import SUFFIXES, WRITERS, Run, run_network
from wsbench.integrations import save_pretrained
from wsbench.integrations.pretrained import CONFIG, WEIGHTS
from wsbench.run.report import console
from wsbench.tasks import BenchmarkTask

#: largest difference of an output to PyTorch's, relative to that output's largest value; float32 kernels differ so much
TOLERANCE = 1e-4


class ExportError(UserError, RuntimeError):
    """A network that cannot be exported, or whose export computes something else."""


def in_one_order(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Tensor]:
    """Detections (boxes, labels, scores, masks) in the order of ``theirs``: each the nearest box of its label.

    Boxes are sorted by score, and rounding decides between scores that are equal but for it.
    """
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return list(ours)
    boxes, labels, scores = ours[:3]
    free = torch.ones(len(scores), dtype=torch.bool)
    order = []
    for box, label, score in zip(*theirs[:3], strict=True):
        far = (boxes - box).abs().amax(1) + (scores - score).abs() + torch.where((labels == label) & free, 0.0, 1e9)
        order.append(int(far.argmin()))
        free[order[-1]] = False
    return [t[order] for t in ours]


def relative_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest difference of an output relative to its largest value; infinite if shapes differ."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    differences = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12))
        for a, b in zip(ours, theirs, strict=True)
        if b.numel()
    ]
    return max(differences, default=0.0)


def export(task: BenchmarkTask, settings: dict[str, Any], form: str, output: Path) -> "Exported":
    """Write the task's network, folded, and check what was written.

    Args:
        task: as :func:`load_run` returns it.
        settings: likewise.
        form: ``onnx``, ``torchscript`` or ``pt2``.
        output: the file; it is written only if everything is right.

    Raises:
        ExportError: the format does not take this network; its weights are computed in the graph; outputs differ.
        MissingPartError: the format needs a package that is not installed.
    """
    torch.manual_seed(0)
    x = task.example_input(settings.get("data", {}))
    if not isinstance(x, Tensor) and form != "onnx":
        raise ExportError(f"{task.network_name} has as many boxes as an image has objects, which only --format onnx "
                          "takes")  # fmt: skip
    folded = task.folded(x)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        path = Path(folder) / output.name
        for sizes in _attempts(task.dynamic_sizes()):
            meaning = task.input_words(input_shape(x, sizes))
            facts = {
                "wsbench": wsbench.__version__, "task": task.task, "norm": str(task.spec), "input": meaning,
                "network": task.network_name, "outputs": list(task.output_names()), "classes": list(task.classes),
            }  # fmt: skip
            try:
                computed, run = WRITERS[form](folded, x, path, facts, task.output_names(), sizes)
                fits = not sizes or _other_size_agrees(task, run, x, sizes)
            except (RuntimeError, ValueError, TypeError, AssertionError):  # what torch's exporters raise at free sizes
                if not sizes:  # it is not the sizes
                    raise
                fits = False
            if fits:
                break
        if computed:
            raise ExportError(f"{len(computed)} weights are computed in the exported graph, among them {computed[0]}")
        worst = 0.0
        for sample in (x, x[:1] * 0.5 if isinstance(x, Tensor) else [picture * 0.5 for picture in x]):
            ours, theirs = run(sample), run_network(task.network)(sample)
            if not isinstance(x, Tensor):
                ours = in_one_order(ours, theirs)
            worst = max(worst, relative_difference(ours, theirs))
        if not worst <= TOLERANCE:
            raise ExportError(f"the exported graph's outputs differ from PyTorch's by {worst:.1e} of their largest "
                              f"value, more than {TOLERANCE:.0e}; nothing was written")  # fmt: skip
        os.replace(path, output)
    return Exported(worst, len(task.norm_report.weight_normalized), meaning)


@dataclass(frozen=True)
class Exported:
    """What an export came to."""

    difference: float
    """Largest relative difference to the network before folding."""
    folded: int
    """Layers whose weights were baked in."""
    input: str
    """What the file takes: which dimensions are free, and the sizes of the others."""


def _attempts(sizes: Mapping[int, str]) -> list[Mapping[int, str]]:
    """With free sizes first, where the task has some; if the format or the network does not take them, without."""
    return [sizes, {}] if sizes else [{}]


def input_shape(x: Any, sizes: Mapping[int, str]) -> str:
    """``N, 3, height, width``: free dimensions by name, the others by their size; empty for a detector's list."""
    if not isinstance(x, Tensor):
        return ""
    names = {0: "N", **sizes}
    return ", ".join(names.get(i, str(size)) for i, size in enumerate(x.shape))


def _other_size_agrees(task: BenchmarkTask, run: Run, x: Tensor, sizes: Mapping[int, str]) -> bool:
    shape = [size + 16 * (2 + i % 2) if i in sizes else size for i, size in enumerate(x.shape)]
    other = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return relative_difference(run(other), run_network(task.network)(other)) <= TOLERANCE


def _save_weights(args: argparse.Namespace, checkpoint: Path) -> int:
    """The weights as they were trained, with what a network has to be to take them."""
    folder = Path(args.output).expanduser() if args.output else checkpoint.expanduser().parent / "pretrained"
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"--output '{folder}' is a file; name a folder")
    task, _ = load_run(checkpoint, None if args.config is None else Path(args.config))
    save_pretrained(task.network, folder, task.spec, task=task.task, network=task.network_name,
                    classes=list(task.classes), wsbench=wsbench.__version__)  # fmt: skip
    console().print(f"wrote {folder / WEIGHTS} and {folder / CONFIG}: {task.network_name}, {task.spec}",
                    soft_wrap=True, markup=False)  # fmt: skip
    return 0


def main(args: argparse.Namespace) -> int:
    """Export, and say what was written; returns 0."""
    checkpoint = Path(args.ckpt_path)
    suffix = SUFFIXES.get(args.format, "")
    output = (Path(args.output) if args.output else checkpoint.with_suffix(suffix)).expanduser()
    if args.format != "safetensors" and output.exists() and not output.is_file():
        raise ExportError(f"--output '{output}' is no file; name one that may be written")
    if args.format == "safetensors":
        return _save_weights(args, checkpoint)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    task, settings = load_run(checkpoint, None if args.config is None else Path(args.config))
    done = export(task, settings, args.format, output)
    out = console()
    out.print(
        f"{task.network_name}, {task.spec}: {done.folded} weights baked in, none is computed in the graph", markup=False
    )
    out.print(f"input: {done.input}", markup=False, soft_wrap=True)
    out.print(f"largest difference to PyTorch: {done.difference:.1e} of the largest value of an output")
    out.print(f"wrote {output} ({output.stat().st_size / 2**20:.1f} MiB)", soft_wrap=True, markup=False)
    return 0
