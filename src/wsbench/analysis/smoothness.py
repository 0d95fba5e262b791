"""How smooth the loss is along its gradient, after Santurkar et al. 2018 (arXiv:1805.11604), Section 3.

From the weights w with loss L and gradient g, over a range of step sizes eta,

    loss of a step            L(w - eta g)
    change of the gradient    ||grad L(w - eta g) - g||
    effective beta            the largest ||grad L(w - eta g) - g|| / (eta ||g||) of the range
    effective Lipschitz       the largest |L(w - eta g) - L| / (eta ||g||) of the range

The less they vary, the further a step may go. They are those of the loss in training mode over a fixed set of samples,
with respect to all trainable parameters, and without weight decay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wsbench.analysis.problem import Problem, ProblemError

#: step sizes relative to the run's learning rate
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Step:
    """A step along the gradient."""

    eta: float
    loss: float
    gradient_change: float
    """||grad L(w - eta g) - g||."""
    cosine: float
    """Of the angle between the two gradients."""


@dataclass(frozen=True)
class Smoothness:
    """The loss around one set of weights."""

    loss: float
    gradient_norm: float
    steps: tuple[Step, ...]

    @property
    def beta(self) -> float:
        """The largest change of the gradient relative to the distance: effective beta-smoothness."""
        return max((s.gradient_change / (s.eta * self.gradient_norm) for s in self.steps), default=0.0)

    @property
    def lipschitz(self) -> float:
        """The largest change of the loss relative to the distance."""
        return max((abs(s.loss - self.loss) / (s.eta * self.gradient_norm) for s in self.steps), default=0.0)


def smoothness(problem: Problem, etas: Sequence[float]) -> Smoothness:
    """Probe the loss along its gradient.

    Args:
        problem: the network and its loss; its weights are put back.
        etas: step sizes, positive.

    Raises:
        ProblemError: a step size is not positive, or the gradient is zero or not finite.
    """
    if not etas or any(not eta > 0 for eta in etas):
        raise ProblemError(f"step sizes must be positive, got {list(etas)}")
    parameters = [p for p in problem.network.parameters() if p.requires_grad]
    loss, gradient = problem.loss_and_gradient(parameters)
    flat = torch.cat([g.flatten().double() for g in gradient])
    norm = float(flat.norm())
    if not 0 < norm < float("inf"):
        raise ProblemError(f"the gradient's norm is {norm}, so there is no direction to step along")
    before = [p.detach().clone() for p in parameters]
    steps = []
    try:
        for eta in etas:
            with torch.no_grad():
                for p, old, g in zip(parameters, before, gradient, strict=True):
                    p.copy_(old - eta * g)
            moved_loss, moved = problem.loss_and_gradient(parameters)
            other = torch.cat([g.flatten().double() for g in moved])
            cosine = float(flat @ other / (norm * other.norm().clamp_min(1e-300)))
            steps.append(Step(eta, moved_loss, float((other - flat).norm()), cosine))
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)
    return Smoothness(loss, norm, tuple(steps))
