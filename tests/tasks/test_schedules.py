"""Learning rates at every boundary."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, MultiStepLR

from wsbench.tasks.modelnet40 import tensorflow_bn_momentum, tensorflow_rate
from wsbench.tasks.schedules import StepFactor, by_step


def test_steps_are_torchs_multistep() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = MultiStepLR(SGD([parameter], lr=0.1), [30, 60])
    ours = StepFactor([30, 60])
    for epoch in range(90):
        assert 0.1 * ours(epoch) == pytest.approx(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()
    assert [ours(e) for e in (29, 30, 59, 60)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_warmup_and_steps_are_torchs_chained_schedulers() -> None:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = ChainedScheduler([LinearLR(optimizer, 1 / 3, total_iters=40), MultiStepLR(optimizer, [30, 60])])
    ours = StepFactor([30, 60], warmup_steps=40)
    for step in range(90):
        assert 0.1 * ours(step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def published_warmup(iteration: int, milestones: list[int], factor: float = 1 / 3, iters: int = 500) -> float:
    """WarmupMultiStepLR of maskrcnn-benchmark."""
    warmup = 1.0
    if iteration < iters:
        alpha = float(iteration) / iters
        warmup = factor * (1 - alpha) + alpha
    return warmup * 0.1 ** sum(iteration >= m for m in milestones)


def test_warmup_is_maskrcnn_benchmarks() -> None:
    ours = StepFactor([300_000, 340_000], warmup_steps=500)
    for step in (0, 1, 250, 499, 500, 501, 299_999, 300_000, 339_999, 340_000, 359_999):
        assert ours(step) == pytest.approx(published_warmup(step, [300_000, 340_000]))
    assert ours(0) == pytest.approx(1 / 3)


def test_groups_keep_their_own_rates() -> None:
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2}], lr=0.1)
    schedule = by_step(optimizer, StepFactor([2]))["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(4):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates == [pytest.approx(r) for r in ([0.1, 0.2], [0.1, 0.2], [0.01, 0.02], [0.01, 0.02])]


def test_tensorflow_tables() -> None:
    """train.py of the paper's DGCNN, sample by sample: exponential_decay with staircase, clipped."""
    for step in range(0, 80_000, 97):
        samples = step * 32
        steps = samples // 200_000
        assert tensorflow_rate(samples, 1e-3) == pytest.approx(max(1e-3 * 0.7**steps, 1e-5))
        tf_decay = min(0.99, 1 - 0.5 * 0.5**steps)
        assert tensorflow_bn_momentum(samples) == pytest.approx(1 - tf_decay)
    assert tensorflow_rate(199_999, 1e-3) == 1e-3
    assert tensorflow_rate(200_000, 1e-3) == pytest.approx(7e-4)
    assert tensorflow_rate(10**8, 1e-3) == 1e-5
    assert (tensorflow_bn_momentum(0), tensorflow_bn_momentum(10**8)) == (0.5, 0.01)
