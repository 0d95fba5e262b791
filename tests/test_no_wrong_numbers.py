"""What used to give a plausible number, or a traceback, through the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.running import fit, only_run
from tests.test_recipes import line
from wsbench.__main__ import main
from wsbench.records import read_record
from wsbench.tasks.errors import NotFiniteError

pytestmark = pytest.mark.usefixtures("in_a_folder")


def spoil(checkpoint: Path) -> Path:
    """The checkpoint with weights that are not numbers."""
    content = torch.load(checkpoint, weights_only=True)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    target = checkpoint.with_name("spoiled.ckpt")
    torch.save(content, target)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_network_of_nans_is_neither_evaluated_nor_predicts(
    task: str, tiny_roots: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.test_recipes import samples_of

    root = tiny_roots[task]
    assert main(line(task, "small", root, "--trainer.max_epochs", "1")) == 0
    (folder,) = Path("runs", task).iterdir()
    spoiled = str(spoil(folder / "last.ckpt"))
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", spoiled]) == 2
    error = capsys.readouterr().err
    name = {"imagenet": "n00000000_0.JPEG", "something": "20bn-something-something-v1/13", "voc": "val_000000.jpg",
            "modelnet40": "ply_data_test0.h5", "coco": "000000000001.jpg"}[task]  # fmt: skip
    assert name in error, "the first sample"
    assert "is not finite" in error
    pictures = samples_of(task, root, Path("mine"))
    assert main(["predict", "--ckpt_path", spoiled, "--data.pictures", str(pictures), "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert "is not finite" in error
    assert "mine/" in error
    assert "Traceback" not in error
    assert not list(Path("out").glob("*.json"))


@pytest.mark.parametrize("part", ["roi_heads.mask_predictor", "rpn.head", "roi_heads.box_predictor", "backbone.fpn"])
def test_nans_in_one_part_of_a_detector_are_seen(part: str, tiny_roots: dict[str, Path]) -> None:
    task = tiny.model("coco", "gn")
    data = tiny.data("coco", tiny_roots["coco"])
    # boxes of any score, so that there are masks to look at
    task.network.roi_heads.score_thresh = -1.0  # type: ignore[union-attr]
    for value in task.network.get_submodule(part).parameters():
        value.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"000000000001\.jpg' is not finite"):
        tiny.trainer().validate(task, data, verbose=False)


@pytest.mark.parametrize("options", [["--data.num_classes", "7"], []])
def test_the_number_of_classes_of_a_checkpoint(
    options: list[str], tiny_roots: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line("imagenet", "small", tiny_roots["imagenet"], "--trainer.max_epochs", "1")) == 0
    (folder,) = Path("runs/imagenet").iterdir()
    status = main(["validate", "--ckpt_path", str(folder / "last.ckpt"), *options])
    assert status == (2 if options else 0)
    error = capsys.readouterr().err
    assert ("--data.num_classes 7 was given, the checkpoint is of 10 classes (n00000000" in error) is bool(options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_sample_is_one_sentence_in_whichever_process(
    workers: str, tiny_roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tiny_roots["imagenet"], tmp_path / "data"))
    for path in (root / "train").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:40])
    assert main(line("imagenet", "paper", root, "--data.num_workers", workers)) == 2
    error = capsys.readouterr().err
    (said,) = [text for text in error.splitlines() if "error" in text]
    assert said.startswith("wsbench: error: cannot read '")
    assert said.endswith("; replace the file")
    assert "Caught" not in error
    assert "Traceback" not in error


def test_averaged_weights_are_those_that_are_recorded(root: Path) -> None:
    """StochasticWeightAveraging puts the average in place when training has ended, behind the last evaluation."""
    swa = "lightning.pytorch.callbacks.StochasticWeightAveraging"
    options = ("--trainer.callbacks+", swa, "--trainer.callbacks.swa_lrs", "0.05")
    options += ("--trainer.callbacks.swa_epoch_start", "1", "--trainer.max_steps", "-1", "--trainer.max_epochs", "4")
    assert fit(root, *options) == 0
    folder = only_run()
    record = read_record(folder / "result.json")
    last, best = (torch.load(folder / f"{n}.ckpt", weights_only=True) for n in ("last", "best"))
    assert any("SWA" in key or "StochasticWeightAveraging" in key for key in last["callbacks"])
    weight = "network.backbone.conv1.weight"
    assert not torch.equal(last["state_dict"][weight], best["state_dict"][weight])
    assert main(["validate", "--ckpt_path", str(folder / "last.ckpt")]) == 0
    from wsbench.run.lines import read_metrics

    logged = read_metrics(folder / "metrics.jsonl")["val/miou"]
    assert record.metrics["miou"].step == record.steps == max(logged)
    validated = logged[record.steps]
    assert record.metrics["miou"].value == pytest.approx(validated, abs=1e-3), "the evaluation of the averaged weights"


def test_grey_images_of_16_bits_train_as_of_8(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_roots["imagenet"], tmp_path / "data"))
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    (folder,) = [p for p in (root / "train").iterdir() if p.name == "n00000000"]
    for path in folder.iterdir():
        path.unlink()
    Image.fromarray(grey).save(folder / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "b.PNG")
    data = tiny.data("imagenet", root, crop=32, resize=32)
    data.setup("fit")
    data.train_data.transform = lambda image: image
    a, b = (data.train_data[i]["image"] for i in (0, 1))
    assert torch.equal(a, b)
    assert torch.equal(a, torch.from_numpy(grey).expand(3, -1, -1))
