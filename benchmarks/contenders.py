"""The networks of ``benchmarks.step`` at the paper's sizes, under every form of standardizing."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.norms import authors
from wsbench.models.deeplabv3 import DeepLabV3
from wsbench.models.detection import build_detector, freeze, keep_all_boxes
from wsbench.models.dgcnn import DGCNN
from wsbench.models.resnet import ResNetClassifier
from wsbench.models.tsm import TSM
from wsbench.norms import AccumulationWindow, NormalizedLayer, normalize

#: name of a form: specification, whether the window is on
FORMS: dict[str, tuple[str, bool]] = {
    "gn": ("gn", False),
    "bn": ("bn", False),
    "sn": ("sn", False),
    "gn+ws, window": ("gn+ws", True),
    "gn+ws, no window": ("gn+ws", False),
    "gn+ws, authors' formula": ("gn+ws", False),
    "gn+wn, window": ("gn+wn", True),
}
BASE = "gn"


def _classifier(name: str, size: int) -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    if name == "resnet18":
        from torchvision.models import resnet18

        network: nn.Module = resnet18()
    else:
        network = ResNetClassifier(name)
    x = torch.randn(1, 3, size, size)
    return network, x, lambda: network(x).logsumexp(1).sum()


def _tsm() -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    network = TSM("resnet50", 174, dropout=0.0)
    x = torch.randn(1, 8, 3, 224, 224)
    return network, x, lambda: network(x).logsumexp(1).sum()


def _voc() -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    network = DeepLabV3("resnet101", 21, 16, (6, 12, 18), 256, 0.05, 0.0003)
    x, mask = torch.randn(1, 3, 513, 513), torch.randint(0, 21, (1, 513, 513))
    return network, x, lambda: F.cross_entropy(network(x), mask)


def _points() -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    network = DGCNN("dgcnn_tf", dropout=0.0)
    x = torch.randn(1, 1024, 3)
    return network, x, lambda: network(x).logsumexp(1).sum()


def _coco() -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    network = build_detector("resnet50")
    picture = torch.rand(3, 800, 1067)
    corners = torch.rand(7, 2) * 400
    boxes = torch.cat([corners, corners + 50 + torch.rand(7, 2) * 300], 1)
    masks = torch.zeros(7, 800, 1067, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    target = {"boxes": boxes, "labels": torch.arange(1, 8), "masks": masks}

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same regions are sampled under every form
        return torch.stack(list(network([picture], [target]).values())).sum()

    return network, [torch.rand(3, 128, 128)], loss


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any, Callable[[], Tensor]]]] = {
    "resnet18 64px": lambda: _classifier("resnet18", 64),
    "imagenet": lambda: _classifier("resnet50", 224),
    "something": _tsm,
    "voc": _voc,
    "modelnet40": _points,
    "coco": _coco,
}


def build(task: str, form: str) -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    """The network converted, its example, and a function that returns its loss."""
    torch.manual_seed(0)
    network, example, loss = NETWORKS[task]()
    spec = FORMS[form][0].replace("gn", "gn16") if task == "modelnet40" else FORMS[form][0]
    if isinstance(network, DGCNN):
        with network.hold_edges():
            normalize(network, spec, torch.zeros(2, 32, 3))
    elif task == "coco":
        before, network.transform.min_size = network.transform.min_size, (128,)  # type: ignore[union-attr]
        with keep_all_boxes(network):
            normalize(network, spec, (example,))
        network.transform.min_size = before  # type: ignore[union-attr]
        freeze(network, 3)
    else:
        small = example[..., :65, :65] if task != "something" else example[..., :64, :64]
        normalize(network, spec, small)
    network.train()
    if form.endswith("formula"):
        for m in network.modules():
            if isinstance(m, NormalizedLayer):
                m.effective_weight = _by_formula(m)  # type: ignore[method-assign]
    return network, example, loss


def _by_formula(layer: NormalizedLayer) -> Callable[[], Tensor]:
    def effective() -> Tensor:
        weight = layer.weight.float()
        shape = weight.shape
        four = weight.view(*shape[:2], *shape[2:], *(1,) * (4 - weight.dim()))
        return authors(four).view(shape)

    return effective


class Contender:
    """One form of one network, and its kinds of micro-steps."""

    def __init__(self, task: str, form: str) -> None:
        self.network, self.example, self.loss = build(task, form)
        self.window = AccumulationWindow(self.network, simple_loop=True) if FORMS[form][1] else None  # as fit does

    def micro_step(self, last: bool = False) -> None:
        """Forward and backward."""
        if self.window is None:
            self.loss().backward()  # type: ignore[no-untyped-call]
            return
        with self.window.micro_step(last):
            self.loss().backward()  # type: ignore[no-untyped-call]

    def zero(self) -> None:
        """Between optimizer steps."""
        self.network.zero_grad()

    def whole(self, count: int) -> None:
        """An optimizer step without the optimizer."""
        for i in range(count):
            self.micro_step(i == count - 1)
        self.zero()
