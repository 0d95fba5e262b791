"""Exported graphs: outputs as PyTorch's, no standardization in them, facts beside."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from torch import nn

from tests import tiny
from wsbench.__main__ import main
from wsbench.configuration.restore import load_run
from wsbench.export import export_command
from wsbench.export.export_command import export
from wsbench.export.writers import FACTS, SUFFIXES, WRITERS

PICTURES = [task for task in tiny.TASKS if task != "coco"]


def a_run(task: str, norm: str, folder: Path) -> Path:
    """A checkpoint with its configuration beside it, of a network whose BN has seen something."""
    model = tiny.model(task, norm)
    model.classes = tuple(f"class {i}" for i in range(tiny.MODEL[task]["num_classes"]))
    if norm.startswith("bn"):
        for _ in range(20):
            model.network(model.example_input(tiny.DATA[task]))
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "last.ckpt")
    # a saved configuration leaves out what follows another field
    options = {k: v for k, v in tiny.MODEL[task].items() if k != "num_classes"}
    data = tiny.DATA[task] | {"num_classes": tiny.MODEL[task]["num_classes"]}
    settings = {"task": task, "norm": norm, "model": options, "data": data}
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    return folder / "last.ckpt"


@pytest.mark.parametrize(
    ("task", "form", "norm"),
    [
        *((task, form, "gn+ws" if task in ("imagenet", "voc") else "bn+ws") for task in PICTURES for form in WRITERS),
        ("imagenet", "pt2", "sn+wn"), ("something", "torchscript", "in+ws-af"), ("voc", "torchscript", "bn+ws@timm"),
    ],
)  # fmt: skip
def test_command(task: str, form: str, norm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command checks outputs and graph by itself; a second look at both follows for each format below."""
    checkpoint = a_run(task, norm, tmp_path / "run")
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", form]) == 0
    out = capsys.readouterr().out
    assert "weights baked in, none is computed in the graph" in out
    if task in ("imagenet", "voc") and form != "pt2":  # whose guards some normalizations narrow; the message says which
        assert "float32 (N, 3, height, width)" in out, "checked at another size, too"
    assert (tmp_path / "run" / f"last{SUFFIXES[form]}").is_file()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.yaml", "last.ckpt", f"last{SUFFIXES[form]}"
    ]  # fmt: skip


@pytest.mark.usefixtures("in_a_folder")
def test_a_run_as_fit_leaves_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--ckpt_path", str(run / "last.ckpt"), "--format", "torchscript"]) == 0
    assert "deeplabv3_resnet_mini, gn+ws" in capsys.readouterr().out
    x = torch.randn(1, 3, 33, 33)
    assert torch.jit.load(run / "last.pt")(x).shape == (1, 21, 33, 33)


def test_onnx_is_the_network_without_standardization(tmp_path: Path) -> None:
    checkpoint = a_run("imagenet", "bn+ws", tmp_path / "run")
    task, settings = load_run(checkpoint)
    export(task, settings, "onnx", tmp_path / "x.onnx")
    graph = onnx.load(tmp_path / "x.onnx").graph
    kinds = {node.op_type for node in graph.node}
    assert kinds <= {"Conv", "Relu", "MaxPool", "Add", "ReduceMean", "GlobalAveragePool", "Reshape", "Flatten", "Gemm"}
    assert sum(node.op_type == "Conv" for node in graph.node) == len(task.norm_report.weight_normalized)
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    x = np.random.default_rng(0).standard_normal((5, 3, 32, 32), dtype=np.float32)
    (logits,) = session.run(["logits"], {"input": x})
    with torch.no_grad():
        expected = task.network(torch.from_numpy(x))
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-4)
    facts = json.loads({p.key: p.value for p in onnx.load(tmp_path / "x.onnx").metadata_props}[FACTS])
    assert facts["norm"] == "bn+ws"
    assert facts["classes"] == [f"class {i}" for i in range(10)]
    assert "RGB in [0, 1], less (0.485, 0.456, 0.406)" in facts["input"]


def test_torchscript_and_pt2_hold_facts_and_plain_weights(tmp_path: Path) -> None:
    task, settings = load_run(a_run("imagenet", "gn+ws", tmp_path / "run"))
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = task.network(x)
        export(task, settings, "torchscript", tmp_path / "x.pt")
        files = {FACTS: ""}
        loaded = torch.jit.load(tmp_path / "x.pt", _extra_files=files)
        torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)
        assert json.loads(files[FACTS])["norm"] == "gn+ws"
        export(task, settings, "pt2", tmp_path / "x.pt2")
        files = {FACTS: ""}
        program = torch.export.load(tmp_path / "x.pt2", extra_files=files)
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
        assert json.loads(files[FACTS])["task"] == "imagenet"
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {t for t in targets if "batch_norm" in t or ("mean" in t and "mean.dim" not in t) or "std" in t}
    standardized = dict(task.folded(x).named_parameters())["conv1.weight"].flatten(1)
    torch.testing.assert_close(standardized.mean(1), torch.zeros(64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", list(WRITERS))
def test_a_network_that_still_standardizes_is_refused(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The assertion on the graph can fail: here nothing is folded."""
    checkpoint = a_run("imagenet", "gn+ws", tmp_path / "run")
    monkeypatch.setattr("wsbench.tasks.base.fold", lambda network, example: network.eval())
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", form]) == 2
    assert "weights are computed in the exported graph" in capsys.readouterr().err
    assert len(list((tmp_path / "run").iterdir())) == 2, "nothing is left"


def test_a_graph_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = a_run("imagenet", "gn+ws", tmp_path / "run")
    monkeypatch.setattr(export_command, "relative_difference", lambda a, b: 0.5)
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", "torchscript"]) == 2
    assert "differ from PyTorch's by 5.0e-01" in capsys.readouterr().err
    assert len(list((tmp_path / "run").iterdir())) == 2
    monkeypatch.undo()
    assert export_command.relative_difference([torch.ones(2)], [torch.ones(3)]) == float("inf")
    assert export_command.relative_difference([torch.tensor([1.0, 2.2])], [torch.tensor([1.0, 2.0])]) == pytest.approx(
        0.1
    )


@pytest.mark.slow
def test_detectors_become_onnx_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = a_run("coco", "gn+ws", tmp_path / "run")
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", "pt2"]) == 2
    assert "only --format onnx takes" in capsys.readouterr().err
    assert (
        main(["export", "--ckpt_path", str(checkpoint), "--format", "onnx", "--output", str(tmp_path / "x.onnx")]) == 0
    )
    assert "one RGB image in [0, 1]" in capsys.readouterr().out
    names = [o.name for o in onnx.load(tmp_path / "x.onnx").graph.output]
    assert names == ["boxes", "labels", "scores", "masks"]


def test_wrong_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*options: str) -> str:
        assert main(["export", "--format", "onnx", *options]) == 2
        return capsys.readouterr().err

    checkpoint = a_run("imagenet", "gn+ws", tmp_path / "run")
    assert "--ckpt_path 'none.ckpt' does not exist" in fails("--ckpt_path", "none.ckpt")
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(checkpoint.read_bytes())
    assert "config.yaml' does not exist" in fails("--ckpt_path", str(alone))
    config = tmp_path / "other.yaml"
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["norm"] = "gn"
    config.write_text(yaml.safe_dump(settings))
    assert "was trained with 'gn+ws', the model is 'gn'" in fails("--ckpt_path", str(alone), "--config", str(config))
    settings["norm"], settings["model"]["network"] = "gn+ws", "resnet50"
    config.write_text(yaml.safe_dump(settings))
    assert "do not belong together" in fails("--ckpt_path", str(alone), "--config", str(config))
    config.write_text("[]")
    assert "holds no settings" in fails("--ckpt_path", str(alone), "--config", str(config))
    alone.write_bytes(b"junk")
    assert "is not a checkpoint" in fails("--ckpt_path", str(alone), "--config", str(config))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    import sys

    checkpoint = a_run("imagenet", "gn+ws", tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", "onnx"]) == 2
    assert "pip install 'wsbench[export]'" in capsys.readouterr().err


def test_folded_networks_are_plain() -> None:
    for task in tiny.TASKS:
        model = tiny.model(task, "gn+ws")
        kinds = {type(m) for m in model.folded(model.example_input(tiny.DATA[task])).modules()}
        assert {nn.Conv2d} <= kinds
        assert not any(kind.__name__.startswith("Normalized") for kind in kinds)
