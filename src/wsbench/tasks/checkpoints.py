"""Whether a checkpoint belongs to a task, and where training resumes from it."""

from collections.abc import Collection, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from wsbench.norms import NormSpec, require_spec
from wsbench.tasks.errors import CheckpointError, TaskOptionError


def require_own(checkpoint: Mapping[str, Any], task: str, spec: NormSpec) -> None:
    """Refuse a checkpoint of another task or normalization.

    Raises:
        CheckpointError: of another task.
        NormMismatchError: of another normalization; names both.
    """
    if checkpoint.get("task") != task:
        raise CheckpointError(f"the checkpoint is of task '{checkpoint.get('task')}', this is '{task}'")
    require_spec(checkpoint, spec)


def require_state_of_training(checkpoint: Mapping[str, Any]) -> None:
    """CheckpointError for one that has weights only."""
    lost = [part for part in ("loops", "optimizer_states", "lr_schedulers") if part not in checkpoint]
    if lost:
        raise CheckpointError(
            f"the checkpoint has weights only (no {', '.join(lost)}), so training cannot resume from it; "
            "--model.init_from starts a new run from its weights"
        )


def require_fitting(theirs: Mapping[str, Any], ours: Mapping[str, Tensor], network: str) -> None:
    """Compare names and shapes.

    Args:
        theirs: a checkpoint's state dict.
        ours: that of the task.
        network: the task's, for the message.

    Raises:
        CheckpointError: they differ; names the first difference, and how many there are.
    """
    differences = [f"it has no '{name}'" for name in ours if name not in theirs]
    differences += [f"'{name}' is not in the network" for name in theirs if name not in ours]
    for name in (name for name in ours if name in theirs):
        if not isinstance(theirs[name], Tensor):
            differences.append(f"'{name}' is a {type(theirs[name]).__name__} in it")
        elif theirs[name].shape != ours[name].shape:
            shapes = f"{tuple(theirs[name].shape)} in it and {tuple(ours[name].shape)} in the network"
            differences.append(f"'{name}' is {shapes}")
    if differences:
        more = f", and {len(differences) - 1} more such" if len(differences) > 1 else ""
        raise CheckpointError(f"the checkpoint does not fit the network '{network}': {differences[0]}{more}")


def begin_at_a_window(checkpoint: dict[str, Any], now: int, weights: Collection[str]) -> None:
    """Let the loop resume between two optimizer steps, counted in micro-steps of now.

    A checkpoint from the middle of a step lacks what had gathered for it; weights and optimizer are as they were when
    it began, so that step is run again from its first sample.

    Args:
        checkpoint: its content; the state of the loops is changed in it.
        now: micro-steps in an optimizer step.
        weights: names of the parameters; everything else in the state dict is statistics.

    Raises:
        TaskOptionError: the network has statistics, which the samples that it saw have moved already.
    """
    accumulate = checkpoint.get("accumulate", now)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    inside = progress["current"]["processed"] % accumulate
    if not inside:
        for part in (progress["current"], progress["total"]) if accumulate != now else ():
            # on another number of devices a step has another number of micro-steps
            waiting, done = part["processed"] - part["completed"], part["processed"] // accumulate * now
            part.update(dict.fromkeys(("ready", "started", "processed"), done), completed=done - waiting)
        return
    moved = [name for name in checkpoint["state_dict"] if name not in weights]
    fault = f"the checkpoint was written in the middle of an optimizer step, after {inside} of {accumulate} micro-steps"
    if moved:
        raise TaskOptionError(
            f"{fault}, whose gradients are lost, and those samples have moved statistics such as '{moved[0]}': what "
            "resumes from it would be another run; use one from between two steps, such as last.ckpt"
        )
    rank_zero_warn(f"{fault}: that step is run again from its first sample, which changes nothing")
    checkpoint.pop("training_sums", None)  # which have counted its first samples
    for part in ("current", "total"):
        start = progress[part]["processed"] // accumulate * now
        progress[part].update(dict.fromkeys(("ready", "started", "processed", "completed"), start))
