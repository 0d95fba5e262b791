"""What standardizing the weights of a ResNet costs, as ratios to copying them: ``python -m benchmarks.norms``.

The floor of a forward pass is one copy of all weights; that of forward and backward is the same copy and one addition
of the gradients into a buffer. timm's and mmcv-lite's layers (extra ``dev``) run their own code on the same weights,
with the convolution itself taken out.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torchvision.models import get_model

from benchmarks.timing import interleaved, keep_freed_memory
from wsbench.norms import NormalizedLayer, NormSpec, normalized


def authors(weight: Tensor) -> Tensor:
    """Weight standardization as the authors published it, operation by operation (unbiased sigma)."""
    mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    weight = weight - mean
    sigma = weight.reshape(weight.shape[0], -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
    return weight / sigma.expand_as(weight)


@contextmanager
def _no_convolution() -> Iterator[None]:
    """Let a layer's forward end where its effective weight is ready: the convolution returns that."""
    with mock.patch("torch.nn.functional.conv2d", lambda x, weight, *args, **kwargs: weight):
        yield


def library_layer(cls: type[nn.Module], conv: nn.Conv2d) -> Callable[[], Tensor]:
    """The effective weight by another library's layer that holds the weight of ``conv``."""
    layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, groups=conv.groups, bias=False)
    layer.weight = conv.weight
    return lambda: layer(conv.weight)


def our_layer(conv: nn.Conv2d, spec: str) -> Callable[[], Tensor]:
    """The effective weight by this project."""
    layer = normalized(conv, NormSpec.parse(spec))
    assert isinstance(layer, NormalizedLayer)
    return layer.effective_weight


def measure(model: str, rounds: int, channels_last: bool) -> dict[str, dict[str, float]]:
    """Ratios to the floors, forward and forward plus backward, of every form."""
    convs = [m for m in get_model(model).modules() if isinstance(m, nn.Conv2d)]
    if channels_last:
        for conv in convs:
            conv.to(memory_format=torch.channels_last)
    weights = [c.weight for c in convs]
    grads = [torch.randn_like(w) for w in weights]
    buffers = [torch.empty_like(w) for w in weights]
    totals = [torch.zeros_like(w) for w in weights]

    forms: dict[str, list[Callable[[], Tensor]]] = {
        "wsbench gn+ws": [our_layer(c, "gn+ws") for c in convs],
        "wsbench gn+ws@timm": [our_layer(c, "gn+ws@timm") for c in convs],
        "timm StdConv2d": [library_layer(StdConv2d, c) for c in convs],
        **{
            f"wsbench {spec}": [our_layer(c, spec) for c in convs]
            for spec in ("gn+wn", "gn+cwn", "gn+sws", "gn+ws-mo", "gn+ws-do", "gn+ws-af", "gn+spectral")
        },
    }
    if not channels_last:  # both raise on channels_last weights
        forms["authors' formula"] = [lambda w=w: authors(w) for w in weights]  # type: ignore[misc]
        forms["mmcv ConvWS2d"] = [library_layer(ConvWS2d, c) for c in convs]

    def copy() -> None:
        for buffer, weight in zip(buffers, weights, strict=True):
            buffer.copy_(weight)

    def copy_and_add() -> None:
        copy()
        for total, grad in zip(totals, grads, strict=True):
            total.add_(grad)

    def forward(layers: list[Callable[[], Tensor]]) -> None:
        for layer in layers:
            layer()

    def forward_backward(layers: list[Callable[[], Tensor]]) -> None:
        outs = [layer() for layer in layers]
        torch.autograd.grad(outs, weights, grads)

    with _no_convolution():
        with torch.no_grad():
            fwd = interleaved({"floor": copy, **{n: lambda f=f: forward(f) for n, f in forms.items()}}, rounds)  # type: ignore[misc]
        both = interleaved(
            {"floor": torch.no_grad()(copy_and_add), **{n: lambda f=f: forward_backward(f) for n, f in forms.items()}},  # type: ignore[misc]
            rounds,
        )
    return {
        name: {"forward": fwd[name] / fwd["floor"], "forward+backward": both[name] / both["floor"]} for name in forms
    } | {"floor (ms)": {"forward": 1e3 * fwd["floor"], "forward+backward": 1e3 * both["floor"]}}


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50", help="a torchvision model (default: resnet50)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--system-allocator",
        action="store_true",
        help="let glibc return freed memory to the system; page faults then add noise, from nothing to two copies",
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept = not args.system_allocator and keep_freed_memory()
    tables = {
        layout: measure(args.model, args.rounds, layout == "channels_last")
        for layout in ("contiguous", "channels_last")
    }
    if args.json:
        print(
            json.dumps(
                {"torch": torch.__version__, "threads": args.threads, "memory kept": kept, "ratios": tables}, indent=1
            )
        )
        return
    print(
        f"{args.model}, torch {torch.__version__}, {args.threads} threads, medians of {args.rounds} interleaved rounds"
    )
    print(f"freed memory is {'kept in the process' if kept else 'returned to the system: expect noise'}")
    for layout, table in tables.items():
        print(f"\n{layout:24s}  forward / copy   fwd+bwd / (copy + add)")
        for name, row in table.items():
            print(f"{name:24s}  {row['forward']:14.2f}   {row['forward+backward']:22.2f}")


if __name__ == "__main__":
    main()
