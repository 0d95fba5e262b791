"""TSM on Something-Something V1: Table 6 of the paper."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from typing_extensions import override

from wsbench.models.by_name import is_named
from wsbench.models.resnet import RESNETS
from wsbench.models.tsm import TSM
from wsbench.norms import ACTIVATIONS
from wsbench.tasks.classification import TopK
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.pictures import PictureScale, picture_words
from wsbench.tasks.schedules import StepFactor, by_step

Group = Literal["first weight", "weight", "bias", "norm", "head weight", "head bias"]
#: factors of learning rate and weight decay (ops/models.py of mit-han-lab/temporal-shift-module @ 1f6a834)
FACTORS: dict[Group, tuple[float, float]] = {
    "first weight": (1, 1), "weight": (1, 1), "bias": (2, 0), "norm": (1, 0),
    "head weight": (5, 1), "head bias": (10, 0),
}  # fmt: skip


def parameter_groups(network: TSM) -> dict[Group, list[nn.Parameter]]:
    """The parameters by what TSM's optimizer treats alike; gains of a weight normalization count as a norm's.

    Raises:
        TypeError: a parameter belongs to no known kind of layer.
    """
    norms = tuple(m.factory for m in ACTIVATIONS.values() if isinstance(m.factory, type))
    groups: dict[Group, list[nn.Parameter]] = {name: [] for name in FACTORS}
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    first = next(m for m in network.modules() if isinstance(m, layers))
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            group: Group
            if module is network.classifier:
                group = "head weight" if name == "weight" else "head bias"
            elif isinstance(module, layers) and name in ("weight", "bias"):
                group = "bias" if name == "bias" else "first weight" if module is first else "weight"
            elif isinstance(module, (*layers, *norms)):
                group = "norm"
            else:
                raise TypeError(f"no learning policy for '{name}' of {type(module).__name__}")
            groups[group].append(parameter)
    return groups


class SomethingClassification(TopK):
    """Video classification.

    Args:
        network: ``tsm_`` or ``tsn_`` (without the shift) and a ResNet: ``tsm_resnet50``, ``tsm_resnet_mini``,
            ``tsm_timm:resnet18``; without the shift any network of timm's.
        num_classes: classes; follows --data.num_classes.
        segments: frames of a clip; follows --data.segments.
        shift_divisor: one over the share of channels that is shifted each way.
        dropout: before the classifier.
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: on weights; not on biases and norms.
        head_lr: the rates of the classifier's weight and bias are 5 and 10 times the base, as TSM's code has it;
            false: 1 and 2 times, as TRN's.
        milestones: epochs (of --data.steps_per_epoch) before which the rate falls by 10; the first epoch is 0.
        kwargs: of :class:`~wsbench.tasks.base.BenchmarkTask`.
    """

    task = "something"
    monitor = "top1_acc"
    metrics = metrics_of_training = ("top1_acc", "top5_acc")
    top1, top5, errors = "top1_acc", "top5_acc", False
    input_key = "clip"

    def __init__(
        self,
        network: str = "tsm_resnet50",
        num_classes: int = 174,
        segments: int = 8,
        shift_divisor: int = 8,
        dropout: float = 0.5,
        lr: float = 0.0125,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        head_lr: bool = True,
        milestones: Sequence[int] = (26, 36),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, label_smoothing=0.0, **kwargs)
        self._network_name = network
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._head_lr, self._milestones = head_lr, milestones
        kind, _, backbone = network.partition("_")
        if kind not in ("tsm", "tsn") or not (is_named(backbone) or backbone in RESNETS):
            raise TaskOptionError(
                f"unknown network '{network}'; choose tsm_ or tsn_ and one of {', '.join(RESNETS)}, timm:NAME or "
                "torchvision:NAME"
            )
        try:
            model = TSM(backbone, num_classes, segments, kind == "tsm", shift_divisor, dropout, self.pretrained)
        except ValueError as error:
            raise TaskOptionError(f"--model.network: {error}") from error
        self._scale_pictures = PictureScale()
        self.set_network(model, torch.zeros(1, segments, 3, 64, 64))

    @property
    def network_name(self) -> str:
        """As on the command line."""
        return self._network_name

    def backbone(self) -> nn.Module:
        """The ResNet."""
        backbone: nn.Module = self.network.backbone  # type: ignore[assignment]
        return backbone

    def definitions(self) -> dict[str, str]:
        """What the paper does not say."""
        rates = "5 and 10 (weight, bias; TSM)" if self._head_lr else "1 and 2 (weight, bias; TRN)"
        return super().definitions() | {
            "top1_acc": "one centre crop of one clip, the middle frame of each segment",
            "optimizer": f"weight decay not on biases and norms; the classifier's rates are {rates} times the base",
        }

    @override
    def inputs(self, batch: dict[str, Tensor]) -> Tensor:
        return self._scale_pictures(batch["clip"], next(self.network.parameters()))

    def image_of(self, batch: dict[str, Any]) -> Tensor:
        """The frame in the middle."""
        clip: Tensor = batch["clip"][0]
        return clip[len(clip) // 2]

    @override
    def input_words(self, shape: str) -> str:
        return picture_words(shape)

    def example_input(self, data: Mapping[str, Any]) -> Tensor:
        """(2, segments, 3, crop, crop)."""
        side = data.get("crop", 224)
        return torch.randn(2, data.get("segments", 8), 3, side, side)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with TSM's groups; the rate falls at epochs, as counted by optimizer steps."""
        groups: list[dict[str, Any]] = []
        network: TSM = self.network  # type: ignore[assignment]
        for name, parameters in parameter_groups(network).items():
            lr, decay = FACTORS[name]
            if not self._head_lr and name.startswith("head"):
                lr = 1 if name == "head weight" else 2
            if parameters:
                groups.append({"params": parameters, "lr": lr * self._lr, "weight_decay": decay * self._weight_decay,
                               "name": name})  # fmt: skip
        per_epoch = self.steps_in_epoch()
        optimizer = SGD(groups, lr=self._lr, momentum=self._momentum)
        return by_step(optimizer, StepFactor([m * per_epoch for m in self._milestones]))  # type: ignore[return-value]
