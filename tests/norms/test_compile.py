"""torch.compile with CPU inductor under every specification, with the window on: same gradients, nothing recompiled."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from tests import tiny
from tests.norms.nets import OLD, Net, batches, difference, gradients, net
from wsbench.norms import AccumulationWindow
from wsbench.tasks.errors import TaskOptionError

pytestmark = pytest.mark.slow

SPECS = (
    "bn", "gn", "ln", "in", "sn", "frozenbn", "gn+ws", "bn+ws", "sn+ws", "gn+wn", "gn+ws-mo", "ln+ws-do", "gn+ws-af",
    "gn+ws@authors", "in+ws@timm", "bn+ws@bit", "none+wn",
)  # fmt: skip


def train(model: Net, micro_steps: int = 3) -> dict[str, torch.Tensor]:
    """Three windows, the last of one micro-step; recompiling after the first is an error. Gradients of the second."""
    window = AccumulationWindow(model, simple_loop=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for s in range(3):
        optimizer.zero_grad()
        data = batches(micro_steps if s < 2 else 1, seed=s)
        with torch._dynamo.config.patch(error_on_recompile=s > 0):
            for i, (x, y) in enumerate(data):
                with window.micro_step(last=i == len(data) - 1):
                    F.cross_entropy(model(x), y).backward()
        if s < 2:
            found = gradients(model)
        optimizer.step()
    return found


@pytest.mark.parametrize(
    "spec", [pytest.param(s, marks=pytest.mark.skipif(OLD and "sn" in s, reason="torch 2.8")) for s in SPECS]
)
def test_every_specification(spec: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled, eager = net(spec), net(spec)
    compiled.compile()
    ours, theirs = train(compiled), train(eager)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1, "to a compiler the window's last micro-step is like the others"
    assert difference(ours, theirs) < 1e-8


def test_recompiling_would_have_been_an_error() -> None:
    torch._dynamo.reset()
    model = net("gn+ws", torch.float32)
    model.compile(dynamic=False)
    model(torch.randn(2, 3, 8, 8))
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(Exception, match=r"(?i)recompil"):
        model(torch.randn(2, 3, 12, 12))


def test_a_task_trains_compiled(tiny_roots: dict[str, Path]) -> None:
    found = []
    for compile in (True, False):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(3)
        model = tiny.model("imagenet", "gn+ws", compile=compile)
        trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
        trainer.fit(model, tiny.data("imagenet", tiny_roots["imagenet"], steps_per_epoch=1))
        assert ("compile" in model.definitions()) == compile
        assert (counters["stats"]["unique_graphs"] > 0) == compile
        found.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert difference(*found) < 1e-2


def test_what_torch_2_8_cannot_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    with pytest.raises(TaskOptionError, match=r"--model.compile true with --norm sn: what torch 2.8.0 compiles"):
        tiny.model("imagenet", "sn", compile=True)
    assert tiny.model("imagenet", "gn", compile=True) is not None
