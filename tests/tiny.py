"""Every task at its smallest: data in the official layouts, networks that take a second to train two steps."""

from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from lightning.pytorch import Trainer

from wsbench import registry
from wsbench.datamodules import data_class
from wsbench.datamodules.base import BenchmarkData
from wsbench.tasks import BenchmarkTask, task_class

TASKS = tuple(registry.TASKS)
COUNTS = {
    "imagenet": {"train": 20, "val": 10},
    "something": {"train": 12, "val": 6},
    "voc": {"train": 4, "val": 3},
    "modelnet40": {"train": 20, "val": 10},
    "coco": {"train": 5, "val": 3},
}
DATA: dict[str, dict[str, Any]] = {
    "imagenet": {"crop": 32, "resize": 32, "eval_batch": 5},
    "something": {"crop": 32, "resize": 32, "scales": (1.0, 0.875), "eval_batch": 3},
    "voc": {"crop": 33, "train_set": "train"},
    "modelnet40": {"points": 32, "eval_batch": 5},
    "coco": {},
}
MODEL: dict[str, dict[str, Any]] = {
    "imagenet": {"num_classes": 10, "network": "resnet_mini"},
    "something": {"num_classes": 6, "network": "tsm_resnet_mini", "dropout": 0.0},
    "voc": {"num_classes": 11, "network": "deeplabv3_resnet_mini", "aspp_width": 32, "output_stride": 8},
    "modelnet40": {"num_classes": 10, "k": 4, "width": 0.5, "dropout": 0.0},
    "coco": {
        "num_classes": 10, "network": "mask_rcnn_resnet_mini", "width": 32, "head_convs": 1, "fc_width": 32,
        "anchor_size": 8, "min_size": 64, "max_size": 64, "proposals": 30, "rois": 16, "trainable_layers": 5,
    },
}  # fmt: skip


def write(task: str, root: Path) -> Path:
    """The task's miniature, a few samples of it, as a dataset of the user's under ``root``."""
    module = import_module(f"wsbench.datamodules.mini.{task}")
    with mock.patch.dict(module.COUNTS, COUNTS[task]):
        module.write(root)
    return root


def data(task: str, root: Path, **changes: Any) -> BenchmarkData:
    """The task's datamodule on what :func:`write` wrote."""
    common = {"root": str(root), "micro_batch": 2, "effective_batch": 4, "steps_per_epoch": 2, "num_workers": 0}
    return data_class(task)(**(common | DATA[task] | changes))


def model(task: str, norm: str, **changes: Any) -> BenchmarkTask:
    """The task itself."""
    return task_class(task)(norm=norm, **(MODEL[task] | changes))


def trainer(**changes: Any) -> Trainer:
    """A Trainer that says and writes nothing."""
    settings: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
        "max_steps": 2, "accumulate_grad_batches": 2,
    }  # fmt: skip
    return Trainer(**(settings | changes))
