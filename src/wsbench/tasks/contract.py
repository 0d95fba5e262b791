"""What a task has to say: its network's inputs and outputs, its loss, its metrics and its predictions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one pass over an evaluation set."""

    step: int
    n_eval: int
    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    """``{metric: {class: value}}``."""


class TaskContract(ABC):
    """What :class:`~wsbench.tasks.base.BenchmarkTask` asks of a task. Only what is abstract has no default."""

    #: name on the command line
    task: ClassVar[str]
    #: the metric that says which evaluation is best
    monitor: ClassVar[str]
    #: all metrics of an evaluation
    metrics: ClassVar[tuple[str, ...]]
    #: all metrics of training, counted while it runs
    metrics_of_training: ClassVar[tuple[str, ...]] = ()
    #: whether higher ("max") or lower ("min") is better
    mode: ClassVar[Literal["max", "min"]] = "max"
    #: whether a micro-batch's loss is the sum of its samples' own, save for norms that mix samples
    additive_loss: ClassVar[bool] = True

    network: nn.Module

    @classmethod
    def monitored(cls) -> tuple[str, ...]:
        """The names under which callbacks find what is logged."""
        training = ("loss", "lr", *cls.metrics_of_training)
        return (*(f"val/{name}" for name in cls.metrics), *(f"train/{name}" for name in training))

    # -- the network ------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def network_name(self) -> str:
        """The network, as records and tables name it."""

    def backbone(self) -> nn.Module:
        """The part of the network that ``init_from`` initializes."""
        return self.network

    def check_trainer(self, trainer: Trainer) -> None:  # noqa: B027  # a hook: most tasks run under any Trainer
        """Refuse a Trainer that this task cannot run under, before anything is written, by a TaskOptionError."""

    # -- training ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Sum of the loss over the items of a micro-batch, and how many items there were (both 0-d)."""

    @abstractmethod
    def items_in_micro_batch(self, batch: Any) -> float:
        """Items of a micro-batch at most, the same on all devices; it only sets a scale that cancels later."""

    # -- evaluation -------------------------------------------------------------------------------------------------

    @abstractmethod
    def reset_metrics(self) -> None:
        """Drop what :meth:`evaluate` accumulated: a new evaluation begins."""

    @abstractmethod
    def evaluate(self, batch: Any) -> None:
        """Add an evaluation batch to the metrics."""

    @abstractmethod
    def compute_metrics(self) -> tuple[dict[str, float], int]:
        """Metrics over all evaluated samples of all devices, and the number of samples."""

    def per_class(self) -> dict[str, dict[str, float]]:
        """Metrics of single classes, after :meth:`compute_metrics`: ``{metric: {class: value}}``."""
        return {}

    # -- predictions ------------------------------------------------------------------------------------------------

    @abstractmethod
    def write_prediction(self, prediction: dict[str, Any], folder: Path) -> list[Path]:
        """Write the files of a prediction below ``folder``, called ``prediction["name"]``; returns them."""

    def prediction_image(self, prediction: dict[str, Any]) -> Image.Image | None:
        """A prediction drawn, for loggers; None where there is nothing to draw on."""
        return None

    @abstractmethod
    def prediction_row(self, prediction: dict[str, Any]) -> dict[str, Any]:
        """The columns of ``predictions.csv``, the file's name aside."""

    # -- export -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def input_words(self, shape: str) -> str:
        """The network's input for a reader: dtype, ``shape`` and what the values are."""

    def output_names(self) -> tuple[str, ...]:
        """Names of the network's outputs in an exported file."""
        return ("logits",)

    @abstractmethod
    def example_input(self, data: Mapping[str, Any]) -> Any:
        """Random input of the network, of the sizes in the data's options: two samples, or one in a list."""

    def dynamic_sizes(self) -> dict[int, str]:
        """Dimensions of the network's input, beside the batch, that may have another size than the example's."""
        return {}
