"""A LightningModule of your own, one image at a time: normalize it, and let a callback handle the window.

python examples/lightning_loop.py [--norm gn+ws] [--steps 150]
"""

import argparse

import torch
from bare_loop import ACCUMULATE, network
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from wsbench.norms import normalize
from wsbench.tasks.window import WindowCallback


class Digits(LightningModule):
    """A classifier; nothing in it knows of the norm."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.network = network()
        print(normalize(self.network, norm, example=torch.zeros(2, 1, 8, 8)).summary())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one image."""
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy, in percent."""
        images, labels = batch
        self.log("accuracy", 100 * (self.network(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main() -> float:
    """Returns the accuracy on held-out digits, in percent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--norm", default="gn+ws")
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()

    seed_everything(0, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    data = TensorDataset(images, torch.tensor(digits.target))
    train, test = torch.utils.data.random_split(data, [1400, len(data) - 1400])
    model = Digits(args.norm)
    trainer = Trainer(
        max_steps=args.steps, accumulate_grad_batches=ACCUMULATE, callbacks=[WindowCallback()], accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(train, batch_size=1, shuffle=True))
    (metrics,) = trainer.validate(model, DataLoader(test, batch_size=len(test)), verbose=False)
    print(f"{args.norm}: {metrics['accuracy']:.1f} % of {len(test)} held-out digits after {args.steps} steps")
    return float(metrics["accuracy"])


if __name__ == "__main__":
    main()
