"""``analyze`` and ``analyze diagnose`` as users call them, on runs of a second."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from tests import tiny
from tests.running import fit, only_run
from wsbench.__main__ import main
from wsbench.analysis import Problem, ProblemError, curvature, smoothness
from wsbench.analysis.findings import shares_of
from wsbench.norms import stamp_spec
from wsbench.records import read_record

RUN = ("--trainer.max_steps", "4", "--data.steps_per_epoch", "2", "--trainer.accelerator", "cpu",
       "--data.crop", "48", "--data.effective_batch", "2", "--trainer.limit_val_batches", "1")  # fmt: skip
QUICK = ("--samples", "2", "--probes", "2", "--device", "cpu")


def analyze(*options: str) -> int:
    return main(["analyze", *options])


@pytest.fixture
def small_imagenet(in_a_folder: None, monkeypatch: pytest.MonkeyPatch, tiny_roots: dict[str, Path]) -> tuple[str, ...]:
    """Options of a run of four steps."""
    root = ("--data.root", str(tiny_roots["imagenet"]), "--data.miniature", "false", "--recipe", "mini")
    return ("--task", "imagenet", *root, *RUN[:-2])


@pytest.mark.slow
def test_from_nothing_to_pictures_and_data(small_imagenet: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    options = (*small_imagenet, "--norm", "gn,gn+ws-mo,gn+ws", "--snapshots", "3", *QUICK)
    assert analyze(*options) == 0
    out = capsys.readouterr().out
    content = json.loads(Path("analysis/analysis.json").read_text())
    assert [run["norm"] for run in content["runs"]] == ["gn", "gn+ws-mo", "gn+ws"]
    for run in content["runs"]:
        assert [c["step"] for c in run["checkpoints"]] == [0, 2, 4]
        assert ["curvature" in c for c in run["checkpoints"]] == [True, False, True]
        assert run["curves"]["val/top1_error"][-1][0] == 4
    plain, centred, both = content["runs"]
    assert plain["shares"] == []
    assert [line["step"] for line in both["shares"]] == [0, 2]
    assert all(line["network"]["mean_of_ratios"]["A"] == 0 for line in centred["shares"])
    for name in ("fig4", "layers", "curvature", "smoothness"):
        with Image.open(f"analysis/{name}.png") as picture:
            assert picture.width > 600
            assert len(set(picture.convert("RGB").resize((40, 20)).getdata())) > 20, "not an empty sheet"
        assert f"wrote analysis/{name}.png" in out
    record = read_record(Path("runs/imagenet") / both["run"] / "result.json")
    assert [point.step for point in record.analysis] == [0, 2]
    expected = both["shares"][0]["network"]["mean_of_ratios"]
    assert record.analysis[0].mean_of_ratios.model_dump() == pytest.approx(expected, abs=1e-6)
    # again: nothing is trained anew
    before = (Path("runs/imagenet") / both["run"] / "result.json").read_bytes()
    assert analyze(*options) == 0
    assert (Path("runs/imagenet") / both["run"] / "result.json").read_bytes() == before


def test_options_of_measuring_do_not_change_a_runs_identity(small_imagenet: tuple[str, ...]) -> None:
    assert main(["fit", *small_imagenet, "--norm", "gn+ws"]) == 0
    assert main(["fit", *small_imagenet, "--norm", "gn+ws", "--analysis", "true", "--snapshots", "2",
                 "--overwrite", "true"]) == 0  # fmt: skip
    (folder,) = Path("runs/imagenet").iterdir()
    assert len(list(folder.glob("step-*.ckpt"))) == 2
    assert main(["fit", *small_imagenet, "--norm", "gn+ws", "--overwrite", "true"]) == 0
    assert not list(folder.glob("step-*.ckpt")), "the files of the run before are gone"
    assert not (folder / "analysis.jsonl").exists()
    assert read_record(folder / "result.json").analysis == ()


def test_a_finished_run_without_what_is_needed(
    small_imagenet: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *small_imagenet, "--norm", "gn+ws", "--model.milestones", "[15]"]) == 0
    assert analyze(*small_imagenet, "--norm", "gn+ws", *QUICK) == 2
    err = capsys.readouterr().err
    assert "trained before, without what analyze needs" in err
    assert "--overwrite true" in err
    assert not Path("analysis").exists()


def test_a_checkpoint(root: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(root, "--norm", "gn+ws") == 0
    folder = only_run()
    assert analyze("--ckpt_path", str(folder / "last.ckpt"), "--output", "out", *QUICK) == 0
    (run,) = json.loads(Path("out/analysis.json").read_text())["runs"]
    assert run["shares"] == []
    assert run["checkpoints"][0]["shares"]["network"]["error"] < 1e-4, "measured on the checkpoint itself"
    assert {p.name for p in Path("out").iterdir()} == {
        "analysis.json", "fig4.png", "layers.png", "curvature.png", "smoothness.png"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ckpt_path", "nowhere.ckpt"], "'nowhere.ckpt' does not exist"),
        (["--task", "imagenet", "--norm", "gn+wn"], "--norm gn+wn: what is analyzed is weight standardization"),
        (["--task", "imagenet", "--norm", "gn,xx"], "unknown activation normalization 'xx'"),
        (["--ckpt_path", "x.ckpt", "--trainer.max_steps", "3"], "nothing to configure: --trainer.max_steps 3"),
        (["--task", "imagenet", "--recipe", "huge"], "choose from paper, small, mini"),
        (["--task", "imagenet", "--snapshots", "1"], "--snapshots 1: at least 2"),
    ],
)
def test_what_is_refused(
    options: list[str], message: str, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert analyze(*options) == 2
    assert message in capsys.readouterr().err
    assert not Path("analysis").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--norm", "gn"], "'gn' has none; use for instance --norm gn+ws"),
        (["--norm", "gn+ws", "--model.compile", "true"], "--model.compile true has fused"),
        (
            ["--norm", "gn+ws", "--snapshots", "2", "--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"],
            "say its length with",
        ),
    ],
)
def test_analysis_of_a_run_that_has_nothing_to_analyze(
    options: list[str], message: str, root: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(root, "--analysis", "true", *options) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_without_matplotlib_nothing_is_trained(
    in_a_folder: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert analyze("--task", "imagenet") == 2
    assert "pip install 'wsbench[analysis]'" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("task", tiny.TASKS)
@pytest.mark.parametrize("norm", ["gn+ws", "bn"])
def test_every_tasks_loss_can_be_probed(task: str, norm: str, tiny_roots: dict[str, Path]) -> None:
    """Shares and smoothness of all five; curvature where all of the network can be differentiated twice."""
    data = {"root": str(tiny_roots[task]), "num_workers": 0, "micro_batch": 2, "effective_batch": 4,
            "steps_per_epoch": 2} | tiny.DATA[task]  # fmt: skip
    settings: dict[str, Any] = {"task": task, "seed_everything": 0, "data": data, "model": tiny.MODEL[task]}
    problem = Problem.of_run(tiny.model(task, norm), settings, 2)
    found = smoothness(problem, [1e-4])
    assert found.beta > 0
    assert smoothness(problem, [1e-4]) == found, "drawn alike"
    if norm == "gn+ws":
        shares = shares_of(problem)
        assert len(shares) == len(problem.layers)
        assert max(s.error for s in shares.values()) < 1e-5
    if task in ("modelnet40", "coco"):
        with pytest.raises(ProblemError, match="cannot be measured"):
            curvature(problem, 2)
    else:
        assert len(curvature(problem, 2)) == len(problem.layers) + 1


def test_a_samplewise_loss_does_not_depend_on_the_micro_batch(tiny_roots: dict[str, Path]) -> None:
    data = {"root": str(tiny_roots["imagenet"]), "num_workers": 0, "effective_batch": 4} | tiny.DATA["imagenet"]
    losses = {}
    for norm in ("gn+ws", "bn"):
        for micro in (1, 4):
            settings: dict[str, Any] = {
                "task": "imagenet", "seed_everything": 0, "data": data | {"micro_batch": micro},
                "model": tiny.MODEL["imagenet"],
            }  # fmt: skip
            torch.manual_seed(0)
            problem = Problem.of_run(tiny.model("imagenet", norm), settings, 4)
            losses[norm, micro] = smoothness(problem, [1e-4]).loss
            assert len(problem.batches) == (1 if norm == "gn+ws" or micro == 4 else 4)
    assert losses["gn+ws", 1] == pytest.approx(losses["gn+ws", 4], rel=1e-5)
    assert losses["bn", 1] != pytest.approx(losses["bn", 4], rel=1e-3), "BN sees what it is trained with"


class TestDoctor:
    def test_a_run(self, root: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
        assert fit(root, "--norm", "gn+ws") == 0
        capsys.readouterr()
        status = analyze("doctor", str(only_run() / "last.ckpt"), "--json")
        checks = json.loads(capsys.readouterr().out)
        assert [c["name"] for c in checks if c["not_checked"]] == [], "a run knows all that there is to know"
        assert status == 0, [c for c in checks if c["findings"]]

    def test_a_run_of_bn_at_one_picture(
        self, root: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert fit(root, "--norm", "bn+ws") == 0
        capsys.readouterr()
        assert analyze("diagnose", str(only_run() / "last.ckpt"), "--json") == 1
        found = {c["name"]: c["findings"] for c in json.loads(capsys.readouterr().out)}
        layers = [f["layer"] for f in found["batch statistics of one sample"]]
        assert "backbone.bn1" in layers
        assert analyze("diagnose", str(only_run() / "last.ckpt")) == 1
        assert f"{len(layers)} findings" in capsys.readouterr().out

    def test_a_checkpoint_of_another_spec_than_the_configurations(
        self, root: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert fit(root, "--norm", "gn+ws") == 0
        config = only_run() / "config.yaml"
        settings = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump(settings | {"norm": "gn"}))
        capsys.readouterr()
        assert analyze("diagnose", str(only_run() / "last.ckpt"), "--json") == 1
        (finding,) = (f for c in json.loads(capsys.readouterr().out) for f in c["findings"])
        assert "trained with 'gn+ws', the model is 'gn'" in finding["what"]

    def test_a_run_that_started_from_other_weights(
        self, root: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert fit(root, "--norm", "gn") == 0
        first = only_run()
        assert fit(root, "--norm", "gn+ws", "--model.init_from", str(first / "last.ckpt"),
                   "--model.init_from_any_norm", "true") == 0  # fmt: skip
        (second,) = (p for p in Path("runs/voc").iterdir() if p.name != first.name)
        capsys.readouterr()
        assert analyze("diagnose", str(second / "last.ckpt"), "--json") == 1
        (finding,) = (f for c in json.loads(capsys.readouterr().out) for f in c["findings"])
        assert "training started from weights of 'gn', the model is 'gn+ws'" in finding["what"]

    def test_a_model_of_ones_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "my_models.py").write_text(
            "from torch import nn\n"
            "def net():\n"
            "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))\n"
            "def number():\n"
            "    return 3\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        options = ["my_models:net", "--example", "1,3,8,8", "--json"]
        assert analyze("diagnose", *options, "--norm", "gn+ws") == 1
        (finding,) = (f for c in json.loads(capsys.readouterr().out) for f in c["findings"])
        assert (finding["layer"], finding["remedy"][:24]) == ("0", "build it with bias=False")

        weights: dict[str, Any] = {"state_dict": nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).state_dict()}  # fmt: skip
        stamp_spec(weights, "bn")
        torch.save(weights, tmp_path / "bn.pth")
        assert analyze("diagnose", *options, "--norm", "bn+ws", "--ckpt_path", str(tmp_path / "bn.pth"), "--init_from",
                       f"bn={tmp_path / 'bn.pth'}", "--micro_batch", "1") == 1  # fmt: skip
        found = {c["name"]: len(c["findings"]) for c in json.loads(capsys.readouterr().out)}
        assert found["spec of the model and of its checkpoint"] == 1
        assert found["initialized from weights of another normalization"] == 1
        assert found["batch statistics of one sample"] == 1

        for target, message in (
            ("my_models:nothing", "cannot build 'my_models:nothing'"),
            ("my_models:number", "returned a int"),
            ("no_such_module:net", "No module named 'no_such_module'"),
            ("resnet50", "neither a file nor a network: timm:NAME"),
            ("runs/voc/x/last.ckpt", "'runs/voc/x/last.ckpt' does not exist"),
        ):
            assert analyze("diagnose", target) == 2
            assert message in capsys.readouterr().err
        assert analyze("diagnose", "my_models:net", "--example", "a,b") == 2
        assert "--example a,b: expected a shape" in capsys.readouterr().err
        assert analyze("diagnose", "my_models:net", "--norm", "gn5", "--example", "1,3,8,8") == 2
        assert "--norm gn5" in capsys.readouterr().err
        assert analyze("diagnose", "my_models:net", "--ckpt_path", str(tmp_path / "none.pth")) == 2
        assert "none.pth' does not exist" in capsys.readouterr().err
