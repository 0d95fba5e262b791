"""ResNet and ResNeXt on ImageNet: Tables 1 to 3 and Fig. 5 of the paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD
from typing_extensions import override

from wsbench.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD
from wsbench.models.by_name import classifier, colours, example, is_named
from wsbench.models.resnet import ResNetClassifier
from wsbench.models.resnetv2 import STANDARDIZED, ResNetV2, is_resnetv2
from wsbench.tasks.classification import TopK
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.pictures import PictureScale, picture_words
from wsbench.tasks.schedules import StepFactor, by_step


class ImageNetClassification(TopK):
    """Image classification.

    Args:
        network: ``resnet50``, ``resnet101``, ``resnext50_32x4d``, ``resnext101_32x4d``, ``resnet_mini``, or the
            pre-activation ``resnetv2_50x1``, ``resnetv2_101x1`` of Big Transfer; or a network of another package:
            ``timm:NAME``, ``torchvision:NAME``, ``MODULE:FUNCTION``. With ``init_from: pretrained`` it has its
            package's weights.
        num_classes: classes; follows --data.num_classes.
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: on all parameters.
        milestones: epochs (of --data.steps_per_epoch) before which the rate falls by 10; the first epoch is 0.
        kwargs: of :class:`~wsbench.tasks.classification.TopK`; the paper smooths no labels.
    """

    task = "imagenet"
    monitor, mode = "top1_error", "min"
    top1, top5, errors = "top1_error", "top5_error", True
    input_key = "image"
    metrics = metrics_of_training = ("top1_error", "top5_error")

    def __init__(
        self,
        network: str = "resnet50",
        num_classes: int = 1000,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        milestones: Sequence[int] = (30, 60),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        self._network_name = network
        self._lr, self._momentum, self._weight_decay, self._milestones = lr, momentum, weight_decay, milestones
        try:
            if is_named(network):
                model = classifier(network, num_classes, self.pretrained)
            else:
                model = (ResNetV2 if is_resnetv2(network) else ResNetClassifier)(network, num_classes)
        except ValueError as error:
            raise TaskOptionError(f"--model.network: {error}") from error
        #: mean and standard deviation that are taken out of images in [0, 1]
        self.colours = colours(model) or (IMAGENET_MEAN, IMAGENET_STD)
        if isinstance(model, ResNetV2):  # Big Transfer's networks want [-1, 1]
            self.colours = (model.mean, model.std)
        self._scale_pictures = PictureScale(*self.colours)
        look_at = example(model) if is_named(network) else torch.zeros(1, 3, 64, 64)
        self.set_network(model, look_at, STANDARDIZED if isinstance(model, ResNetV2) else ())

    @property
    def network_name(self) -> str:
        """As on the command line."""
        return self._network_name

    def definitions(self) -> dict[str, str]:
        """What an epoch is, what the errors are of."""
        return super().definitions() | {
            "top1_error": "single centre crop; metrics are of the last epoch, best of the best by top-1",
            "train_top1_error": "of the last epoch, counted while it ran, on augmented pictures",
        }

    @override
    def inputs(self, batch: dict[str, Tensor]) -> Tensor:
        return self._scale_pictures(batch["image"], next(self.network.parameters()))

    @override
    def image_of(self, batch: dict[str, Any]) -> Tensor:
        image: Tensor = batch["image"][0]
        return image

    @override
    def input_words(self, shape: str) -> str:
        return picture_words(shape, *self.colours)

    @override
    def dynamic_sizes(self) -> dict[int, str]:
        return {2: "height", 3: "width"}

    def example_input(self, data: Mapping[str, Any]) -> Tensor:
        """(2, 3, crop, crop)."""
        return torch.randn(2, 3, data.get("crop", 224), data.get("crop", 224))

    def check_trainer(self, trainer: Trainer) -> None:
        """Networks by name may take images of one size only."""
        facts = getattr(self.network, "default_cfg", {})
        side, crop = facts.get("input_size", (3, 0, 0))[-1], getattr(getattr(trainer, "datamodule", None), "crop", None)
        if facts.get("fixed_input_size") and crop not in (None, side):
            raise TaskOptionError(
                f"'{self.network_name}' takes images of {side} x {side} only, the data's are cropped to {crop}; set "
                f"--data.crop {side} --data.resize {side * 8 // 7}"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with weight decay on everything; the rate falls at epochs, as counted by optimizer steps."""
        optimizer = SGD(
            self.network.parameters(), lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay
        )
        per_epoch = self.steps_in_epoch()
        return by_step(optimizer, StepFactor([m * per_epoch for m in self._milestones]))  # type: ignore[return-value]
