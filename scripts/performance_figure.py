"""Draw docs/performance.png from docs/performance.json, the output of ``python -m benchmarks.step --json``."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
NAMES = {
    "resnet18 64px": "ResNet-18, 64 px", "imagenet": "ResNet-50, 224 px", "something": "TSM ResNet-50, 8 frames",
    "voc": "DeepLabv3 ResNet-101, 513 px", "coco": "Mask R-CNN ResNet-50, 800 px", "modelnet40": "DGCNN, 1,024 points",
}  # fmt: skip
FORMS = {
    "bn": "#8da0b6", "sn": "#c9b458", "gn+ws, window": "#1b7f5c", "gn+ws, no window": "#7fc8a9",
    "gn+ws, authors' formula": "#d1495b", "gn+wn, window": "#6a6599",
}  # fmt: skip


def main() -> None:
    """Bars of the time of a micro-step relative to plain GN, 64 of which make an optimizer step."""
    content = json.loads((DOCS / "performance.json").read_text())
    networks = [name for name in NAMES if name in content["networks"]]
    figure, axes = plt.subplots(figsize=(10.5, 0.78 * len(networks) + 1.6), layout="constrained")
    height = 0.8 / len(FORMS)
    for i, (form, colour) in enumerate(FORMS.items()):
        ratios = [content["networks"][n]["ratio"][form]["K=64"] for n in networks]
        places = [k - 0.4 + (i + 0.5) * height for k in range(len(networks))]
        bars = axes.barh(places, ratios, height * 0.92, color=colour, label=form)
        axes.bar_label(bars, [f"{r:.2f}" for r in ratios], fontsize=7, padding=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(networks)), [NAMES[n] for n in networks])
    axes.invert_yaxis()
    axes.set_xlabel(
        "time of a training micro-step of one sample relative to plain GN; 64 micro-steps an optimizer step"
    )
    machine = f"{content['machine']}, {content['threads']} threads, torch {content['torch']}"
    axes.set_title(f"What a normalization costs at batch 1 ({machine})", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(DOCS / "performance.png", dpi=110)


if __name__ == "__main__":
    main()
