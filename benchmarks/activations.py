"""What activation normalizations cost on ResNet-50's features, as ratios to GN: ``python -m benchmarks.activations``.

First each layer by itself, forward and backward at batch 1, ours beside the usual ways to write it. Then the whole
network's training step in channels_last relative to contiguous, which `--model.memory_format auto` goes by.
"""

import argparse
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from benchmarks.timing import interleaved, keep_freed_memory
from wsbench.norms import ACTIVATIONS, normalize


def published_sn(x: Tensor, weight: Tensor, bias: Tensor, mean_weight: Tensor, var_weight: Tensor) -> Tensor:
    """Switchable normalization (Luo et al., Eq. 3-6) operation by operation, as its code has it."""
    n, c, h, w = x.shape
    flat = x.view(n, c, -1)
    mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
    second = var_in + mean_in**2
    mean_ln = mean_in.mean(1, keepdim=True)
    var_ln = second.mean(1, keepdim=True) - mean_ln**2
    mean_bn = mean_in.mean(0, keepdim=True)
    var_bn = second.mean(0, keepdim=True) - mean_bn**2
    m, v = mean_weight.softmax(0), var_weight.softmax(0)
    mean = m[0] * mean_in + m[1] * mean_ln + m[2] * mean_bn
    var = v[0] * var_in + v[1] * var_ln + v[2] * var_bn
    return ((flat - mean) / (var + 1e-5).sqrt()).view(n, c, h, w) * weight.view(1, c, 1, 1) + bias.view(1, c, 1, 1)


class PublishedSN(nn.Module):
    """A layer of :func:`published_sn`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mean_weight, self.var_weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """As published."""
        return published_sn(x, self.weight, self.bias, self.mean_weight, self.var_weight)


class AffineLayerNorm(nn.Module):
    """LN over (C, H, W) by torch's layer_norm, with the per-channel affine map behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        out = F.layer_norm(x, x.shape[1:])
        return torch.addcmul(self.bias.view(1, -1, 1, 1), out, self.weight.view(1, -1, 1, 1))


def ours(name: str) -> Callable[[int], nn.Module]:
    """This project's layer of that name."""
    return lambda channels: ACTIVATIONS[name].factory.from_channels(channels, None)


FORMS: dict[str, Callable[[int], nn.Module]] = {
    "gn": ours("gn"),
    "ln": ours("ln"),
    "ln: layer_norm + affine": AffineLayerNorm,
    "in": ours("in"),
    "in: torch InstanceNorm2d": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "sn": ours("sn"),
    "sn: as published": PublishedSN,
    "bn": ours("bn"),
}


def feature_shapes(model: str, size: int) -> list[torch.Size]:
    """Shapes of what the network's norms get."""
    network, shapes = get_model(model), list[torch.Size]()
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    return shapes


def saved_mib(layer: nn.Module, x: Tensor) -> float:
    """Memory that a layer saves for its backward beside its input and parameters."""
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    total: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in known:
            total[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    del out
    return sum(total.values()) / 2**20


def measure_layers(model: str, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, ratio to GN and saved memory of every form."""
    shapes = feature_shapes(model, size)
    features = [torch.randn(s, requires_grad=True) for s in shapes]
    grads = [torch.randn(s) for s in shapes]
    layers = {name: [form(s[1]) for s in shapes] for name, form in FORMS.items()}

    def work(name: str) -> None:
        for layer, x, g in zip(layers[name], features, grads, strict=True):
            torch.autograd.grad(layer(x), (x, *layer.parameters()), g)

    times = interleaved({name: lambda name=name: work(name) for name in FORMS}, rounds)  # type: ignore[misc]
    return {
        name: {
            "ms": 1e3 * times[name],
            "to gn": times[name] / times["gn"],
            "saved MiB": sum(saved_mib(layer, x) for layer, x in zip(layers[name], features, strict=True)),
        }
        for name in FORMS
    }


def measure_formats(model: str, size: int, batches: list[int], rounds: int) -> dict[str, dict[str, float]]:
    """Time of a training step in channels_last over that in contiguous memory, for each norm and batch."""

    def step(spec: str, batch: int, layout: torch.memory_format) -> Callable[[], None]:
        network = get_model(model)
        normalize(network, spec)
        network.to(memory_format=layout)
        x = torch.randn(batch, 3, size, size)

        def work() -> None:
            network(x).sum().backward()
            network.zero_grad()

        return work

    table: dict[str, dict[str, float]] = {}
    for spec in ("bn", "gn", "ln", "in", "sn", "gn+ws"):
        for batch in batches:
            contenders = {f: step(spec, batch, f) for f in (torch.contiguous_format, torch.channels_last)}
            times = interleaved({str(f): work for f, work in contenders.items()}, rounds, warmup=1)
            ratio = times[str(torch.channels_last)] / times[str(torch.contiguous_format)]
            table.setdefault(spec, {})[f"batch {batch}"] = ratio
    return table


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50", help="a torchvision model (default: resnet50)")
    parser.add_argument("--size", type=int, default=224, help="of the images in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="of the memory formats; none: skip them")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    layers = measure_layers(args.model, args.size, args.rounds)
    formats = measure_formats(args.model, args.size, args.batches, max(3, args.rounds // 3))
    if args.json:
        print(json.dumps({"torch": torch.__version__, "threads": args.threads, "layers": layers,
                          "channels_last / contiguous": formats}, indent=1))  # fmt: skip
        return
    print(f"{args.model}, {args.size} px, torch {torch.__version__}, {args.threads} threads, medians of {args.rounds} "
          "interleaved rounds")  # fmt: skip
    print("\nlayers alone, batch 1, fwd+bwd      ms   / gn   saved beside the input")
    for name, row in layers.items():
        print(f"{name:28s} {row['ms']:9.2f} {row['to gn']:6.2f} {row['saved MiB']:10.2f} MiB")
    print("\nwhole training step, channels_last / contiguous")
    for spec, ratios in formats.items():
        print(f"{spec:28s} " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))


if __name__ == "__main__":
    main()
