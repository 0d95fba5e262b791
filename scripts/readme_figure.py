"""The README's picture from published records and two runs: ``python scripts/readme_figure.py RUN_A RUN_B``.

Left: validation mIoU of the VOC miniature against optimizer steps, every seed a thin line, their mean a thick one.
Right: validation scenes, their masks, and what the two runs' checkpoints make of them.
"""

import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch
import yaml
from matplotlib import pyplot as plt
from PIL import Image

from wsbench.datamodules import VOC
from wsbench.datamodules.palette import palette_image
from wsbench.datamodules.voc import devkit
from wsbench.records import read_record
from wsbench.run.logger import read_metrics
from wsbench.tasks import VOCSegmentation

ROOT = Path(__file__).parents[1]
COLOURS = {"bn": "#4477aa", "bn+ws": "#66ccee", "gn": "#cc6677", "gn+ws": "#228833"}


def curves(axis: plt.Axes) -> None:
    """Validation mIoU of every published record of the miniature."""
    groups = defaultdict(list)
    for path in sorted((ROOT / "leaderboards/records/voc").glob("*.json")):
        record = read_record(path)
        groups[record.norm].append(read_metrics(path.with_suffix(".metrics.jsonl"))["val/miou"])
    for norm, runs in groups.items():
        steps = sorted(runs[0])
        values = np.array([[run[s] for s in steps] for run in runs])
        axis.plot(steps, values.T, color=COLOURS[norm], linewidth=0.7, alpha=0.5)
        axis.plot(
            steps, values.mean(0), color=COLOURS[norm], linewidth=2.4, label=f"{norm}  {values[:, -1].mean():.1f}"
        )
    axis.set(xlabel="optimizer steps (4 pictures each, one at a time)", ylabel="validation mIoU, %", ylim=(0, 100))
    axis.legend(title="norm, final mean of three seeds", loc="upper left", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def load(run: Path) -> tuple[str, VOCSegmentation]:
    """The task of a run with its final weights."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    task = VOCSegmentation(norm=config["norm"], num_classes=config["data"]["num_classes"], **config["model"])
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(checkpoint["state_dict"])
    return config["norm"], task.eval()


@torch.no_grad()
def scenes(axes: np.ndarray, runs: list[Path]) -> None:
    """Pictures, masks and predictions."""
    data = VOC(miniature=True, train_set="train", num_classes=11, crop=97)
    data.setup("fit")
    tasks = [load(run) for run in runs]
    titles = ["picture", "mask", *(norm for norm, _ in tasks)]
    for row, index in enumerate((3, 8, 17)):
        name = data.val_names[index]
        picture = Image.open(devkit(data.root()) / "JPEGImages" / f"{name}.jpg")
        mask = Image.open(devkit(data.root()) / "SegmentationClass" / f"{name}.png")
        shown = [picture, mask.convert("RGB")]
        for _, task in tasks:
            prediction = task(data.val_data[index]["image"][None])[0, :, : picture.height, : picture.width].argmax(0)
            shown.append(palette_image(prediction.byte().numpy()).convert("RGB"))
        for axis, image, title in zip(axes[row], shown, titles, strict=True):
            axis.imshow(image)
            axis.axis("off")
            if row == 0:
                axis.set_title(title, fontsize=10)


def main() -> None:
    """Draw it."""
    matplotlib.use("Agg")
    figure = plt.figure(figsize=(11, 4), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    curves(left.subplots())
    scenes(right.subplots(3, 4), [Path(run) for run in sys.argv[1:3]])
    figure.savefig(ROOT / "docs" / "voc-mini.png")


if __name__ == "__main__":
    main()
