"""What ``analyze`` finds out about runs: collected into plain data, which the figures are drawn from."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wsbench.analysis import log
from wsbench.analysis.curvature import curvature
from wsbench.analysis.problem import Problem, ProblemError
from wsbench.analysis.shares import ChannelShares, decompose
from wsbench.analysis.smoothness import FACTORS, smoothness
from wsbench.load import load_run
from wsbench.norms import GradientTap
from wsbench.norms.weight import WeightStandardization
from wsbench.run.folder import METRICS
from wsbench.run.logger import read_metrics


def shares_of(problem: Problem) -> dict[str, ChannelShares]:
    """A, B and R of every layer with weight standardization, for the gradient of the problem's whole loss."""
    number = problem.number
    with GradientTap(problem.network) as tap:
        layers = {n: m for n, m in tap.layers.items() if isinstance(m.method, WeightStandardization)}
        layers = {n: m for n, m in layers.items() if m.weight.requires_grad}
        _, gradients = problem.loss_and_gradient([m.weight for m in layers.values()], number)  # type: ignore[misc]
    return {
        name: decompose(layer, tap.gradients[name], gradient)
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True)
        if name in tap.gradients
    }


def _checkpoint(
    path: Path, config: Path, samples: int, probes: int, device: str, with_curvature: bool
) -> dict[str, Any]:  # fmt: skip
    task, settings = load_run(path, config)
    problem = Problem.of_run(task, settings, samples, device)
    rate = float(settings["model"]["lr"])
    step = int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    found = smoothness(problem, [factor * rate for factor in FACTORS])
    content: dict[str, Any] = {
        "step": step,
        "samples": int(problem.number) if task.additive_loss else samples,
        "smoothness": asdict(found) | {"beta": found.beta, "lipschitz": found.lipschitz},
    }
    if task.spec.weight == "ws":
        content["shares"] = log.measurement(step, 0, str(task.spec), shares_of(problem))
        del content["shares"]["epoch"]
    if with_curvature and task.spec.weight in (None, "ws"):
        try:
            content["curvature"] = [asdict(c) for c in curvature(problem, probes)]
        except ProblemError as error:
            content["no_curvature"] = str(error)
    return content


def of_run(
    folder: Path,
    config: Path,
    checkpoints: Sequence[Path],
    samples: int,
    probes: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Curves and shares of a run from its folder, and what is measured at some of its checkpoints.

    Args:
        folder: of the run; its logs are read if they are there.
        config: its configuration.
        checkpoints: in the order of their steps; curvature is measured at the first and the last.
        samples: training samples that losses are taken over.
        probes: random vectors of the curvature.
        device: where.
    """
    task, settings = load_run(checkpoints[-1], config)
    curves = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else {}
    wanted = ("train/loss", f"train/{task.monitor}", f"val/{task.monitor}")
    data = settings["data"]
    return {
        "task": task.task,
        "recipe": settings.get("recipe"),
        "network": task.network_name,
        "norm": str(task.spec),
        "seed": settings["seed_everything"],
        "run": folder.name,
        "monitor": task.monitor,
        "steps_per_epoch": data.get("steps_per_epoch"),
        "micro_batch": data["micro_batch"],
        "effective_batch": data["effective_batch"],
        "lr": settings["model"]["lr"],
        "curves": {name: sorted(curves[name].items()) for name in wanted if name in curves},
        "shares": log.read(folder),
        "checkpoints": [
            _checkpoint(path, config, samples, probes, device, path in (checkpoints[0], checkpoints[-1]))
            for path in checkpoints
        ],
    }
