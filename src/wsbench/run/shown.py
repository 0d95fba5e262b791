"""Predictions of a few evaluation samples as images, in the loggers that take images, after every evaluation."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image


class ShownPredictions(Callback):
    """Predicts the same few evaluation samples after each evaluation, on the first device, and logs them as images.

    A logger that takes no images, data without files of its samples, and a task without images of its predictions
    (point clouds) are left alone. Nothing of the run depends on it: it draws no random number and moves no statistics.

    Args:
        count: of samples, spread evenly over the evaluation set.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict and log."""
        task: Any = pl_module
        log = [(logger, _LOG[type(logger)]) for logger in trainer.loggers if type(logger) in _LOG]
        if trainer.sanity_checking or trainer.global_rank or not log:
            return
        data: Any = getattr(trainer, "datamodule", None)
        samples: Any = data.shown_samples(self.count) if hasattr(data, "shown_samples") else None
        for i in range(0 if samples is None else len(samples)):
            # a compiled network would be compiled again for a batch of one
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                batch = task.transfer_batch_to_device(data.collate_prediction([samples[i]]), task.device, 0)
                with trainer.precision_plugin.forward_context():
                    prediction = task.predict_step(batch, i)
            image = task.prediction_image(prediction)
            if image is None:
                return
            for logger, into in log:
                into(logger, prediction["name"], image, trainer.global_step)


def _tensorboard(logger: Any, name: str, image: Image.Image, step: int) -> None:
    logger.experiment.add_image(f"predictions/{name}", np.asarray(image), step, dataformats="HWC")


def _wandb(logger: Any, name: str, image: Image.Image, step: int) -> None:
    import wandb

    logger.log_metrics({f"predictions/{name}": wandb.Image(image)}, step)


def _mlflow(logger: Any, name: str, image: Image.Image, step: int) -> None:
    safe = re.sub(r"[^\w\-. ]", "-", name, flags=re.ASCII)  # MLflow takes no other characters
    logger.experiment.log_image(logger.run_id, image, key=f"predictions-{safe}", step=step)


#: how a logger takes an image
_LOG: dict[type[Logger], Callable[[Any, str, Image.Image, int], None]] = {
    TensorBoardLogger: _tensorboard, WandbLogger: _wandb, MLFlowLogger: _mlflow,
}  # fmt: skip
