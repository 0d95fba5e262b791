"""Probes along the gradient, on a quadratic loss where everything is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.analysis.small import problem
from wsbench.analysis import Problem, ProblemError, smoothness


class Bowl(nn.Module):
    """w^T A w / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.double))
        self.register_buffer("a", torch.diag(torch.tensor([1.0, 3.0, 10.0], dtype=torch.double)))


def bowl() -> Problem:
    """The loss in two micro-batches of one and three items."""
    model = Bowl()

    def loss(items: int) -> tuple[Tensor, Tensor]:
        value = model.w @ model.a @ model.w / 2  # type: ignore[operator]
        return value * items, torch.tensor(float(items))

    return Problem(model, [1, 3], loss, ())


def test_a_quadratic_loss() -> None:
    of = bowl()
    w, a = of.network.w.detach().clone(), of.network.a  # type: ignore[operator, union-attr]
    g = a @ w
    found = smoothness(of, [0.01, 0.1])
    assert found.loss == pytest.approx(float(w @ a @ w / 2))
    assert found.gradient_norm == pytest.approx(float(g.norm()))
    for step in found.steps:
        moved = w - step.eta * g
        assert step.loss == pytest.approx(float(moved @ a @ moved / 2))
        assert step.gradient_change == pytest.approx(step.eta * float((a @ g).norm()))
        assert step.cosine == pytest.approx(float(g @ (a @ moved) / (g.norm() * (a @ moved).norm())))
    assert found.beta == pytest.approx(float((a @ g).norm() / g.norm()))
    drop = [abs(s.loss - found.loss) / (s.eta * found.gradient_norm) for s in found.steps]
    assert found.lipschitz == pytest.approx(max(drop))
    assert torch.equal(of.network.w, w)  # type: ignore[arg-type]


def test_weights_and_statistics_are_put_back_also_after_an_error() -> None:
    of = problem("bn+ws")
    state = {name: value.clone() for name, value in of.network.state_dict().items()}
    smoothness(of, [0.1])
    calls = iter(range(100))
    real = of.loss_of

    def failing(batch: object) -> tuple[Tensor, Tensor]:
        if next(calls) > 3:  # two of the first gradient, two behind the first step
            raise RuntimeError("out of memory")
        return real(batch)

    of.loss_of = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        smoothness(of, [0.1, 0.2])
    for name, value in of.network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_what_is_refused() -> None:
    with pytest.raises(ProblemError, match=r"must be positive, got \[0.0\]"):
        smoothness(bowl(), [0.0])
    flat = bowl()
    with torch.no_grad():
        flat.network.w.zero_()  # type: ignore[operator, union-attr]
    with pytest.raises(ProblemError, match=r"norm is 0\.0"):
        smoothness(flat, [0.1])
    with torch.no_grad():
        flat.network.w.fill_(math.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(ProblemError, match="norm is nan"):
        smoothness(flat, [0.1])
