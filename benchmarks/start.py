"""What the start of a run costs on data of official size: reading lists and labels, and the data's identity.

    python -m benchmarks.start [--tasks imagenet coco ...] [--scale 1.0]

Writes a stand-in of each dataset into a temporary folder: as many files and lines as the official one, of as little
content as possible (imagenet: files of a byte; something: 4 frames a clip, the real ones have about 36; voc: one mask
of 500 x 375 under every name; coco: polygons of 20 points; modelnet40: random clouds). Each start is a process of its
own: the first derives what is kept in the cache, the second finds it there. Seconds, and peak memory above that of the
imports. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from wsbench.datamodules.palette import palette_image

START = """
import json, sys, time
from wsbench.configuration.choice import recipe_content
from wsbench.datamodules import data_class
task, root = sys.argv[1:]
options = recipe_content(task, "paper")["data"] | {"root": root, "num_workers": 0}
def memory(field):  # of this process alone; ru_maxrss begins with that of the parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
before = memory("VmRSS")
start = time.perf_counter()
data = data_class(task)(**options)
data.setup("fit")
read = time.perf_counter() - start
identity = data.identity()
whole = time.perf_counter() - start
after = memory("VmHWM")
print(json.dumps({"read_s": read, "identity_s": whole - read, "memory_mib": (after - before) / 1024,
                  "train": identity.splits["train"].count, "val": identity.splits["val"].count}))
"""


def write_imagenet(root: Path, scale: float) -> None:
    for split, each in (("train", 1281), ("val", 50)):
        for label in range(1000):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(max(1, round(each * scale))):
                (folder / f"n{label:08d}_{i}.JPEG").write_bytes(b"x")


def write_something(root: Path, scale: float) -> None:
    labels = [f"Doing thing {i} with something" for i in range(174)]
    (root / "something-something-v1-labels.csv").write_text("".join(f"{name}\n" for name in labels))
    number = 0
    for split, count in (("train", 86_017), ("validation", 11_522)):
        lines = []
        for i in range(round(count * scale)):
            number += 1
            folder = root / "20bn-something-something-v1" / str(number)
            folder.mkdir(parents=True)
            for frame in range(1, 5):
                (folder / f"{frame:05d}.jpg").write_bytes(b"x")
            lines.append(f"{number};{labels[i % 174]}\n")
        (root / f"something-something-v1-{split}.csv").write_text("".join(lines))


def write_voc(root: Path, scale: float) -> None:
    devkit = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (devkit / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 21, (12, 16), dtype=np.uint8)).resize((500, 375), Image.Resampling.NEAREST)
    palette_image(np.asarray(coarse)).save(root / "mask.png")
    mask = (root / "mask.png").read_bytes()
    parts = (("trainaug", 10_582, "SegmentationClassAug"), ("val", 1_449, "SegmentationClass"))
    for number, (split, count, folder) in enumerate(parts):
        names = [f"20{number:02d}_{i:06d}" for i in range(round(count * scale))]
        (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            (devkit / "JPEGImages" / f"{name}.jpg").write_bytes(b"x")
            (devkit / folder / f"{name}.png").write_bytes(mask)


def write_modelnet40(root: Path, scale: float) -> None:
    folder = root / "modelnet40_ply_hdf5_2048"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    (folder / "shape_names.txt").write_text("\n".join(["airplane", *(f"shape{i:02d}" for i in range(1, 40))]) + "\n")
    for split, counts in (("train", (2048, 2048, 2048, 2048, 1648)), ("test", (2048, 420))):
        for i, count in enumerate(counts):
            size = max(40, round(count * scale))
            with h5py.File(folder / f"ply_data_{split}{i}.h5", "w") as file:
                file["data"] = rng.random((size, 2048, 3), dtype=np.float32)
                file["label"] = (np.arange(size) % 40).astype(np.uint8)[:, None]
        lines = [f"data/{folder.name}/ply_data_{split}{i}.h5\n" for i in range(len(counts))]
        (folder / f"{split}_files.txt").write_text("".join(lines))


def write_coco(root: Path, scale: float) -> None:
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": i + 1, "name": "person" if i == 0 else f"thing{i}"} for i in range(80)]
    for split, count, objects in (("train", 118_287, 860_001), ("val", 5_000, 36_781)):
        (root / f"{split}2017").mkdir()
        images = []
        for i in range(1, round(count * scale) + 1):
            name = f"{i:012d}.jpg"
            (root / f"{split}2017" / name).write_bytes(b"x")
            images.append({"id": i, "file_name": name, "height": 480, "width": 640})
        corners = rng.integers(0, 300, (round(objects * scale), 2))
        sizes = rng.integers(2, 150, (round(objects * scale), 2))
        annotations = []
        for i, ((x, y), (w, h)) in enumerate(zip(corners.tolist(), sizes.tolist(), strict=True)):
            outline = [float(v) for k in range(20) for v in (x + w * (k % 5) / 4, y + h * (k // 5) / 3)]
            annotations.append({"id": i + 1, "image_id": i % len(images) + 1, "category_id": i % 80 + 1, "iscrowd": 0,
                                "bbox": [x, y, w, h], "area": w * h, "segmentation": [outline]})  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


WRITE: dict[str, Callable[[Path, float], None]] = {
    "imagenet": write_imagenet, "something": write_something, "voc": write_voc, "modelnet40": write_modelnet40,
    "coco": write_coco,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(WRITE), default=list(WRITE))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the official size")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = {}
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / task
            root.mkdir()
            WRITE[task](root, args.scale)
            environment = os.environ | {"WSBENCH_CACHE": str(Path(folder) / "cache")}
            for which in ("first", "second"):
                command = [sys.executable, "-c", START, task, str(root)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                rows[f"{task}, {which}"] = json.loads(done.stdout)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print("start                  samples (train + val)   read s   identity s   memory MiB")
    for name, row in rows.items():
        samples = f"{row['train']:,} + {row['val']:,}"
        print(f"{name:22s} {samples:>22s} {row['read_s']:8.1f} {row['identity_s']:12.1f} {row['memory_mib']:12.0f}")


if __name__ == "__main__":
    main()
