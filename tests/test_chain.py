"""The paper's chain: train ImageNet with a specification, fine-tune the other tasks from that checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from wsbench.__main__ import main
from wsbench.norms import NormMismatchError

OTHERS = ("something", "voc", "coco")


@pytest.fixture(scope="module")
def checkpoints(tiny_roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ImageNet checkpoints of a few specifications."""
    found = {}
    for norm in ("gn+ws", "bn", "sn+ws-af"):
        trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
        trainer.fit(tiny.model("imagenet", norm), tiny.data("imagenet", tiny_roots["imagenet"]))
        found[norm] = tmp_path_factory.mktemp("chain") / "last.ckpt"
        trainer.save_checkpoint(found[norm])
    return found


def body(task: Any) -> dict[str, torch.Tensor]:
    """The backbone's weights by the names of torchvision."""
    return {k.replace(".conv1.net.", ".conv1."): v for k, v in task.backbone().state_dict().items()}


@pytest.mark.parametrize("norm", ["gn+ws", "bn", "sn+ws-af"])
@pytest.mark.parametrize("task", OTHERS)
def test_every_weight_of_the_backbone_comes_along(task: str, norm: str, checkpoints: dict[str, Path]) -> None:
    state = torch.load(checkpoints[norm], weights_only=True)["state_dict"]
    weights = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
    loaded = body(tiny.model(task, norm, init_from=str(checkpoints[norm])))
    assert set(loaded) == {k for k in weights if not k.startswith("fc.")}
    assert all(torch.equal(loaded[k], weights[k]) for k in loaded)


@pytest.mark.parametrize("task", OTHERS)
def test_another_specification_is_refused(task: str, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(NormMismatchError, match=r"trained with 'gn\+ws', the model is 'gn'"):
        tiny.model(task, "gn", init_from=str(checkpoints["gn+ws"]))
    tiny.model(task, "gn", init_from=str(checkpoints["gn+ws"]), init_from_any_norm=True)


def test_frozen_bn_starts_from_bn(checkpoints: dict[str, Path]) -> None:
    task: Any = tiny.model("coco", "frozenbn", init_from=str(checkpoints["bn"]))
    state = torch.load(checkpoints["bn"], weights_only=True)["state_dict"]
    assert torch.equal(task.backbone().bn1.running_mean, state["network.bn1.running_mean"])
    assert not list(task.backbone().bn1.parameters())
    with pytest.raises(NormMismatchError, match="the model is 'bn'"):
        tiny.model("coco", "frozenbn", init_from=str(checkpoints["gn+ws"]))


def test_a_segmentation_networks_backbone_starts_a_video_network(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    """Any task's checkpoint has a backbone."""
    for first, second in (("something", "voc"), ("coco", "something"), ("voc", "coco")):
        trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
        source: Any = tiny.model(first, "gn+ws")
        trainer.fit(source, tiny.data(first, tiny_roots[first]))
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        target = body(tiny.model(second, "gn+ws", init_from=str(tmp_path / "x.ckpt")))
        assert all(torch.equal(v, target[k]) for k, v in body(source).items())


@pytest.mark.slow
def test_on_the_command_line(
    tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("--recipe", "mini", "--data.miniature", "false", "--trainer.accelerator", "cpu", "--norm", "gn+ws")
    small: dict[str, tuple[str, ...]] = {
        "imagenet": ("--data.crop", "32", "--data.resize", "32"),
        "something": ("--data.crop", "32", "--data.resize", "32"),
        "voc": ("--data.crop", "33", "--data.eval_batch", "1", "--model.aspp_width", "32"),
        "coco": ("--model.width", "32", "--model.rois", "16"),
        "modelnet40": ("--data.points", "32", "--model.k", "4"),
    }
    for task in ("imagenet", *OTHERS, "modelnet40"):
        start = () if task in ("imagenet", "modelnet40") else ("--model.init_from", str(checkpoint))  # noqa: F821
        norm = ("--norm", "gn16+ws") if task == "modelnet40" else ()
        options = ("--data.root", str(tiny_roots[task]), "--trainer.max_steps", "2", "--data.steps_per_epoch", "1")
        assert main(["fit", "--task", task, *common, *options, *small[task], *start, *norm]) == 0
        (run,) = (tmp_path / "runs" / task).iterdir()
        assert (run / "result.json").is_file()
        if task == "imagenet":
            checkpoint = run / "last.ckpt"  # noqa: F841
        assert main(["test", "--ckpt_path", str(run / "last.ckpt"), "--trainer.accelerator", "cpu"]) == 0
    assert "3 samples" in capsys.readouterr().out


def test_published_weights_are_evaluated_without_a_run(
    tiny_roots: dict[str, Path], checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """validate --model.init_from needs weights for the whole network; anything else would be a random head's number."""
    monkeypatch.chdir(tmp_path)
    state = torch.load(checkpoints["gn+ws"], weights_only=True)["state_dict"]
    weights = {f"module.{k.removeprefix('network.')}": v for k, v in state.items() if k.startswith("network.")}
    torch.save({"state_dict": weights}, "published.pth.tar")
    common = ("--recipe", "mini", "--data.miniature", "false", "--trainer.accelerator", "cpu", "--norm", "gn+ws",
              "--model.init_from", "gn+ws=published.pth.tar")  # fmt: skip
    imagenet = ("--task", "imagenet", "--data.root", str(tiny_roots["imagenet"]))
    assert main(["validate", *imagenet, *common]) == 0
    assert "over 10 samples" in capsys.readouterr().out
    voc = ("--task", "voc", "--data.root", str(tiny_roots["voc"]), "--data.eval_batch", "1")
    assert main(["validate", *voc, *common]) == 2
    assert "has no weights for all of 'deeplabv3_resnet_mini'" in capsys.readouterr().err
    assert main(["validate", *imagenet, *common[:-2]]) == 2
    assert "or published weights of the whole network by --model.init_from" in capsys.readouterr().err
    del weights["module.fc.bias"]
    weights["module.fc.weight"] = torch.zeros(3, 256)
    torch.save({"state_dict": weights}, "published.pth.tar")
    assert main(["validate", *imagenet, *common]) == 2
