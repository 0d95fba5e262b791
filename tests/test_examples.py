"""examples/: scripts and notebook run as they stand, and train."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import write_voc

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bare_loop", "lightning_loop", "accelerate_loop"])
def test_a_script_trains(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--steps", "100"])
    monkeypatch.syspath_prepend(EXAMPLES)
    accuracy = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert accuracy > 25  # 10 by guessing
    assert "2 layers weight-normalized, 1 plain" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loops_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning and accelerate draw the same images, and so end with the same network."""
    monkeypatch.syspath_prepend(EXAMPLES)
    found = []
    for name in ("lightning_loop", "accelerate_loop"):
        monkeypatch.setattr(sys, "argv", [name, "--steps", "20"])
        found.append(runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]())
    assert found[0] == pytest.approx(found[1], abs=0.5)


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "normalize_to_fold.ipynb", as_version=4)
    stored = [cell.copy() for cell in notebook.cells]
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}).execute()
    for cell, before in zip(notebook.cells, stored, strict=True):
        assert bool(cell.get("outputs")) == bool(before.get("outputs"))  # it is stored as it was run


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mmdet_faster_rcnn_gn_ws", ("backbone", "neck", "roi_head.bbox_head")),
        ("mmseg_deeplabv3_gn_ws", ("backbone", "decode_head", "auxiliary_head")),
    ],
)
def test_the_configs_of_openmmlab_name_layers_that_are_built(name: str, parts: tuple[str, ...]) -> None:
    """Without mmdetection and mmsegmentation: the layers that their builders would make of it."""
    from mmcv.cnn import ConvModule

    import wsbench.integrations.mmlab  # noqa: F401  # custom_imports
    from wsbench.norms import GroupNorm, NormalizedConv2d

    config = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert config["custom_imports"] == {"imports": ["wsbench.integrations.mmlab"]}
    accumulated, images = config["optim_wrapper"]["accumulative_counts"], config["train_dataloader"]["batch_size"]
    assert accumulated * images == 16
    (by_iteration,) = (each for each in config["param_scheduler"] if not each["by_epoch"])
    of_base = 20_000 if name.startswith("mmseg") else 500
    assert by_iteration["end"] == accumulated * of_base
    if name.startswith("mmseg"):
        assert config["train_cfg"] == {"max_iters": 320_000, "val_interval": 32_000}
    for part in (reduce(getitem, path.split("."), config["model"]) for path in parts):
        layer = ConvModule(3, 64, 3, conv_cfg=part["conv_cfg"], norm_cfg=part["norm_cfg"])
        assert isinstance(layer.conv, NormalizedConv2d)
        assert isinstance(layer.norm, GroupNorm)
        assert layer.norm.num_groups == 32
        assert layer(torch.randn(1, 3, 8, 8)).shape == (1, 64, 6, 6)


def _every(config: Any) -> Iterator[dict[str, Any]]:
    """All dictionaries of a config."""
    if isinstance(config, dict):
        yield config
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        yield from _every(value)


def _train(name: str, folder: Path, change: Callable[[Any], None]) -> tuple[dict[str, torch.Tensor], Any]:
    """A config trained by mmengine's runner as its tools/train.py does: the weights it began with, and the runner."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    config = Config.fromfile(EXAMPLES / f"{name}.py")
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    config.test_dataloader = config.val_dataloader
    config.work_dir = str(folder / "work")
    config.optim_wrapper.accumulative_counts = 2
    change(config)
    runner = Runner.from_cfg(config)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    return before, runner


def _changed(before: dict[str, torch.Tensor], model: torch.nn.Module, part: str) -> bool:
    after = {key: value for key, value in model.state_dict().items() if key.startswith(part)}
    assert all(value.isfinite().all() for value in after.values())
    return any(not torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.mmseg
def test_the_config_of_mmsegmentation_trains(tmp_path: Path) -> None:
    """Two micro-steps of one small image, an optimizer step, an evaluation; the model is as it stands."""
    pytest.importorskip("mmseg", reason="run scripts/install-mmseg")
    from wsbench.norms import GroupNorm, NormalizedConv2d

    devkit = write_voc(tmp_path / "data") / "VOCdevkit" / "VOC2012"
    shutil.copytree(devkit / "SegmentationClass", devkit / "SegmentationClassAug")
    shutil.copy(devkit / "ImageSets" / "Segmentation" / "val.txt", devkit / "ImageSets" / "Segmentation" / "aug.txt")

    def change(config: Any) -> None:
        config.train_cfg.update(max_iters=2, val_interval=2)
        config.model.data_preprocessor.size = (64, 64)
        for each in _every(config._cfg_dict):
            each.update({"data_root": str(devkit)} if "data_root" in each else {})
            each.update({"crop_size": (64, 64)} if each.get("type") == "RandomCrop" else {})
            each.update({"scale": (128, 64)} if "scale" in each else {})

    before, runner = _train("mmseg_deeplabv3_gn_ws", tmp_path, change)
    layers = [type(module) for module in runner.model.modules()]
    assert torch.nn.BatchNorm2d not in layers
    assert layers.count(GroupNorm) == layers.count(NormalizedConv2d) > 50  # a norm behind every one, classifiers plain
    for part in ("backbone.stem", "backbone.layer4", "decode_head", "auxiliary_head"):
        assert _changed(before, runner.model, part), part
    assert 0 <= runner.message_hub.get_scalar("val/mIoU").current() <= 100


@pytest.mark.mmseg
def test_the_config_of_mmdetection_trains(tmp_path: Path) -> None:
    """An epoch of two small images, an optimizer step; the model is as it stands."""
    pytest.importorskip("mmdet", reason="run scripts/install-mmseg")
    from mmdet.datasets.coco import CocoDataset

    from wsbench.norms import GroupNorm, NormalizedConv2d

    root = tmp_path / "coco"
    categories = [{"id": i, "name": name} for i, name in enumerate(CocoDataset.METAINFO["classes"], 1)]
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        images, boxes = [], []
        for i in (1, 2):
            pixels = np.zeros((120, 160, 3), np.uint8)
            pixels[20:70, 40:100] = 250
            Image.fromarray(pixels).save(root / split / f"{i:012d}.jpg")
            images.append({"id": i, "file_name": f"{i:012d}.jpg", "height": 120, "width": 160})
            boxes.append({"id": i, "image_id": i, "category_id": i, "bbox": [40, 20, 60, 50], "area": 3000,
                          "iscrowd": 0, "segmentation": [[40, 20, 100, 20, 100, 70, 40, 70]]})  # fmt: skip
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))

    def change(config: Any) -> None:
        config.train_cfg.update(max_epochs=1, val_interval=1)
        for each in _every(config._cfg_dict):
            each.update({"data_root": f"{root}/"} if each.get("data_root") else {})
            each.update({"scale": (213, 160)} if "scale" in each else {})
            if isinstance(each.get("ann_file"), str):
                each["ann_file"] = each["ann_file"].replace("data/coco", str(root))

    before, runner = _train("mmdet_faster_rcnn_gn_ws", tmp_path, change)
    layers = [type(module) for module in runner.model.modules()]
    assert torch.nn.BatchNorm2d not in layers
    assert layers.count(NormalizedConv2d) > 50
    assert layers.count(GroupNorm) > 50
    for part in ("backbone.conv1", "backbone.layer4", "neck", "roi_head.bbox_head"):
        assert _changed(before, runner.model, part), part
