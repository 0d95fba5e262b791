"""Mask R-CNN and Faster R-CNN on COCO: Tables 4 and 5 and Fig. 6 of the paper."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO as Annotations
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks
from typing_extensions import override

from wsbench.datamodules.coco import COCO, CocoDataset
from wsbench.models.by_name import is_named
from wsbench.models.detection import (
    DETECTORS,
    DIFFERENCES,
    TORCHVISION_ANCHOR_DIFFERENCES,
    DetectorSettings,
    DetectorTransform,
    build_detector,
    freeze,
    keep_all_boxes,
)
from wsbench.models.resnet import RESNETS
from wsbench.norms import ACTIVATIONS
from wsbench.records import write_text_atomically
from wsbench.tasks.base import BenchmarkTask
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.schedules import StepFactor, by_step

#: the twelve figures in the order of pycocotools' stats, named as in the paper's tables
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe", "#008080")


#: pastes masks and encodes them behind the device's back; one thread, since torch's operations use all cores
_LATER = ThreadPoolExecutor(1, "wsbench-detections")


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Boolean masks (n, H, W) to COCO's run lengths."""
    stacked = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    encoded = rle.encode(stacked)
    return [{"size": e["size"], "counts": e["counts"].decode("ascii")} for e in encoded]


def detections(output: dict[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One picture's detections in COCO's results format; with a ``segmentation`` if there are masks."""
    boxes = output["boxes"].float().cpu()
    sizes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    labels, scores = output["labels"].tolist(), output["scores"].float().tolist()
    rows: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(sizes, labels, scores, strict=True)
    ]
    if "masks" in output:
        for detection, mask in zip(rows, encode(output["masks"][:, 0] > 0.5) if rows else [], strict=True):
            detection["segmentation"] = mask
    return rows


def average_precision(
    truth: Annotations, detected: list[dict[str, Any]], image_ids: Sequence[int], kind: str
) -> dict[str, float]:
    """COCO's twelve figures, as :func:`figures`."""
    return figures(truth, detected, image_ids, kind)[0]


def figures(
    truth: Annotations, detected: list[dict[str, Any]], image_ids: Sequence[int], kind: str
) -> tuple[dict[str, float], dict[int, float]]:
    """COCO's twelve figures in percent, by pycocotools, and AP of each category; what has no object is left out.

    Args:
        truth: the annotations.
        detected: detections of all images.
        image_ids: the images that were looked at.
        kind: ``box`` or ``mask``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if detected:
            # beside a box pycocotools takes a detection's area from it, and masks would be sorted by size wrongly
            unwanted = "bbox" if kind == "mask" else "segmentation"
            results = truth.loadRes([{k: v for k, v in f.items() if k != unwanted} for f in detected])
        else:  # loadRes refuses an empty list
            results = Annotations()
            results.dataset = {**truth.dataset, "annotations": []}
            results.createIndex()
        evaluation = COCOeval(truth, results, {"box": "bbox", "mask": "segm"}[kind])
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {f"{kind}_{n}": 100 * float(v) for n, v in zip(FIGURES, evaluation.stats, strict=True) if v > -1}
    # (IoU thresholds, recalls, categories, areas, numbers of detections): all areas, 100 detections; -1 is no object
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    single = {
        category: 100 * float(precision[:, :, i].mean())
        for i, category in enumerate(evaluation.params.catIds)
        if precision[:, :, i].max() > -1
    }
    return values, single


class COCODetection(BenchmarkTask):
    """Object detection and instance segmentation; ``--norm frozenbn`` is the detectors' usual frozen BN.

    Args:
        network: ``mask_rcnn_`` or ``faster_rcnn_`` and a ResNet, for instance ``mask_rcnn_resnet50``, or a network of
            timm's or a ResNet of torchvision's, ``mask_rcnn_timm:resnet18``.
        num_classes: classes, background not counted; follows --data.num_classes.
        trainable_layers: parts of the body (stem, layer1 ... layer4), counted from the end, that are trained.
        width: channels of FPN and heads.
        head_convs: 3x3 convolutions in each head.
        fc_width: of the box head's linear layer.
        anchor_size: of the finest level in pixels.
        min_size: shorter side that images are resized to.
        max_size: limit of the longer side.
        proposals: kept of an image in training. The authors kept 2,000 of a batch, so 1,000 is 2 images per device.
        rois: sampled of an image for the heads.
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: on parameters that are no bias.
        bias_lr_mult: factor of the rate of biases, a norm's too; they do not decay.
        milestones: optimizer steps before which the rate falls by 10; values below 1 are shares of the whole run.
        anchors: ``reference``: as maskrcnn-benchmark lays and uses them; ``torchvision``: as torchvision does.
        warmup_steps: of the linear warm-up from a third.
        kwargs: of :class:`~wsbench.tasks.base.BenchmarkTask`.
    """

    task = "coco"
    monitor = "box_AP"
    metrics = tuple(f"{kind}_{name}" for kind in ("box", "mask") for name in FIGURES)
    additive_loss = False  # a micro-batch's anchors and regions are drawn and counted together

    def __init__(
        self,
        network: str = "mask_rcnn_resnet50",
        num_classes: int = 80,
        trainable_layers: int = 3,
        width: int = 256,
        head_convs: int = 4,
        fc_width: int = 1024,
        anchor_size: int = 32,
        min_size: int = 800,
        max_size: int = 1333,
        proposals: int = 1000,
        rois: int = 512,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        bias_lr_mult: float = 2.0,
        milestones: Sequence[float] = (300_000, 340_000),
        warmup_steps: int = 500,
        anchors: Literal["reference", "torchvision"] = "reference",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._network_name = network
        self._lr, self._momentum, self._weight_decay, self._bias_lr_mult = lr, momentum, weight_decay, bias_lr_mult
        self._milestones, self._warmup_steps = milestones, warmup_steps
        kind = next((d for d in DETECTORS if network.startswith(f"{d}_")), "")
        backbone = network.removeprefix(f"{kind}_")
        if not kind or not (is_named(backbone) or backbone in RESNETS):
            raise TaskOptionError(
                f"unknown network '{network}'; choose one of {', '.join(f'{d}_' for d in DETECTORS)} and one of "
                f"{', '.join(RESNETS)}, timm:NAME or torchvision:NAME"
            )
        self.has_masks = kind == "mask_rcnn"
        try:
            settings = DetectorSettings(
                trainable_layers, width, head_convs, fc_width, anchor_size, min_size, max_size, proposals, rois, anchors
            )
            model = build_detector(
                backbone, num_classes + 1, self.has_masks, settings,
                normalized_heads=not ACTIVATIONS[self.spec.act].facts.fixed, pretrained=self.pretrained,
            )  # fmt: skip
        except ValueError as error:
            raise TaskOptionError(f"--model: {error}") from error
        transform, small = model.transform, (128,)
        before, transform.min_size = transform.min_size, small
        with keep_all_boxes(model):
            self.set_network(model, [torch.rand(3, 128, 128)])
        transform.min_size = before
        self._frozen = freeze(model, trainable_layers)  # again: the specification may have brought new parameters
        self._found: list[Future[list[dict[str, Any]]]] = []
        self._seen: list[int] = []
        self._aps: dict[str, dict[str, float]] = {}
        self._anchors = anchors
        self._differences = DIFFERENCES + (TORCHVISION_ANCHOR_DIFFERENCES if anchors == "torchvision" else ())

    @property
    def network_name(self) -> str:
        """As on the command line."""
        return self._network_name

    def backbone(self) -> nn.Module:
        """The body: the ResNet without the FPN."""
        body: nn.Module = self.network.backbone.body  # type: ignore[union-attr, assignment]
        return body

    def check_trainer(self, trainer: Trainer) -> None:
        """Boxes need the digits of float32."""
        if trainer.precision in ("bf16-true", "16-true"):
            raise TaskOptionError(
                f"--trainer.precision {trainer.precision}: half precision cannot tell a box's pixels apart, and "
                "torchvision's RoIAlign wants boxes and features of one dtype; use "
                f"{str(trainer.precision).replace('true', 'mixed')}"
            )

    def definitions(self) -> dict[str, str]:
        """How the loss is weighted, and where torchvision's parts differ from the authors' code."""
        return super().definitions() | {
            "loss": "each micro-batch's loss is a ratio over its sampled anchors and regions; the step takes their "
            "mean, weighted by images, so N images at once and one at a time weigh their regions differently",
            "box_AP": "pycocotools on all evaluation images, 100 detections per image, original resolution",
            "detector": f"torchvision's, {self._anchors} anchors; {'; '.join(self._differences)}; "
            "frozen parts use BN's running statistics",
        }

    def train(self, mode: bool = True) -> "COCODetection":
        """Frozen parts stay in evaluation mode: their BN uses its running statistics and does not move them."""
        super().train(mode)
        for part in getattr(self, "_frozen", ()):
            part.eval()
        return self

    # -- training ---------------------------------------------------------------------------------------------------

    def _floats(self, pictures: list[Tensor]) -> list[Tensor]:
        wide = torch.promote_types(next(self.network.parameters()).dtype, torch.float32)
        return [picture.to(wide) / 255 for picture in pictures]

    def loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The detector's five losses (four without masks), times images, and their number."""
        losses = self.network(self._floats(batch["images"]), batch["targets"])
        total = torch.stack(list(losses.values())).sum()
        count = len(batch["images"])
        return total * count, total.new_full((), count)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD: biases at twice the rate and without decay; warm-up, then steps."""
        named = [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        biases = [p for n, p in named if "bias" in n]
        weights = [p for n, p in named if "bias" not in n]
        groups: list[dict[str, Any]] = [
            {"params": weights, "lr": self._lr, "weight_decay": self._weight_decay, "name": "weight"},
            {"params": biases, "lr": self._lr * self._bias_lr_mult, "weight_decay": 0.0, "name": "bias"},
        ]
        optimizer = SGD(groups, lr=self._lr, momentum=self._momentum)
        whole = self.total_steps()
        if whole is None and any(m < 1 for m in self._milestones):
            raise TaskOptionError(f"--model.milestones {list(self._milestones)} are shares of a run that has no end")
        milestones = [round(m * (whole or 0)) if m < 1 else int(m) for m in self._milestones]
        factor = StepFactor(milestones, warmup_steps=self._warmup_steps)
        return by_step(optimizer, factor)  # type: ignore[return-value]

    # -- evaluation -------------------------------------------------------------------------------------------------

    @override
    def reset_metrics(self) -> None:
        self._found, self._seen = [], []

    @override
    def evaluate(self, batch: Any) -> None:
        categories = self._truth()[1]
        for picture, target in zip(batch["images"], batch["targets"], strict=True):
            # one at a time: beside a larger image it would be padded, and GN, LN and IN would see the padding
            raw, finite = self._detect(picture)
            self.require_finite(finite)
            self._seen.append(target["image_id"])
            # a GPU goes on to the next image meanwhile
            self._found.append(_LATER.submit(self._in_results_format, raw, target["image_id"], categories))

    def _in_results_format(self, raw: dict[str, Any], image_id: int, categories: list[int]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            return detections(self._transform.finish(raw), image_id, categories)

    @property
    def _transform(self) -> DetectorTransform:
        return cast(DetectorTransform, self.network.transform)

    def _detect(self, picture: Tensor) -> tuple[dict[str, Any], Tensor]:
        """What is found in an image, uint8 (3, H, W), on the CPU and unfinished (:class:`DetectorTransform`).

        And (1, 1), NaN if a part's output is not finite, else zero: boxes of NaN are no detections, which looks
        harmless.
        """
        finite: list[Tensor] = []

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            finite.extend(t.isfinite().all() for t in tree_leaves(output))

        network: Any = self.network
        watched = [network.backbone, network.rpn.head, network.roi_heads.box_predictor]
        watched += [network.roi_heads.mask_predictor] if self.has_masks else []
        handles = [module.register_forward_hook(look) for module in watched]
        self._transform.unfinished = True
        try:
            (output,) = self.network(self._floats([picture]))
        finally:
            self._transform.unfinished = False
            for handle in handles:
                handle.remove()
        # one copy for all: the host waits for each
        n = len(output["scores"])
        parts = [output["boxes"].flatten(), output["scores"], output["labels"], torch.stack(finite).all().view(1)]
        wide = torch.promote_types(output["boxes"].dtype, torch.float32)  # holds every label
        host = torch.cat([p.to(wide) for p in parts]).cpu()
        boxes, scores, labels, all_finite = torch.split(host, [4 * n, n, n, 1])
        raw = {"boxes": boxes.view(-1, 4), "scores": scores, "labels": labels.long(), "sizes": output["sizes"]}
        if "masks" in output:
            raw["masks"] = output["masks"].cpu()
        return raw, torch.where(all_finite > 0, 0.0, torch.nan).view(1, 1)

    def _truth(self) -> tuple[Annotations, list[int]]:
        """The annotations that are evaluated against, and the category of each class."""
        module = getattr(self.trainer, "datamodule", None)
        data = module.val_data if isinstance(module, COCO) else getattr(self.trainer.val_dataloaders, "dataset", None)
        if not isinstance(data, CocoDataset):
            raise TaskOptionError(
                "evaluating detections needs COCO's annotations: give the Trainer wsbench's COCO datamodule, or a "
                "DataLoader whose dataset is a CocoDataset"
            )
        return data.annotations, sorted(data.numbers, key=lambda category: data.numbers[category])

    def compute_metrics(self) -> tuple[dict[str, float], int]:
        """The twelve figures of boxes, and of masks."""
        detected, seen = [f for picture in self._found for f in picture.result()], self._seen
        self._found, self._seen = [], []  # a task that holds futures could not be copied
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, (detected, seen))
            detected = [f for part, _ in gathered for f in part]
            seen = [s for _, part in gathered for s in part]
        values: dict[str, float] = {}
        truth, categories = self._truth()
        for kind in ("box", "mask") if self.has_masks else ("box",):
            twelve, single = figures(truth, detected, sorted(set(seen)), kind)
            values |= twelve
            self._aps[f"{kind}_AP"] = {
                self.class_name(categories.index(c)): round(value, 4) for c, value in single.items()
            }
        return values, len(seen)

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP of each category that has objects, in percent."""
        return self._aps

    @override
    def input_words(self, shape: str) -> str:
        return "float32 (3, H, W): one RGB image in [0, 1]; it is resized and normalized inside"

    def example_input(self, data: Mapping[str, Any]) -> list[Tensor]:
        """One image, a quarter wider than high."""
        side = int(self.network.transform.min_size[-1])  # type: ignore[union-attr, index]
        return [torch.rand(3, side, side + side // 4)]

    def output_names(self) -> tuple[str, ...]:
        """As torchvision's detectors name them."""
        return ("boxes", "labels", "scores", *(("masks",) if self.has_masks else ()))

    # -- predictions ------------------------------------------------------------------------------------------------

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """A picture's detections."""
        (picture,) = batch["image"]
        raw, finite = self._detect(picture)
        self.require_finite_prediction(finite, batch)
        detected = self._transform.finish(raw)
        return {"path": batch["path"], "name": batch["name"], "image": batch["image"][0].cpu(), **detected}

    def write_prediction(self, prediction: dict[str, Any], folder: Path) -> list[Path]:
        """Write ``NAME.jpg``, boxes and masks of a score of 0.5 or more drawn, and ``NAME.json``, all detections."""
        name = prediction["name"]
        paths = [folder / f"{name}.json", folder / f"{name}.jpg"]
        names = [self.class_name(label - 1) for label in prediction["labels"].tolist()]
        boxes, scores = prediction["boxes"].tolist(), prediction["scores"].tolist()
        rows = [
            {"class": name, "score": round(score, 4), "box": [round(v, 1) for v in box]}
            for name, score, box in zip(names, scores, boxes, strict=True)
        ]
        write_text_atomically(paths[0], json.dumps({"file": prediction["path"], "detections": rows}, indent=1) + "\n")
        self.prediction_image(prediction).save(paths[1], quality=92)
        return paths

    def prediction_image(self, prediction: dict[str, Any]) -> Image.Image:
        """The image with boxes and masks of a score of 0.5 or more."""
        shown = (prediction["scores"] >= 0.5).nonzero().flatten().tolist()
        image = prediction["image"]
        colours = [COLOURS[int(prediction["labels"][i]) % len(COLOURS)] for i in shown]
        if shown and "masks" in prediction:
            image = draw_segmentation_masks(image, prediction["masks"][shown, 0] > 0.5, alpha=0.5, colors=colours)
        if shown:
            names = [self.class_name(int(prediction["labels"][i]) - 1) for i in shown]
            labels = [f"{name} {float(prediction['scores'][i]):.2f}" for i, name in zip(shown, names, strict=True)]
            image = draw_bounding_boxes(image, prediction["boxes"][shown], labels, colors=colours, width=2)
        drawn: Image.Image = to_pil_image(image)
        return drawn

    def prediction_row(self, prediction: dict[str, Any]) -> dict[str, Any]:
        """How many objects have a score of 0.5 or more, and the surest one."""
        scores = prediction["scores"]
        sure = int((scores >= 0.5).sum())
        if not len(scores):
            return {"objects": 0, "class": "", "score": ""}
        best = int(scores.argmax())
        name = self.class_name(int(prediction["labels"][best]) - 1)
        return {"objects": sure, "class": name, "score": round(float(scores[best]), 6)}
