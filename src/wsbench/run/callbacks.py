"""Lightning's callbacks that the user names: those that cannot do here what they are for are refused before the run."""

from collections.abc import Collection, Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)

from wsbench.errors import UserError

#: and why; what decides a run's numbers stands in its configuration, so that its id and its record hold it
_REFUSED: tuple[tuple[type[Callback], str], ...] = (
    (LearningRateFinder, "it would change the learning rate without the run's configuration saying so; set --model.lr"),
    (BatchSizeFinder, "it would change the batch without the run's configuration saying so; set --data.micro_batch"),
    (GradientAccumulationScheduler, "accumulation follows from --data.effective_batch and --data.micro_batch"),
    (ModelPruning, "it replaces the weights that are standardized by masked ones; prune a folded network"),
)


class CallbackError(UserError, ValueError):
    """A callback that cannot work in a run; the message names it and says why."""


def require_callbacks(callbacks: Sequence[Callback], metrics: Collection[str], trainer: Trainer) -> None:
    """Refuse callbacks that would fail, or change what the run is, in its middle.

    Args:
        callbacks: the user's.
        metrics: the names that a callback may monitor.
        trainer: of the run.

    Raises:
        CallbackError: one cannot work.
    """
    for callback in callbacks:
        name = f"--trainer.callbacks {type(callback).__name__}"
        for kind, why in _REFUSED:
            if isinstance(callback, kind):
                raise CallbackError(f"{name}: {why}")
        if isinstance(callback, StochasticWeightAveraging) and (trainer.max_epochs or -1) < 1:
            raise CallbackError(f"{name} counts epochs: set --trainer.max_epochs")
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in metrics:
            raise CallbackError(f"{name}: there is no metric '{monitor}' to monitor; there are "
                                f"{', '.join(sorted(metrics))}")  # fmt: skip
