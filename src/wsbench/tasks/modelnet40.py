"""DGCNN on ModelNet40: Table 8 of the paper."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, Optimizer
from typing_extensions import override

from wsbench.datamodules.clouds import rotation_about_y
from wsbench.extras import plotly
from wsbench.models.dgcnn import DGCNN, DGCNN_FORMS
from wsbench.norms.facts import facts_of
from wsbench.tasks.classification import Classification
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.metrics import Confusion
from wsbench.tasks.schedules import by_step


def tensorflow_rate(samples: int, lr: float, decay_samples: int = 200_000, rate: float = 0.7) -> float:
    """Learning rate after so many samples: a staircase with a floor of 1e-5 (train.py of csrhddlam/dgcnn)."""
    return max(float(lr * rate ** (samples // decay_samples)), 1e-5)


def tensorflow_bn_momentum(samples: int, decay_samples: int = 200_000) -> float:
    """BN's momentum in PyTorch's convention after so many samples: 1 - min(0.99, 1 - 0.5 * 0.5^floor)."""
    return max(0.01, 0.5 * 0.5 ** (samples // decay_samples))


class ModelNetClassification(Classification):
    """Point-cloud classification. The paper's GN has 16 groups here: ``--norm gn16``.

    Args:
        network: ``dgcnn_tf``, the paper's, or ``dgcnn``, the PyTorch release.
        num_classes: classes; follows --data.num_classes.
        k: neighbours.
        width: factor on DGCNN's channels, for small networks.
        dropout: behind the hidden linear layers.
        label_smoothing: of the cross-entropy. The PyTorch release's 0.2 is 0.2 * 40 / 39 in this convention.
        optimizer: ``adam`` or ``sgd`` (momentum 0.9).
        lr: base learning rate.
        weight_decay: on all parameters; none in the paper's code.
        schedule: ``staircase``: times 0.7 every 200,000 samples, not below 1e-5; ``cosine``: to
            ``lr_end`` at the end, epoch by epoch.
        lr_end: of the cosine.
        bn_decay: BN's momentum falls with the samples seen, as in the paper's code; false: it stays 0.1.
        votes: turns about the vertical axis whose logits are summed in evaluation; 12 in the authors' evaluate.py.
        kwargs: of :class:`~wsbench.tasks.base.BenchmarkTask`.
    """

    task = "modelnet40"
    monitor = "overall_acc"
    metrics = ("overall_acc", "mean_class_acc")
    metrics_of_training = ("overall_acc",)
    input_key = "cloud"

    def __init__(
        self,
        network: str = "dgcnn_tf",
        num_classes: int = 40,
        k: int = 20,
        width: float = 1.0,
        dropout: float = 0.5,
        label_smoothing: float = 0.2,
        optimizer: Literal["adam", "sgd"] = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["staircase", "cosine"] = "staircase",
        lr_end: float = 1e-3,
        bn_decay: bool = True,
        votes: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, **kwargs)
        if network not in DGCNN_FORMS:
            raise TaskOptionError(f"unknown network '{network}'; choose from {', '.join(DGCNN_FORMS)}")
        self._network_name, self._optimizer, self._lr, self._weight_decay = network, optimizer, lr, weight_decay
        self._schedule, self._lr_end, self._bn_decay, self._votes = schedule, lr_end, bn_decay, votes
        model = DGCNN(network, num_classes, k, dropout, width)  # type: ignore[arg-type]
        with model.hold_edges():
            self.set_network(model, torch.zeros(2, max(k, 2), 3))
        self.confusion = Confusion(num_classes)
        self._recalls: dict[str, float] = {}

    @property
    def network_name(self) -> str:
        """As on the command line."""
        return self._network_name

    def definitions(self) -> dict[str, str]:
        """What the paper does not say."""
        return super().definitions() | {
            "overall_acc": f"over every test shape, {'no' if self._votes == 1 else self._votes} votes",
            "mean_class_acc": "mean of the classes' recalls, over classes that occur",
        }

    def check_trainer(self, trainer: Any) -> None:
        """The cosine needs to know where it ends; Adam divides by roots of squares that float16 cannot hold."""
        if self._optimizer == "adam" and trainer.precision == "16-true":
            raise TaskOptionError(
                "--trainer.precision 16-true: Adam's squared gradients vanish in float16, and a step would divide by "
                "zero; use 16-mixed or bf16-true, or --model.optimizer sgd"
            )
        if self._schedule == "cosine" and trainer.max_steps <= 0 and (trainer.max_epochs or 0) <= 0:
            raise TaskOptionError("the cosine schedule needs --trainer.max_epochs or --trainer.max_steps")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set BN's momentum by the samples seen."""
        super().on_train_batch_start(batch, batch_idx)
        if self._bn_decay:
            momentum = tensorflow_bn_momentum(self.global_step * self.batch_numbers().effective_batch)
            module: Any
            for module in self.network.modules():
                if isinstance(module, _BatchNorm) or facts_of(module).bn_momentum:
                    module.momentum = momentum

    # -- metrics ----------------------------------------------------------------------------------------------------

    def training_hits(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Clouds of the batch that are classified right, times 100."""
        return {"overall_acc": 100 * (logits.argmax(1) == labels).sum()}

    @override
    def reset_metrics(self) -> None:
        self.confusion.reset()

    def voted_logits(self, batch: Any) -> Tensor:
        """Logits summed over turns about the vertical axis."""
        clouds = self.inputs(batch)
        if self._votes == 1:
            return self.logits(batch)
        turns = [rotation_about_y(2 * math.pi * v / self._votes).to(clouds) for v in range(self._votes)]
        return torch.stack([self.network(clouds @ turn) for turn in turns]).sum(0)

    def evaluate(self, batch: Any) -> None:
        """Count into the confusion matrix."""
        self.confusion.update(self.require_finite(self.voted_logits(batch)).argmax(1), batch["label"])

    def compute_metrics(self) -> tuple[dict[str, float], int]:
        """Overall and mean class accuracy in percent."""
        confusion = self.confusion.compute().cpu().double()  # small, and what follows depends on its values
        present = confusion.sum(1) > 0
        recalls = confusion.diagonal()[present] / confusion.sum(1)[present]
        numbers = present.nonzero().flatten().tolist()
        self._recalls = {self.class_name(n): round(100 * r, 4) for n, r in zip(numbers, recalls.tolist(), strict=True)}
        overall = confusion.diagonal().sum() / confusion.sum()
        values = {"overall_acc": 100 * float(overall), "mean_class_acc": 100 * float(recalls.mean())}
        return values, int(confusion.sum())

    def per_class(self) -> dict[str, dict[str, float]]:
        """Recall of each class that occurs, in percent."""
        return {"recall": self._recalls}

    # -- predictions ------------------------------------------------------------------------------------------------

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The most probable classes of a cloud, and the cloud."""
        return super().predict_step(batch, batch_idx) | {"cloud": batch["cloud"][0].cpu()}

    def write_prediction(self, prediction: dict[str, Any], folder: Path) -> list[Path]:
        """Write ``NAME.json``, and ``NAME.html``, the cloud to turn with the mouse; ``plotly.min.js`` lies beside."""
        written = super().write_prediction(prediction, folder)
        go = plotly()
        x, z, y = prediction["cloud"].T.tolist()  # plotly's z is up, ModelNet's y
        marker = {"size": 2.5, "color": y, "colorscale": "Viridis"}
        best = ", ".join(f"{name} {100 * p:.1f} %" for name, p in list(prediction["classes"].items())[:3])
        figure = go.Figure(go.Scatter3d(x=x, y=z, z=y, mode="markers", marker=marker, hoverinfo="skip"))
        figure.update_layout(title=f"{Path(prediction['path']).name}: {best}", scene={"aspectmode": "data"})
        page = folder / f"{prediction['name']}.html"
        figure.write_html(page, include_plotlyjs="directory")
        return [*written, page]

    @override
    def input_words(self, shape: str) -> str:
        return f"float32 ({shape}): x, y, z in the unit sphere, y up"

    def example_input(self, data: Mapping[str, Any]) -> Tensor:
        """(2, points, 3)."""
        return torch.rand(2, data.get("points", 1024), 3) * 2 - 1

    def folded(self, example: Tensor) -> nn.Module:
        """On edges, where BN follows the convolutions and nothing but plain operations is used."""
        network: DGCNN = self.network  # type: ignore[assignment]
        with network.hold_edges():
            return super().folded(example)

    # -- optimizer --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam and a staircase in samples (the paper), or SGD and a cosine (the PyTorch release)."""
        parameters = self.network.parameters()
        if self._optimizer == "adam":
            optimizer: Optimizer = Adam(parameters, lr=self._lr, weight_decay=self._weight_decay)
        else:
            optimizer = SGD(parameters, lr=self._lr, momentum=0.9, weight_decay=self._weight_decay)
        batch = self.batch_numbers().effective_batch
        if self._schedule == "staircase":
            return by_step(optimizer, lambda step: tensorflow_rate(step * batch, self._lr) / self._lr)  # type: ignore[return-value]
        per_epoch = self.steps_in_epoch()
        epochs = (self.total_steps() or 0) / per_epoch
        end = self._lr_end / self._lr

        def cosine(step: int) -> float:
            return end + (1 - end) * (1 + math.cos(math.pi * min(1, step // per_epoch / epochs))) / 2

        return by_step(optimizer, cosine)  # type: ignore[return-value]
