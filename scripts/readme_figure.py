"""The README's picture and table from published records: ``python scripts/readme_figure.py``.

Above: the main metric of every miniature and normalization, a dot a seed, and what a predictor at chance level
gets. Below: a sample of each miniature. The table is printed.
"""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torchvision.utils import draw_bounding_boxes

from wsbench.datamodules import data_class
from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.voc import devkit
from wsbench.records import RunRecord, read_record
from wsbench.tasks.coco import average_precision
from wsbench.tasks.voc import mean_iou

ROOT = Path(__file__).parents[1]
COLOURS = {"bn": "#4477aa", "bn+ws": "#66ccee", "gn": "#cc6677", "gn+ws": "#228833"}
PANELS = {
    "imagenet": ("top1_error", "top-1 accuracy, 1 at a time"),
    "something": ("top1_acc", "top-1 accuracy, 1 clip at a time"),
    "voc": ("miou", "mIoU, 1 at a time"),
    "modelnet40": ("overall_acc", "accuracy, 16 at a time"),
    "coco": ("box_AP", "box AP, 2 at a time"),
}
CONSTRUCTOR = {
    "imagenet": {"crop": 48, "resize": 48},
    "something": {"crop": 64, "resize": 64},
    "voc": {"crop": 97, "train_set": "train"},
    "modelnet40": {"points": 512},
    "coco": {},
}


def records() -> dict[str, dict[str, list[RunRecord]]]:
    """``{task: {norm: records}}``; the 16 groups of DGCNN's GN are called gn here."""
    found: dict[str, dict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((ROOT / "leaderboards/records").glob("*/*.json")):
        record = read_record(path)
        if record.overrides or record.tuning is not None:  # the batch-size sweep's, and those at rates of their own
            continue
        found[record.task][record.norm.replace("gn16", "gn")].append(record)
    return found


def miniature(task: str) -> Any:
    """The datamodule of a miniature, set up."""
    options: dict[str, Any] = CONSTRUCTOR[task]
    data: BenchmarkData = data_class(task)(miniature=True, num_workers=0, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def trivial(task: str, data: Any) -> float:
    """The metric of a predictor at chance level, higher being better.

    The commonest class; on COCO a box around the whole picture for every class.
    """
    if task == "voc":
        confusion = torch.zeros(11, 11)
        for i in range(len(data.val_data)):
            mask = data.val_data[i]["mask"].long()
            confusion[:, 0] += torch.bincount(mask[mask != 255], minlength=11)
        return 100 * float(mean_iou(confusion))
    if task == "coco":
        truth = data.val_annotations
        boxes = [
            {"image_id": i, "category_id": c, "bbox": [0, 0, picture["width"], picture["height"]], "score": 0.5}
            for i, picture in truth.imgs.items()
            for c in data.category_ids
        ]
        return average_precision(truth, boxes, sorted(truth.imgs), "box")["box_AP"]
    labels = {"imagenet": lambda: [s[1] for s in data.val_data.samples],
              "something": lambda: [c.label for c in data.val_data.clips],
              "modelnet40": lambda: data.val_data.labels.tolist()}[task]()  # fmt: skip
    return 100 * float(np.bincount(labels).max() / len(labels))


def bars(axis: plt.Axes, task: str, groups: dict[str, list[RunRecord]], nothing: float) -> None:
    """One panel."""
    metric, title = PANELS[task]
    for x, (norm, colour) in enumerate(COLOURS.items()):
        values = [100 - r.metrics[metric].value if metric.endswith("error") else r.metrics[metric].value
                  for r in groups.get(norm, [])]  # fmt: skip
        if values:
            axis.bar(x, statistics.mean(values), color=colour, width=0.75)
            axis.plot([x + d for d in np.linspace(-0.2, 0.2, len(values))], values, ".", color="black", markersize=4)
            axis.text(x, max(values) + 2, f"{statistics.mean(values):.0f}", ha="center", fontsize=8)
    axis.axhline(nothing, color="black", linewidth=1, linestyle=":")
    axis.set_xticks(range(len(COLOURS)), list(COLOURS), fontsize=7)
    axis.set(ylim=(0, 108), title=task)
    axis.set_xlabel(title, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", labelsize=7)


def sample(axis: plt.Axes, task: str, data: Any) -> None:
    """One picture of a miniature."""
    if task == "imagenet":
        tiles = [data.val_data[i]["image"].permute(1, 2, 0).numpy() for i in range(0, 500, 125)]
        axis.imshow(np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])]))
    elif task == "something":
        frames = data.val_data[2]["clip"].permute(0, 2, 3, 1).numpy()
        axis.imshow(np.vstack([np.hstack(list(frames[:4])), np.hstack(list(frames[4:]))]))
    elif task == "voc":
        name, folder = data.val_names[8], devkit(data.root())
        picture = Image.open(folder / "JPEGImages" / f"{name}.jpg")
        mask = Image.open(folder / "SegmentationClass" / f"{name}.png").convert("RGB")
        axis.imshow(np.hstack([np.asarray(picture), np.asarray(mask)]))
    elif task == "modelnet40":
        x, y, z = data.val_data.clouds[3].T.numpy()
        axis.scatter(x + 0.35 * z, y + 0.2 * z, s=1.5, c=z, cmap="viridis")
        axis.set_aspect("equal")
    else:
        i = data.val_data.ids[4]
        picture, _ = data.val_data[4]
        objects = data.val_annotations.imgToAnns[i]
        corners = torch.tensor([o["bbox"] for o in objects])
        boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
        axis.imshow(draw_bounding_boxes(picture, boxes, colors="white", width=1).permute(1, 2, 0).numpy())
    axis.axis("off")


def main() -> None:
    """Draw it, print the table."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(2, len(PANELS), figsize=(13, 4.6), dpi=100, layout="constrained",
                                height_ratios=(1.25, 1))  # fmt: skip
    found = records()
    print("| task (metric) | chance level | " + " | ".join(f"`{norm}`" for norm in COLOURS) + " |")
    print("|---|---|" + "---|" * len(COLOURS))
    for column, (task, (metric, _)) in enumerate(PANELS.items()):
        data = miniature(task)
        nothing = trivial(task, data)
        bars(axes[0, column], task, found[task], nothing)
        sample(axes[1, column], task, data)
        cells = []
        for norm in COLOURS:
            values = [r.metrics[metric].value for r in sorted(found[task].get(norm, []), key=lambda r: r.seed)]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else "-")
        shown = 100 - nothing if metric.endswith("error") else nothing
        print(f"| {task} (`{metric}`) | {shown:.1f} | {' | '.join(cells)} |")
    figure.savefig(ROOT / "docs" / "miniatures.png")


if __name__ == "__main__":
    main()
