"""Pictures a second on one core for ImageNet's training transform: ``python -m benchmarks.pictures --root FOLDER``.

The reference is the usual pipeline: Pillow opens the file, torchvision's transforms on Pillow pictures crop and mirror,
ToImage, ToDtype and Normalize make floats in the worker. Ours decodes with torchvision, stays uint8, and is normalized
on the device. Both on the same files, in one interleaved run; without --root on the miniature, whose pictures are tiny.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.timing import interleaved
from wsbench.datamodules import ImageNet
from wsbench.datamodules.imagenet import folder
from wsbench.datamodules.sampling import Draw
from wsbench.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD


def main() -> None:
    """Print the rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="a dataset in ImageNet's folders")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.root:
        classes = sum(p.is_dir() for p in (folder(Path(args.root)) / "train").iterdir())
        data = ImageNet(root=args.root, num_classes=classes)
    else:
        data = ImageNet(miniature=True, num_classes=10)
    data.setup("fit")
    chosen = range(0, len(data.train_data), max(1, len(data.train_data) // args.pictures))
    reference = v2.Compose(
        [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.ToImage(),
         v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))]
    )  # fmt: skip

    def ours() -> None:
        for i in chosen:
            data.train_data[Draw(i, i)]

    def published() -> None:
        for i in chosen:
            with Image.open(data.train_data.samples[i][0]) as picture:
                reference(picture.convert("RGB"))

    times = interleaved({"ours": ours, "published": published}, args.rounds, warmup=1)
    rates = {name: len(chosen) / seconds for name, seconds in times.items()}
    ratio = rates["ours"] / rates["published"]
    if args.json:
        print(json.dumps({"torch": torch.__version__, "pictures/s": rates, "ratio": ratio}, indent=1))
    else:
        print(f"{len(chosen)} pictures, one thread, medians of {args.rounds} interleaved rounds: published "
              f"{rates['published']:.0f}/s, ours {rates['ours']:.0f}/s, {ratio:.2f}x")  # fmt: skip


if __name__ == "__main__":
    main()
