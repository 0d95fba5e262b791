"""A network whose full Hessian can be computed, and its loss over fixed micro-batches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsbench.analysis import Problem
from wsbench.norms import normalize


class Small(nn.Module):
    """Two convolutions in front of norms, smooth everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, bias=False)
        self.first_norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 2, groups=2, bias=False)
        self.second_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.first_norm(self.first(x)))
        x = F.softplus(self.second_norm(self.second(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def problem(spec: str, micro_batches: int = 2) -> Problem:
    """Of ``Small`` under ``spec``, float64."""
    torch.manual_seed(0)
    model = Small()
    report = normalize(model, spec, torch.zeros(1, 2, 6, 6))
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))  # a mean that is not zero
    batches = [(torch.randn(2, 2, 6, 6, dtype=torch.double), torch.tensor([i % 3, 1])) for i in range(micro_batches)]

    def loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="sum"), torch.tensor(float(len(y)))

    return Problem(model, batches, loss, report.eligible)
