"""The tasks: what the house has to know of each, in one place. A new task is its files and an entry here.

Nothing heavy is imported: classes are named, and loaded by :func:`wsbench.tasks.task_class` and
:func:`wsbench.datamodules.data_class`.
"""

import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


def has_masks(network: str) -> bool:
    """Whether a detection network predicts masks, so that the data must have them."""
    return not network.startswith("faster_rcnn_")


@dataclass(frozen=True)
class Link:
    """A field that follows another one; a saved configuration has only the other."""

    field: str
    source: str
    compute: Callable[[Any], Any] | None = None
    """Its value, from the source's."""

    def value(self, source: Any) -> Any:
        """What the field is where its source is that."""
        return source if self.compute is None else self.compute(source)


@dataclass(frozen=True)
class PaperNumbers:
    """Where the paper has a task's numbers."""

    tables: tuple[int, ...]
    """Numbers of its tables."""
    data: str
    """The name that the identity of its dataset has."""
    network: str = "{model}"
    """What the networks of its rows are called here, from the row's ``task`` and ``model``."""


@dataclass(frozen=True)
class TaskEntry:
    """A task.

    Args:
        module: of its class, as ``module:class``.
        data: of its data's class, as ``module:class``.
        headline: the metric that decides, in percent.
        further: metrics that a wide table shows after it.
        paper: None if the paper has no such experiment.
        preparation: of what ``wsbench data`` does for this dataset beyond verifying it, as ``module:class``; a
            :class:`wsbench.datamodules.prepare.Preparation`.
        links: fields that follow others, beyond those of every task (:data:`LINKS`).
        harmless_network: networks of packages, as text for ``--model.network``, that run nobody's code but the
            package's own. Only these are taken from the configuration of a run that somebody else made.
        groups: of GN, where the paper has other than 32.
        target: of the miniature, the score whose first reaching tables count in steps: about half of what can be had.
        classes_of_data: whether the data alone says how many classes there are; segmentations may lack one of theirs.
        counted_background: whether the number of classes in checkpoints of the first version counted background.
        sample_size: the option that makes samples smaller, and so a step cheaper.
        torchvision_classifies: whether torchvision's classification networks are networks of this task, by their bare
            names.
        evaluates_whole: whether a sample is evaluated whole, and so may cost more than the crop that is trained on.
    """

    module: str
    data: str
    headline: str
    further: tuple[str, ...] = ()
    paper: PaperNumbers | None = None
    preparation: str | None = None
    links: tuple[Link, ...] = ()
    harmless_network: re.Pattern[str] | None = None
    groups: int | None = None
    target: float | None = None
    classes_of_data: bool = True
    counted_background: bool = False
    sample_size: str = "--data.crop"
    torchvision_classifies: bool = False
    evaluates_whole: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of a wide table."""
        return (self.headline, *self.further)


def exported(module: str, name: str, classes: Iterable[str]) -> Any:
    """The class called ``name`` of those that entries name, imported now: for a package's ``__getattr__``.

    Raises:
        AttributeError: ``module`` exports no such class.
    """
    named = next((path for path in classes if path.endswith(f":{name}")), None)
    if named is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return pkgutil.resolve_name(named)


#: of every task
LINKS = (Link("model.norm", "norm"), Link("model.num_classes", "data.num_classes"))

#: the tasks, in the order in which they are listed
TASKS = {
    "imagenet": TaskEntry(
        module="wsbench.tasks.imagenet:ImageNetClassification",
        data="wsbench.datamodules.imagenet:ImageNet",
        headline="top1_error",
        further=("top5_error",),
        paper=PaperNumbers((1, 2, 3), "imagenet1k"),
        preparation="wsbench.datamodules.prepare.imagenet:ImageNetPreparation",
        harmless_network=re.compile(r"(timm|torchvision):[\w.]+\Z"),
        target=50.0,
        torchvision_classifies=True,
    ),
    "something": TaskEntry(
        module="wsbench.tasks.something:SomethingClassification",
        data="wsbench.datamodules.something:SomethingSomething",
        headline="top1_acc",
        further=("top5_acc",),
        paper=PaperNumbers((6,), "something_something_v1", "{task}_{model}"),
        links=(Link("model.segments", "data.segments"),),
        harmless_network=re.compile(r"tsm_(timm|torchvision):[\w.]+\Z"),
        target=90.0,
    ),
    "voc": TaskEntry(
        module="wsbench.tasks.voc:VOCSegmentation",
        data="wsbench.datamodules.voc:VOC",
        headline="miou",
        paper=PaperNumbers((7,), "voc2012", "deeplabv3_{model}"),
        preparation="wsbench.datamodules.prepare.voc:VOCPreparation",
        harmless_network=re.compile(r"(deeplabv3_(timm|torchvision):[\w.]+|mmseg:[\w-]+/[\w-][\w.-]*)\Z"),
        target=40.0,
        classes_of_data=False,
        evaluates_whole=True,
    ),
    "modelnet40": TaskEntry(
        module="wsbench.tasks.modelnet40:ModelNetClassification",
        data="wsbench.datamodules.modelnet40:ModelNet40",
        headline="overall_acc",
        further=("mean_class_acc",),
        paper=PaperNumbers((8,), "modelnet40", "dgcnn_tf"),
        preparation="wsbench.datamodules.prepare.modelnet40:ModelNetPreparation",
        groups=16,
        target=60.0,
        sample_size="--data.points",
    ),
    "coco": TaskEntry(
        module="wsbench.tasks.coco:COCODetection",
        data="wsbench.datamodules.coco:COCO",
        headline="box_AP",
        further=("mask_AP",),
        paper=PaperNumbers((4, 5), "coco2017", "{task}_{model}"),
        preparation="wsbench.datamodules.prepare.coco:COCOPreparation",
        links=(Link("data.masks", "model.network", has_masks),),
        harmless_network=re.compile(r"(mask|faster)_rcnn_(timm|torchvision):[\w.]+\Z"),
        target=10.0,
        counted_background=True,
        sample_size="--model.min_size",
        evaluates_whole=True,
    ),
}
