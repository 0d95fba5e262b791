"""COCO's figures against pycocotools called by hand, and the optimizer's groups."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO as Annotations
from pycocotools.cocoeval import COCOeval

from tests import tiny
from wsbench.datamodules.annotations import read_annotations
from wsbench.datamodules.coco import split_place
from wsbench.tasks.coco import FIGURES, average_precision, detections, encode
from wsbench.tasks.errors import TaskOptionError


@pytest.fixture(scope="module")
def truth(tiny_roots: dict[str, Path]) -> Annotations:
    """Annotations of the tiny validation set."""
    place = split_place(tiny_roots["coco"], "val")
    assert place is not None
    return read_annotations(place.annotations, place.images, masks=True)


def perfect(truth: Annotations, noise: float = 0.0) -> list[dict[str, Any]]:
    """Detections that are the truth, boxes moved by ``noise`` of their size."""
    rng = np.random.default_rng(0)
    found = []
    for a in truth.dataset["annotations"]:
        box = torch.tensor(a["bbox"], dtype=torch.float32)
        box = box + noise * torch.from_numpy(rng.normal(size=4)).float() * box[2:].repeat(2)
        output = {"boxes": torch.cat([box[:2], box[:2] + box[2:]])[None], "labels": torch.tensor([a["category_id"]]),
                  "scores": torch.tensor([float(rng.uniform(0.3, 1))]),
                  "masks": torch.from_numpy(truth.annToMask(a)).float()[None, None]}  # fmt: skip
        found += detections(output, a["image_id"], range(1, 11))
    return found


def test_the_truth_scores_a_hundred(truth: Annotations) -> None:
    ids = sorted(truth.imgs)
    for kind in ("box", "mask"):
        values = average_precision(truth, perfect(truth), ids, kind)
        assert values[f"{kind}_AP"] == pytest.approx(100)
        assert values[f"{kind}_AP75"] == pytest.approx(100)
        assert set(values) <= {f"{kind}_{name}" for name in FIGURES}


def test_figures_are_pycocotools(truth: Annotations, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same detections by way of a results file, evaluated by hand."""
    found = perfect(truth, noise=0.12)
    (tmp_path / "results.json").write_text(json.dumps(found))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    expected = {f"box_{n}": 100 * v for n, v in zip(FIGURES, evaluation.stats, strict=True) if v > -1}
    assert average_precision(truth, found, sorted(truth.imgs), "box") == pytest.approx(expected)
    assert 5 < expected["box_AP"] < 95
    lines = [line for line in capsys.readouterr().out.splitlines() if "area" in line]
    areas = {"APs": "small", "APm": "medium", "APl": "large"}
    for name, area in areas.items():
        if f"box_{name}" in expected:
            line = next(x for x in lines if "Precision" in x and area in x)
            assert float(line.split()[-1]) == pytest.approx(expected[f"box_{name}"] / 100, abs=1e-3)


def test_no_detections_score_zero(truth: Annotations) -> None:
    values = average_precision(truth, [], sorted(truth.imgs), "mask")
    assert values["mask_AP"] == 0


def test_pictures_that_were_not_looked_at_do_not_count(truth: Annotations) -> None:
    first = sorted(truth.imgs)[0]
    found = [f for f in perfect(truth) if f["image_id"] == first]
    assert average_precision(truth, found, [first], "box")["box_AP"] == pytest.approx(100)
    assert average_precision(truth, found, sorted(truth.imgs), "box")["box_AP"] < 100


def test_run_lengths() -> None:
    from pycocotools import mask as rle

    masks = torch.rand(3, 9, 7) > 0.5
    assert np.array_equal(np.stack([rle.decode(e) for e in encode(masks)]), masks.numpy())


def test_optimizer_groups_are_maskrcnn_benchmarks(tiny_roots: dict[str, Path]) -> None:
    """Names with 'bias' (a norm's too) at twice the rate and without decay; gammas decay; frozen parts are left out."""
    task: Any = tiny.model("coco", "gn+ws", trainable_layers=3)
    trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(task, tiny.data("coco", tiny_roots["coco"]))
    weight, bias = trainer.optimizers[0].param_groups
    assert (weight["initial_lr"], weight["weight_decay"], weight["momentum"]) == (0.01, 1e-4, 0.9)
    assert (bias["initial_lr"], bias["weight_decay"]) == (0.02, 0.0)
    names = {id(p): n for n, p in task.network.named_parameters()}
    assert all("bias" in names[id(p)] for p in bias["params"])
    norm = task.network.backbone.body.bn1
    assert not norm.weight.requires_grad
    gamma = task.network.backbone.fpn.inner_blocks[0][1]
    assert id(gamma.weight) in {id(p) for p in weight["params"]}
    assert id(gamma.bias) in {id(p) for p in bias["params"]}
    trainable = [p for p in task.network.parameters() if p.requires_grad]
    assert len(weight["params"]) + len(bias["params"]) == len(trainable)


def test_faster_rcnn_has_boxes_only(tiny_roots: dict[str, Path]) -> None:
    task = tiny.model("coco", "gn+ws", network="faster_rcnn_resnet_mini")
    trainer = tiny.trainer(max_steps=1)
    trainer.fit(task, tiny.data("coco", tiny_roots["coco"], masks=False, steps_per_epoch=1))
    assert task.evaluation is not None
    assert all(name.startswith("box_") for name in task.evaluation.values)


def test_predictions_are_drawn(tmp_path: Path) -> None:
    task: Any = tiny.model("coco", "gn")
    task.classes = tuple("0123456789")
    picture = torch.full((3, 60, 80), 90, dtype=torch.uint8)
    masks = torch.zeros(2, 1, 60, 80)
    masks[0, 0, 10:30, 10:40] = 1
    boxes = torch.tensor([[10.0, 10, 40, 30], [0, 0, 5, 5]])
    prediction = {"path": "a/scene.png", "name": "scene", "image": picture, "boxes": boxes,
                  "labels": torch.tensor([3, 4]), "scores": torch.tensor([0.9, 0.2]), "masks": masks}  # fmt: skip
    paths = task.write_prediction(prediction, tmp_path)
    assert [p.name for p in paths] == ["scene.json", "scene.jpg"]
    rows = json.loads(paths[0].read_text())["detections"]
    assert [(r["class"], r["score"]) for r in rows] == [("2", 0.9), ("3", 0.2)]
    drawn = np.asarray(Image.open(paths[1]))
    assert abs(drawn[25, 30].astype(int) - 90).max() > 20, "the mask"
    assert abs(drawn[50, 70].astype(int) - 90).max() < 6
    assert abs(drawn[3, 3].astype(int) - 90).max() < 6, "a score below 0.5 is not drawn"


def test_unknown_networks() -> None:
    with pytest.raises(TaskOptionError, match="unknown network 'yolo'; choose one of mask_rcnn_, faster_rcnn_"):
        tiny.model("coco", "gn", network="yolo")
    with pytest.raises(TaskOptionError, match="trainable_layers must be 0 to 5"):
        tiny.model("coco", "gn", trainable_layers=9)
