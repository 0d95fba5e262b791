"""What the three classification tasks share: cross-entropy, running training metrics, class order, predictions."""

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from typing_extensions import override

from wsbench.records import MetricValue, write_text_atomically
from wsbench.tasks.base import BenchmarkTask, at_least_float32
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.metrics import Counts

#: pixels: the width of images that are drawn for loggers, and the height of a line below them
_SHOWN, _LINE = 224, 14


class Classification(BenchmarkTask):
    """Classification of samples; batches hold the network's input and ``label`` (N,).

    Args:
        label_smoothing: of the cross-entropy.
        kwargs: of :class:`~wsbench.tasks.base.BenchmarkTask`.
    """

    #: the network's input in a batch
    input_key: ClassVar[str]

    def __init__(self, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing < 1:
            raise TaskOptionError(f"--model.label_smoothing must be in [0, 1), got {label_smoothing}")
        self._label_smoothing = label_smoothing
        self._training_hits: dict[str, float | Tensor] = {}
        self._training_count = 0

    def inputs(self, batch: Any) -> Tensor:
        """The network's input from a batch."""
        x: Tensor = batch[self.input_key]
        return x

    def logits(self, batch: Any) -> Tensor:
        """(N, num_classes)."""
        out: Tensor = self.network(self.inputs(batch))
        return out

    def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over samples, and their number."""
        logits, labels = at_least_float32(self.logits(batch)), batch["label"]
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self._label_smoothing)
        self._count_training(logits.detach(), labels)
        return total, logits.new_full((), len(labels), dtype=torch.float32)  # not in the dtype of autocast

    # -- metrics ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def training_hits(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Metrics of a training batch as sums over its samples of a value in percent."""

    def _count_training(self, logits: Tensor, labels: Tensor) -> None:
        for name, total in self.training_hits(logits, labels).items():
            self._training_hits[name] = self._training_hits.get(name, 0) + total
        self._training_count += len(labels)

    def on_train_epoch_start(self) -> None:
        """The training metrics of an epoch begin."""
        self._training_hits, self._training_count = {}, 0

    def _training_sums(self) -> tuple[list[str], list[float]]:
        """Names of the training metrics, and their sums over all devices, the number of samples last."""
        names = sorted(self._training_hits)
        sums = [torch.as_tensor(self._training_hits[n], dtype=torch.float64).cpu() for n in names]
        sums.append(torch.tensor(self._training_count, dtype=torch.float64))
        over_all = self.trainer.strategy.reduce(torch.stack(sums).to(self.device), reduce_op="sum")
        return names, over_all.tolist()

    def on_train_epoch_end(self) -> None:
        """Log the training metrics of the epoch: of the weights as they were while it ran, on augmented samples."""
        if not self._training_count:  # a run that is resumed at its end trains nothing
            return
        names, (*sums, whole) = self._training_sums()
        values = {n: total / whole for n, total in zip(names, sums, strict=True)}
        count = int(whole)
        self._training_hits, self._training_count = {}, 0
        self.training_metrics = {
            f"train_{n}": MetricValue(value=round(v, 4), n_eval=count, step=self.global_step) for n, v in values.items()
        }
        self._write_log({f"train/{n}": v for n, v in values.items()}, self.global_step)
        sign = 1 if self.mode == "max" else -1
        best = self.best_training_metrics.get(f"train_{self.monitor}")
        if best is None or sign * values[self.monitor] > sign * best.value:
            self.best_training_metrics = self.training_metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the training metrics too, and what there is of an epoch that has begun."""
        super().on_save_checkpoint(checkpoint)
        if self.attached_trainer is not None and self.attached_trainer.training and self._training_count:
            checkpoint["training_sums"] = self._training_sums()
        checkpoint["training_metrics"] = {
            "last": {n: m.model_dump() for n, m in self.training_metrics.items()},
            "best": {n: m.model_dump() for n, m in self.best_training_metrics.items()},
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "training_sums" in checkpoint and self.attached_trainer is not None:
            names, (*sums, whole) = checkpoint["training_sums"]
            if self.attached_trainer.global_rank:  # they are of all devices
                sums, whole = [0.0] * len(names), 0
            self._training_hits, self._training_count = dict(zip(names, sums, strict=True)), int(whole)
        stored = checkpoint.get("training_metrics", {})
        self.training_metrics = {n: MetricValue(**m) for n, m in stored.get("last", {}).items()}
        self.best_training_metrics = {n: MetricValue(**m) for n, m in stored.get("best", {}).items()}

    # -- predictions ------------------------------------------------------------------------------------------------

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The five most probable classes of a sample."""
        logits = self.require_finite_prediction(self.logits(batch), batch)
        probabilities = logits[0].float().softmax(0)
        best = probabilities.topk(min(5, len(probabilities)))
        names = [self.class_name(i) for i in best.indices.tolist()]
        scores = dict(zip(names, best.values.tolist(), strict=True))
        return {"path": batch["path"], "name": batch["name"], "classes": scores, "image": self.image_of(batch)}

    def image_of(self, batch: dict[str, Any]) -> Tensor | None:
        """The sample of a prediction as an image, uint8 (3, H, W); None where it is none."""
        return None

    def prediction_image(self, prediction: dict[str, Any]) -> Image.Image | None:
        """The image as the network saw it; below it the most probable classes, and the file."""
        if prediction["image"] is None:
            return None
        image: Image.Image = to_pil_image(prediction["image"].cpu())
        image = image.resize((_SHOWN, round(_SHOWN * image.height / image.width)))
        lines = [f"{name[:34]} {100 * value:.0f} %" for name, value in list(prediction["classes"].items())[:2]]
        lines.append("/".join(Path(prediction["path"]).parts[-2:])[-40:])
        drawn = Image.new("RGB", (image.width, image.height + _LINE * len(lines)), "white")
        drawn.paste(image)
        for i, line in enumerate(lines):
            ImageDraw.Draw(drawn).text((2, image.height + _LINE * i), line, "black")
        return drawn

    def write_prediction(self, prediction: dict[str, Any], folder: Path) -> list[Path]:
        """Write ``NAME.json``: the file, and its five most probable classes with their probabilities."""
        path = folder / f"{prediction['name']}.json"
        classes = {name: round(value, 6) for name, value in prediction["classes"].items()}
        write_text_atomically(path, json.dumps({"file": prediction["path"], "classes": classes}, indent=1) + "\n")
        return [path]

    def prediction_row(self, prediction: dict[str, Any]) -> dict[str, Any]:
        """The most probable class and its probability."""
        name, value = next(iter(prediction["classes"].items()))
        return {"class": name, "probability": round(value, 6)}


class TopK(Classification):
    """Classification measured by its best and its five best guesses.

    Args:
        num_classes: classes.
        kwargs: of :class:`Classification`.
    """

    #: names of the metrics, and whether they count misses
    top1: ClassVar[str]
    top5: ClassVar[str]
    errors: ClassVar[bool]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: of each class: samples, right best guesses, right answers among the five best
        self.class_hits = Counts(num_classes, 3)
        self._classes_right: dict[str, float] = {}

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, 5), or as many as there are classes: whether a guess is right, the best guess first."""
        return logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]

    def _percent(self, hits: Any, count: Any) -> Any:
        return 100 * ((count - hits) if self.errors else hits)

    def training_hits(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Top-1 and top-5."""
        right = self._right(logits, labels)
        hits = (right[:, 0].sum(), right.sum())
        return {n: self._percent(h, len(labels)) for n, h in zip((self.top1, self.top5), hits, strict=True)}

    @override
    def reset_metrics(self) -> None:
        self.class_hits.reset()

    @override
    def evaluate(self, batch: Any) -> None:
        logits, labels = self.require_finite(self.logits(batch)), batch["label"]
        right = self._right(logits, labels)
        hits = torch.stack([torch.ones_like(labels), right[:, 0].long(), right.sum(1)], 1)
        self.class_hits.update(torch.zeros_like(self.class_hits.counts).index_add_(0, labels, hits))

    def compute_metrics(self) -> tuple[dict[str, float], int]:
        """Top-1 and top-5 in percent."""
        counts = self.class_hits.compute().cpu()
        self._classes_right = {
            self.class_name(i): round(100 * hits / number, 4) for i, (number, hits, _) in enumerate(counts.tolist())
            if number
        }  # fmt: skip
        count, *hits = counts.sum(0).tolist()
        values = [self._percent(hit, count) / count for hit in hits]
        return dict(zip((self.top1, self.top5), values, strict=True)), count

    def per_class(self) -> dict[str, dict[str, float]]:
        """Share of each class's samples whose best guess is right, in percent."""
        return {"top1_acc": self._classes_right}
