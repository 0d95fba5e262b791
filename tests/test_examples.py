"""examples/: scripts and notebook run as they stand, and train."""

import runpy
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch

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
