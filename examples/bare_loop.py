"""One image at a time in plain torch: convert, accumulate in a window, evaluate, fold.

python examples/bare_loop.py [--norm gn+ws] [--steps 150]
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from wsbench.norms import AccumulationWindow, fold, normalize

ACCUMULATE = 8


def network() -> nn.Module:
    """A small network with BN, as anybody would write it."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def main() -> float:
    """Returns the accuracy on held-out digits, in percent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--norm", default="gn+ws")
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    train, test = order[:1400], order[1400:]

    model = network()
    print(normalize(model, args.norm, example=images[:2]).summary())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    window = AccumulationWindow(model)
    for _ in range(args.steps):
        for i in range(ACCUMULATE):
            one = train[torch.randint(len(train), (1,))]
            with window.micro_step(last=i == ACCUMULATE - 1):
                loss = nn.functional.cross_entropy(model(images[one]), labels[one]) / ACCUMULATE
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    window.close()

    plain = fold(model.eval())
    with torch.inference_mode():
        accuracy = 100 * (plain(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"{args.norm}: {accuracy:.1f} % of {len(test)} held-out digits after {args.steps} steps")
    return accuracy


if __name__ == "__main__":
    main()
