"""Commands that use a run: validate, test, resume, predict; each trap of Lightning's CLI has a test."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.running import fit, only_run
from wsbench.__main__ import main
from wsbench.datamodules.pictures import open_upright
from wsbench.datamodules.voc import CLASSES
from wsbench.records import read_record

pytestmark = pytest.mark.usefixtures("in_a_folder")


# -- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_alone_is_enough(run: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_record(run / "result.json")
    assert main([command, "--ckpt_path", str(run / "last.ckpt")]) == 0
    assert f"gn+ws: miou {record.metrics['miou'].value:.2f}" in capsys.readouterr().out


def test_a_checkpoint_without_its_run_says_what_is_missing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run / "last.ckpt", "alone.ckpt")
    assert main(["test", "--ckpt_path", "alone.ckpt"]) == 2
    assert "no config.yaml beside 'alone.ckpt'" in capsys.readouterr().err
    assert main(["test", "--task", "voc"]) == 2
    assert "test needs --ckpt_path" in capsys.readouterr().err
    assert main(["test", "--task", "voc", "--ckpt_path", "none.ckpt"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_another_norm_is_refused_by_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gn has the keys and shapes of gn+ws: loading would succeed and the numbers would be wrong."""
    assert main(["test", "--ckpt_path", str(run / "last.ckpt"), "--norm", "gn"]) == 2
    assert "was trained with 'gn+ws', the model is 'gn'" in capsys.readouterr().err


def test_hyper_parameters_in_a_checkpoint_are_never_read(run: Path, root: Path) -> None:
    """Lightning merges them over the command line."""
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] = {"lr": 0.5, "weight_decay": 0.5}
    torch.save(checkpoint, "poisoned.ckpt")
    assert fit(root, "--ckpt_path", "poisoned.ckpt", "--runs", "more") == 0
    config = yaml.safe_load((Path("more/voc") / run.name / "config.yaml").read_text())
    assert (config["model"]["lr"], config["model"]["weight_decay"]) == (0.02, 0.0001)


def test_another_configuration_is_not_resumed(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning would restore the checkpoint's optimizer and schedule, whatever the command line says."""
    options = ("--model.lr", "0.125", "--trainer.max_steps", "8")
    assert fit(root, "--ckpt_path", str(run / "last.ckpt"), *options) == 2
    error = capsys.readouterr().err
    assert "they differ in model.lr, trainer.max_steps" in error
    assert "--model.init_from" in error


def test_resumed_by_path_is_the_same_run(run: Path, root: Path) -> None:
    first = read_record(run / "result.json")
    (run / "result.json").unlink()
    assert main(["fit", "--ckpt_path", str(run / "last.ckpt")]) == 0
    again = read_record(run / "result.json")
    assert again.overrides == first.overrides
    assert again.overrides
    assert again.metrics == first.metrics


def test_using_a_run_leaves_its_config_alone(run: Path, root: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    Path("mine").mkdir()
    Image.new("RGB", (30, 30)).save("mine/a.png")
    last = str(run / "last.ckpt")
    for command in (
        ["test", "--ckpt_path", last, "--data.crop", "40"],
        ["predict", "--ckpt_path", last, "--data.pictures", "mine"],
        ["validate", "--ckpt_path", last],
        ["fit", "--config", str(run / "config.yaml"), "--runs", "again"],
    ):
        assert main(command) == 0, command
        assert (run / "config.yaml").read_bytes() == before
    assert next(Path("again/voc").iterdir()).name == run.name


def test_a_run_does_not_need_what_it_was_initialized_from(run: Path, root: Path) -> None:
    shutil.copy(run / "last.ckpt", "first.ckpt")
    assert fit(root, "--model.init_from", "first.ckpt", "--runs", "second") == 0
    (folder,) = Path("second/voc").iterdir()
    assert folder.name != run.name
    Path("first.ckpt").unlink()
    assert main(["test", "--ckpt_path", str(folder / "last.ckpt")]) == 0
    (folder / "result.json").unlink()
    assert main(["fit", "--ckpt_path", str(folder / "last.ckpt")]) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_from"] == "first.ckpt"


@pytest.mark.parametrize("content", [b"junk", b""])
def test_not_a_checkpoint(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.ckpt").write_bytes(content)
    assert main(["test", "--task", "voc", "--ckpt_path", "x.ckpt"]) == 2
    assert "'x.ckpt' is not a checkpoint" in capsys.readouterr().err


def test_the_log_survives_being_resumed(run: Path, root: Path) -> None:
    """Lightning's CSVLogger deletes its file here."""
    before = (run / "metrics.jsonl").read_text()
    (run / "result.json").unlink()
    assert fit(root) == 2, "an unfinished run is not silently overwritten"
    assert fit(root, "--ckpt_path", "last") == 0
    assert (run / "metrics.jsonl").read_text().startswith(before)
    assert read_record(run / "result.json").steps == 4


# -- predict --------------------------------------------------------------------------------------------------------


def test_predict_on_a_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    Path("mine").mkdir()
    for name, size in {"a.jpg": (50, 20), "b.png": (20, 20)}.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(f"mine/{name}")
    assert main(["predict", "--ckpt_path", str(run / "last.ckpt"), "--data.pictures", "mine", "--output", "out"]) == 0
    assert "wrote 7 files into out" in capsys.readouterr().out
    names = {f"{name}{end}" for name in "ab" for end in (".png", "_overlay.jpg", ".json")}
    assert {p.name for p in Path("out").iterdir()} == {*names, "predictions.csv"}
    shares = json.loads(Path("out/a.json").read_text())["classes"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    assert set(shares) <= set(CLASSES)
    rows = list(csv.DictReader(Path("out/predictions.csv").read_text().splitlines()))
    assert rows[0] == {"file": "mine/a.jpg", "class": next(iter(shares)), "share": str(max(shares.values()))}
    mask = Image.open("out/a.png")
    assert (mask.mode, mask.size) == ("P", (20, 50))
    assert mask.getpalette()[3:6] == [128, 0, 0], "VOC's palette"
    assert np.asarray(mask).max() < 21
    assert Image.open("out/a_overlay.jpg").size == (20, 50)
    assert main(["predict", "--ckpt_path", str(run / "last.ckpt"), "--data.pictures", "nowhere"]) == 2
    assert (
        main(["predict", "--ckpt_path", str(run / "last.ckpt"), "--data.pictures", "mine", "--output", "./mine"]) == 2
    )
    assert "would overwrite your images" in capsys.readouterr().err


def test_a_photograph_that_lies_on_its_side(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_upright(tmp_path / "a.jpg").size == (20, 50)


def test_auto_resumes_what_there_is_and_starts_otherwise(
    root: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--ckpt_path auto``: a start, a run that is finished, an unfinished one."""
    assert fit(root, "--ckpt_path", "auto") == 0
    folder = only_run()
    capsys.readouterr()
    assert fit(root, "--ckpt_path", "auto") == 0
    assert "this run is finished" in capsys.readouterr().out
    (folder / "result.json").unlink()
    log = (folder / "metrics.jsonl").read_text()
    assert fit(root, "--ckpt_path", "auto") == 0
    assert read_record(folder / "result.json").steps == 4
    again = (folder / "metrics.jsonl").read_text().removeprefix(log)
    assert '"step": 2' not in again  # nothing was left to train
