"""Learning-rate schedules as functions of the optimizer step.

torch's ``ChainedScheduler`` of ``LinearLR`` and ``MultiStepLR`` says the same (a test compares them), but multiplies
the rate of the step before; a function of the step alone is exact wherever a run is resumed.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class StepFactor:
    """gamma^(milestones passed), times a linear warm-up.

    Args:
        milestones: steps before which the rate falls: step m is the first with the lower rate.
        gamma: factor at each.
        warmup_steps: steps of the warm-up.
        warmup_factor: factor of its first step.
    """

    def __init__(
        self, milestones: Sequence[int], gamma: float = 0.1, warmup_steps: int = 0, warmup_factor: float = 1 / 3
    ) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        self.warmup_steps, self.warmup_factor = warmup_steps, warmup_factor

    def __call__(self, step: int) -> float:
        """The factor of optimizer step ``step``, counted from 0."""
        factor: float = self.gamma ** bisect_right(self.milestones, step)
        if step < self.warmup_steps:
            factor *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        return factor


def by_step(optimizer: Optimizer, factor: Any) -> dict[str, Any]:
    """What ``configure_optimizers`` returns: the rate is each group's own times ``factor(step)``."""
    schedule = LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
