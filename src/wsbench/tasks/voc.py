"""DeepLabv3 on PASCAL VOC 2012: Table 7 of the paper."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR
from torchvision.transforms.v2.functional import to_pil_image
from typing_extensions import override

from wsbench.datamodules.palette import VOID, palette_image, voc_palette
from wsbench.models.by_name import is_named
from wsbench.models.deeplabv3 import BACKBONES, DeepLabV3
from wsbench.models.mmseg import MMSegNetwork
from wsbench.norms import ACTIVATIONS
from wsbench.records import write_text_atomically
from wsbench.tasks.base import BenchmarkTask, at_least_float32
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.metrics import Confusion, Counts
from wsbench.tasks.pictures import PictureScale, picture_words


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean over all classes of intersection over union of a confusion matrix (targets by predictions), in [0, 1].

    As the authors compute it: intersection / (union + 1e-10), so a class that neither occurs nor is predicted is 0.
    """
    return ious_of(confusion).mean()


def ious_of(confusion: Tensor) -> Tensor:
    """Intersection over union of each class of a confusion matrix (targets by predictions), in [0, 1]."""
    confusion = confusion.double()
    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return intersection / (union + 1e-10)


class VOCSegmentation(BenchmarkTask):
    """Semantic segmentation.

    Args:
        network: ``deeplabv3_resnet101``, ``deeplabv3_resnet50``, ``deeplabv3_resnet_small``, ``deeplabv3_resnet_mini``,
            ``deeplabv3_timm:NAME``, ``deeplabv3_torchvision:NAME`` (a ResNet), or ``mmseg:<config name>``.
        num_classes: classes including background; follows --data.num_classes.
        output_stride: of DeepLabv3's backbone.
        aspp_rates: dilations of the ASPP.
        aspp_width: channels of the ASPP.
        bn_momentum: of BN in the backbone (PyTorch's convention).
        aspp_bn_momentum: of BN in the ASPP.
        classifier_init: ``authors`` draws the classifier from N(0, sqrt(2 / num_classes)) where there is no weight
            normalization, as their code does, and leaves PyTorch's default where there is; ``default`` never does.
        lr: base learning rate.
        head_lr_mult: its factor for everything but the backbone.
        momentum: of SGD.
        weight_decay: on all parameters.
        poly_power: lr (1 - step / max_steps) ^ power.
        kwargs: of :class:`~wsbench.tasks.base.BenchmarkTask`.
    """

    task = "voc"
    monitor = "miou"
    metrics = ("miou", "pixel_accuracy")

    def __init__(
        self,
        network: str = "deeplabv3_resnet101",
        num_classes: int = 21,
        output_stride: int = 16,
        aspp_rates: Sequence[int] = (6, 12, 18),
        aspp_width: int = 256,
        bn_momentum: float = 0.05,
        aspp_bn_momentum: float = 0.0003,
        classifier_init: Literal["authors", "default"] = "authors",
        lr: float = 0.007,
        head_lr_mult: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        poly_power: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._network_name = network
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._head_lr_mult, self._poly_power = head_lr_mult, poly_power
        family, _, rest = network.partition("_")
        try:
            if network.startswith("mmseg:"):
                model: nn.Module | None = MMSegNetwork(network.removeprefix("mmseg:"), num_classes)
            elif family == "deeplabv3" and (rest in BACKBONES or is_named(rest)):
                momenta = (bn_momentum, aspp_bn_momentum)
                model = DeepLabV3(
                    rest, num_classes, output_stride, aspp_rates, aspp_width, *momenta, pretrained=self.pretrained
                )
            else:
                model = None
        except ValueError as error:
            raise TaskOptionError(f"--model: {error}") from error
        if model is None:
            available = ", ".join(f"deeplabv3_{name}" for name in BACKBONES)
            raise TaskOptionError(f"unknown network '{network}'; choose from {available}, deeplabv3_timm:NAME, "
                                  "deeplabv3_torchvision:NAME, or mmseg:<config name>")  # fmt: skip
        self.set_network(model, torch.zeros(1, 3, 65, 65))
        if classifier_init == "authors" and self.spec.weight is None and isinstance(model, DeepLabV3):
            nn.init.normal_(model.classifier.weight, 0.0, math.sqrt(2.0 / num_classes))
        self.palette: list[int] = voc_palette()
        self._ious: dict[str, float] = {}
        self._scale_pictures = PictureScale()
        self.confusion = Confusion(num_classes, ignore=VOID)
        self.evaluated = Counts()

    @property
    def network_name(self) -> str:
        """As on the command line."""
        return self._network_name

    def backbone(self) -> nn.Module:
        """The ResNet."""
        owner: Any = self.network.network if isinstance(self.network, MMSegNetwork) else self.network
        return cast(nn.Module, owner.backbone)

    def definitions(self) -> dict[str, str]:
        """How the loss is weighted, what mIoU is."""
        definitions = super().definitions() | {
            "loss": "cross-entropy averaged over the valid pixels of the whole effective batch",
            "miou": "one confusion matrix over the set; classes that do not occur count as 0; single scale",
        }
        if ACTIVATIONS[self.spec.act].facts.bn_momentum:
            definitions["bn"] = "the paper does not say how many images BN saw; here norm_batch"
        return definitions

    def inputs(self, batch: Any) -> Tensor:
        """Normalized images, 0, which is the mean colour, where they are padding."""
        x = self._scale_pictures(batch["image"], next(self.network.parameters()))
        height, width = batch["size"].view(-1, 2, 1, 1).unbind(1)
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
        inside = (rows[:, None] < height) & (columns < width)
        return x.mul_(inside[:, None])

    def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over valid pixels, and their number."""
        mask = batch["mask"].long()
        logits = at_least_float32(self.network(self.inputs(batch)))
        # summed here: on a GPU the loss that sums by itself has no deterministic form
        losses = F.cross_entropy(logits, mask, ignore_index=VOID, reduction="none")
        return losses.sum(), (mask != VOID).sum()

    def items_in_micro_batch(self, batch: Any) -> float:
        """Pixels of a micro-batch."""
        return float(batch["mask"].numel())

    @override
    def reset_metrics(self) -> None:
        self.confusion.reset()
        self.evaluated.reset()

    def evaluate(self, batch: Any) -> None:
        """Count pixels into the confusion matrix."""
        logits = self.require_finite(self.network(self.inputs(batch)))
        self.confusion.update(logits.argmax(1), batch["mask"].long())
        self.evaluated.update(len(batch["image"]))

    def compute_metrics(self) -> tuple[dict[str, float], int]:
        """MIoU and pixel accuracy in percent."""
        confusion = self.confusion.compute().cpu()
        accuracy = confusion.diagonal().sum() / confusion.sum().clamp(min=1)
        ious = (100 * ious_of(confusion)).tolist()
        self._ious = {self.class_name(i): round(value, 4) for i, value in enumerate(ious)}
        values = {"miou": 100 * float(mean_iou(confusion)), "pixel_accuracy": 100 * float(accuracy)}
        return values, int(self.evaluated.compute())

    @override
    def input_words(self, shape: str) -> str:
        return picture_words(shape)

    @override
    def dynamic_sizes(self) -> dict[int, str]:
        return {2: "height", 3: "width"}

    def example_input(self, data: Mapping[str, Any]) -> Tensor:
        """(2, 3, crop, crop)."""
        return torch.randn(2, 3, data.get("crop", 513), data.get("crop", 513))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """A picture's mask, uint8 (H, W), cut back to the image."""
        height, width = batch["size"][0].tolist()
        logits = self.require_finite_prediction(self.network(self.inputs(batch)), batch)
        mask = logits[0, :, :height, :width].argmax(0)
        image = batch["image"][0, :, :height, :width].cpu()
        return {"path": batch["path"], "name": batch["name"], "image": image, "mask": mask.to(torch.uint8).cpu()}

    def _shares(self, mask: Tensor) -> dict[str, float]:
        """Of the image's area, the share of each class that was found, the largest first."""
        counts = torch.bincount(mask.flatten().long())
        shares = {self.class_name(i): round(float(n) / mask.numel(), 6) for i, n in enumerate(counts.tolist()) if n}
        return dict(sorted(shares.items(), key=lambda entry: -entry[1]))

    def prediction_row(self, prediction: dict[str, Any]) -> dict[str, Any]:
        """The class of the largest area, and its share."""
        name, value = next(iter(self._shares(prediction["mask"]).items()))
        return {"class": name, "share": value}

    def write_prediction(self, prediction: dict[str, Any], folder: Path) -> list[Path]:
        """Write ``NAME.png``, the mask in the data's colours, ``NAME_overlay.jpg`` and ``NAME.json``."""
        name = prediction["name"]
        classes = prediction["mask"].numpy()
        mask = palette_image(classes, self.palette)
        paths = [folder / f"{name}.png", folder / f"{name}_overlay.jpg", folder / f"{name}.json"]
        content = {"file": prediction["path"], "classes": self._shares(prediction["mask"])}
        write_text_atomically(paths[2], json.dumps(content, indent=1) + "\n")
        mask.save(paths[0])
        self.prediction_image(prediction).save(paths[1], quality=92)
        return paths

    def prediction_image(self, prediction: dict[str, Any]) -> Image.Image:
        """The mask over the image; class 0 is left clear."""
        classes = prediction["mask"].numpy()
        image: Image.Image = to_pil_image(prediction["image"])
        mask = palette_image(classes, self.palette)
        overlay = Image.blend(image, mask.convert("RGB"), 0.6)
        return Image.composite(overlay, image, Image.fromarray((classes > 0).astype("uint8") * 255))

    def per_class(self) -> dict[str, dict[str, float]]:
        """IoU of each class, in percent."""
        return {"iou": self._ious}

    def on_fit_start(self) -> None:
        """Take the colours of the data, too."""
        super().on_fit_start()
        module = getattr(self.trainer, "datamodule", None)
        self.palette = list(getattr(module, "palette", self.palette))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the colours, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["palette"] = self.palette

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.palette = list(checkpoint.get("palette", self.palette))

    def check_trainer(self, trainer: Trainer) -> None:
        """The poly schedule falls to zero at the end."""
        if trainer.max_steps <= 0 and (trainer.max_epochs or 0) <= 0:
            raise TaskOptionError("the poly schedule needs an end: --trainer.max_steps or --trainer.max_epochs")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with weight decay on everything; the learning rate falls polynomially, step by step."""
        steps = self.total_steps()
        assert steps is not None
        backbone = {id(p) for p in self.backbone().parameters()}
        lr = self._lr
        groups = [
            {"params": [p for p in self.network.parameters() if id(p) in backbone], "lr": lr},
            {"params": [p for p in self.network.parameters() if id(p) not in backbone], "lr": lr * self._head_lr_mult},
        ]
        optimizer = SGD(groups, lr=lr, momentum=self._momentum, weight_decay=self._weight_decay)
        schedule = PolynomialLR(optimizer, total_iters=steps, power=self._poly_power)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
