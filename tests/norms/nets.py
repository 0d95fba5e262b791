"""A network with every kind of layer, its data, and the comparison of gradients with and without a window."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsbench.norms import AccumulationWindow, normalize

#: the lowest torch, whose compiler is another
OLD = torch.__version__.startswith("2.8.")
SPECS = ["gn+ws", "gn+wn", "bn+ws-mo", "ln+ws-do", "gn+ws-af", "gn+ws@authors", "sn+ws@timm", "in+ws@bit"]


class Net(nn.Module):
    """Plain, grouped and transposed convolutions and a linear layer, all in front of a norm; one is used twice."""

    def __init__(self, spec: str = "gn+ws", dtype: torch.dtype = torch.double) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, bias=False)
        self.maybe = nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, 8) for _ in range(5))
        self.hidden, self.hidden_norm = nn.Linear(8, 16), nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 4)
        self.use_maybe, self.checkpointing = True, False
        normalize(self, spec, example=torch.zeros(1, 3, 8, 8))
        self.to(dtype)

    def body(self, x: Tensor) -> Tensor:
        x = self.norms[1](self.twice(x)).relu()
        return self.norms[2](self.twice(x)).relu()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.stem(x)).relu()
        x = checkpoint(self.body, x, use_reentrant=False) if self.checkpointing else self.body(x)
        x = self.norms[3](self.up(x)).relu()
        if self.use_maybe:
            x = x + self.norms[4](self.maybe(x)).relu()
        x = self.hidden_norm(self.hidden(x.mean((2, 3)))).relu()
        out: Tensor = self.head(x)
        return out


def net(spec: str = "gn+ws", dtype: torch.dtype = torch.double) -> Net:
    torch.manual_seed(1)
    return Net(spec, dtype)


def batches(n: int, seed: int = 2, dtype: torch.dtype = torch.double) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(2, 3, 8, 8, generator=generator, dtype=dtype), torch.randint(4, (2,), generator=generator))
        for _ in range(n)
    ]


@contextmanager
def step(window: AccumulationWindow | None, last: bool) -> Iterator[None]:
    with nullcontext() if window is None else window.micro_step(last):
        yield


def accumulate(model: nn.Module, data: list[tuple[Tensor, Tensor]], window: AccumulationWindow | None) -> None:
    for i, (x, y) in enumerate(data):
        with step(window, i == len(data) - 1):
            (F.cross_entropy(model(x), y) / len(data)).backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of a parameter's gradient, relative to it, or to a thousandth of the largest."""
    assert ours.keys() == theirs.keys()
    least = 1e-3 * max(float(g.norm()) for g in theirs.values())
    return max(float((ours[k] - g).norm()) / max(float(g.norm()), least) for k, g in theirs.items())


def both(run: Callable[[Net, AccumulationWindow | None], None], spec: str = "gn+ws") -> float:
    """The difference of the gradients that ``run`` leaves, with a window and without."""
    found = []
    for on in (True, False):
        model = net(spec)
        run(model, AccumulationWindow(model) if on else None)
        found.append(gradients(model))
    return difference(*found)
