"""What ``analyze`` finds out about runs: collected into plain data, which the figures are drawn from."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsbench.analysis import log
from wsbench.analysis.curvature import curvature
from wsbench.analysis.problem import Problem, ProblemError
from wsbench.analysis.shares import ChannelShares, decompose, standardized_layers
from wsbench.analysis.smoothness import FACTORS, smoothness
from wsbench.configuration.restore import build_task, load_weights, read_settings
from wsbench.norms import GradientTap, NormSpec
from wsbench.run.folder import METRICS
from wsbench.run.lines import read_metrics


def shares_of(problem: Problem) -> dict[str, ChannelShares]:
    """A, B and R of every layer with weight standardization, for the gradient of the problem's whole loss."""
    layers = {n: m for n, m in standardized_layers(problem.network).items() if m.weight.requires_grad}
    with GradientTap(problem.network) as tap:
        _, gradients = problem.loss_and_gradient([m.weight for m in layers.values()])  # type: ignore[misc]
    return {
        name: decompose(layer, tap.gradients[name], gradient)
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True)
        if name in tap.gradients
    }


def _measured(problem: Problem, spec: NormSpec, rate: float, step: int) -> dict[str, Any]:
    """Smoothness, and shares where there is standardization, with the weights that the network has now."""
    measured = smoothness(problem, [factor * rate for factor in FACTORS])
    content: dict[str, Any] = {"step": step}
    content["smoothness"] = asdict(measured) | {"beta": measured.beta, "lipschitz": measured.lipschitz}
    if spec.weight == "ws":
        content["shares"] = log.measurement(step, 0, str(spec), shares_of(problem))
        del content["shares"]["epoch"]
    return content


def _curvature(problem: Problem, probes: int) -> dict[str, Any]:
    """Curvature, or why there is none."""
    try:
        return {"curvature": [asdict(c) for c in curvature(problem, probes)]}
    except ProblemError as error:
        return {"no_curvature": str(error)}


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
    _, settings = read_settings(checkpoints[0], config)
    task, rate = build_task(settings), float(settings["model"]["lr"])
    problem = Problem.of_run(task, settings, samples, device)
    measured = []
    for path in checkpoints:
        content, _ = read_settings(path, config)
        load_weights(task, content, path)
        entry = _measured(problem, task.spec, rate, int(content["global_step"]))
        if path in (checkpoints[0], checkpoints[-1]) and task.spec.weight in (None, "ws"):
            entry |= _curvature(problem, probes)
        measured.append(entry)
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
        "lr": rate,
        "curves": {name: sorted(curves[name].items()) for name in wanted if name in curves},
        "shares": log.read(folder),
        "checkpoints": measured,
    }
