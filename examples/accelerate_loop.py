"""One image at a time with Hugging Face's accelerate, whose accumulation is the window's.

accelerate launch examples/accelerate_loop.py [--norm gn+ws] [--steps 150]
"""

import argparse

import torch
from accelerate import Accelerator
from bare_loop import ACCUMULATE, network
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from wsbench.norms import AccumulationWindow, normalize


def main() -> float:
    """Returns the accuracy on held-out digits, in percent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--norm", default="gn+ws")
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    data = TensorDataset(images, torch.tensor(digits.target))
    train, test = torch.utils.data.random_split(data, [1400, len(data) - 1400])

    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE, cpu=True)
    model = network()
    accelerator.print(normalize(model, args.norm, example=images[:2]).summary())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    window = AccumulationWindow(model)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(train, batch_size=1, shuffle=True))
    steps = 0
    for pictures, labels in loader:
        with accelerator.accumulate(model):
            with window.micro_step(last=accelerator.sync_gradients):
                accelerator.backward(nn.functional.cross_entropy(model(pictures), labels))
            optimizer.step()
            optimizer.zero_grad()
        steps += accelerator.sync_gradients
        if steps == args.steps:
            break
    window.close()

    model.eval()
    pictures, labels = next(iter(DataLoader(test, batch_size=len(test))))
    with torch.inference_mode():
        accuracy = 100 * (model(pictures).argmax(1) == labels).float().mean().item()
    accelerator.print(f"{args.norm}: {accuracy:.1f} % of {len(test)} held-out digits after {steps} steps")
    return accuracy


if __name__ == "__main__":
    main()
