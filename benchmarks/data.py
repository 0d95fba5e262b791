"""Samples a second on one core, for every datamodule at the paper's sizes: ``python -m benchmarks.data``.

Each beside the obvious pipeline on the same files: Pillow opens, torchvision's transforms v2 work on Pillow images in
the paper's order, ToImage, ToDtype and Normalize make floats in the worker, the default collation batches them; for
point clouds the authors' numpy code. Ours is measured as the DataLoader would call it: ``data[Draw]``, collation
included. Both in one interleaved run, one thread.

Without ``--root`` the files are made: smooth random fields with edges and noise, as JPEG of quality 90, of the usual
sizes (ImageNet and VOC 500 x 375, clips of 45 frames of 240 x 100, COCO 640 x 480 with 7 objects). They are smaller
than photographs, so decoding counts for less. The TSM shift, which a clip goes through 16 times, is timed beside its
published form.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode, v2

from benchmarks.timing import interleaved, keep_freed_memory
from wsbench.datamodules import data_class
from wsbench.datamodules.clips import crop_places, crop_sizes, training_frames
from wsbench.datamodules.palette import palette_image
from wsbench.datamodules.sampling import Draw
from wsbench.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD
from wsbench.models.tsm import temporal_shift

to_floats = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))]
)


# -- files ----------------------------------------------------------------------------------------------------------


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth fields, edges and some noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    overlay = coarse.rotate(180).resize((width, height), Image.Resampling.NEAREST)
    shape = Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8)).resize((width, height)).point(
        lambda v: 255 * (v > 150)
    )  # fmt: skip
    picture.paste(overlay, mask=shape)
    noise = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)).filter(ImageFilter.SMOOTH)


def save(picture: Image.Image, path: Path) -> None:
    """JPEG of quality 90."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=90)


def write(task: str, root: Path, count: int) -> None:
    """``count`` training samples, and one to evaluate, in the official layout."""
    rng = np.random.default_rng(0)
    if task == "imagenet":
        for split in ("train", "val"):
            for i in range(count):
                save(photograph(rng, 500, 375), root / split / f"n{i % 2:08d}" / f"{i}.JPEG")
    elif task == "voc":
        folder = root / "VOCdevkit" / "VOC2012"
        names = [f"{i:06d}" for i in range(count)]
        (folder / "SegmentationClass").mkdir(parents=True)
        (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
        for name in names:
            save(photograph(rng, 500, 375), folder / "JPEGImages" / f"{name}.jpg")
            labels = np.kron(rng.integers(0, 21, (15, 20), dtype=np.uint8), np.ones((25, 25), np.uint8))
            palette_image(torch.from_numpy(labels).numpy()).save(folder / "SegmentationClass" / f"{name}.png")
        for split in ("train", "val"):
            (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    elif task == "something":
        for i in range(count):
            picture = photograph(rng, 240, 100)
            for frame in range(1, 46):
                save(picture, root / "20bn-something-something-v1" / str(i) / f"{frame:05d}.jpg")
        classes = ["a", "b"]
        (root / "something-something-v1-labels.csv").write_text("\n".join(classes) + "\n")
        for split in ("train", "validation"):
            rows = (f"{i};{classes[i % 2]}" for i in range(count))
            (root / f"something-something-v1-{split}.csv").write_text("\n".join(rows) + "\n")
    elif task == "modelnet40":
        folder = root / "modelnet40_ply_hdf5_2048"
        folder.mkdir(parents=True)
        (folder / "shape_names.txt").write_text("a\nb\n")
        for split in ("train", "test"):
            with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
                file["data"] = rng.uniform(-0.5, 0.5, (count, 2048, 3)).astype(np.float32)
                file["label"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
            (folder / f"{split}_files.txt").write_text(f"data/modelnet40_ply_hdf5_2048/ply_data_{split}0.h5\n")
    elif task == "coco":
        for split in ("train", "val"):
            pictures: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for i in range(count):
                save(photograph(rng, 640, 480), root / f"{split}2017" / f"{i}.jpg")
                pictures.append({"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480})
                for k in range(7):  # COCO has 7.3 objects an image
                    x, y, w, h = (int(v) for v in rng.integers((0, 0, 30, 30), (400, 300, 200, 150)))
                    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
                    outline = np.stack((x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))), 1)
                    annotations.append({"id": len(annotations), "image_id": i, "category_id": 1 + k % 2, "iscrowd": 0,
                                        "bbox": [x, y, w, h], "area": w * h,
                                        "segmentation": [outline.flatten().tolist()]})  # fmt: skip
            content = {"images": pictures, "annotations": annotations,
                       "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}  # fmt: skip
            (root / "annotations").mkdir(exist_ok=True)
            (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


OPTIONS: dict[str, dict[str, Any]] = {
    "imagenet": {},
    "voc": {"train_set": "train"},
    "something": {},
    "coco": {},
    "modelnet40": {"points": 1024},
}


# -- the obvious pipelines ------------------------------------------------------------------------------------------


def reference_imagenet(data: Any) -> Callable[[int], Any]:
    """The one of torchvision's references."""
    transform = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), to_floats])

    def sample(i: int) -> Any:
        path, label = data.train_data.samples[i]
        with Image.open(path) as picture:
            return {"image": transform(picture.convert("RGB")), "label": label}

    return sample


def reference_voc(data: Any) -> Callable[[int], Any]:
    """The paper's order: mirror, resize all of it, normalize, pad, crop."""

    def sample(i: int) -> Any:
        with Image.open(data.train_data.images[i]) as picture, Image.open(data.train_data.masks[i]) as labels:
            image, mask = picture.convert("RGB"), labels.copy()
        if torch.rand(()) < 0.5:
            image, mask = v2.functional.horizontal_flip(image), v2.functional.horizontal_flip(mask)
        factor = float(2 ** (2 * torch.rand(()) - 1))
        size = [int(image.height * factor), int(image.width * factor)]
        image = v2.functional.resize(image, size, InterpolationMode.LANCZOS)
        mask = v2.functional.resize(mask, size, InterpolationMode.NEAREST)
        x, y = to_floats(image), v2.functional.pil_to_tensor(mask)[0].long()
        pad = (0, max(0, 513 - x.shape[2]), 0, max(0, 513 - x.shape[1]))
        x, y = torch.nn.functional.pad(x, pad), torch.nn.functional.pad(y, pad, value=255)
        top, left = (int(torch.randint(side - 512, ())) for side in x.shape[1:])
        return {"image": x[:, top : top + 513, left : left + 513], "mask": y[top : top + 513, left : left + 513]}

    return sample


def reference_something(data: Any) -> Callable[[int], Any]:
    """TSM's: Pillow frames, one crop, resize, floats."""

    def sample(i: int) -> Any:
        clip = data.train_data.clips[i]
        generator = torch.Generator().manual_seed(i)
        frames = []
        for number in training_frames(clip.frames, 8, generator):
            with Image.open(clip.folder / f"{number:05d}.jpg") as picture:
                frames.append(picture.convert("RGB"))
        height, width = frames[0].height, frames[0].width
        sizes = crop_sizes(height, width, 224, (1.0, 0.875, 0.75, 0.66))
        size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        places = crop_places(height, width, size)
        top, left = places[int(torch.randint(len(places), (), generator=generator))]
        box = (left, top, left + size[1], top + size[0])
        cut = [frame.crop(box).resize((224, 224), Image.Resampling.BILINEAR) for frame in frames]
        return {"clip": torch.stack([to_floats(frame) for frame in cut]), "label": clip.label}

    return sample


def reference_coco(data: Any) -> Callable[[int], Any]:
    """As in torchvision's detection references: Pillow, masks of all objects, a float image."""
    known = data.train_data

    def sample(i: int) -> Any:
        number = known.ids[i]
        with Image.open(known.pictures / known.annotations.imgs[number]["file_name"]) as picture:
            image = v2.functional.to_dtype(v2.functional.pil_to_tensor(picture.convert("RGB")), torch.float32, True)
        objects = [o for o in known.annotations.imgToAnns[number] if not o["iscrowd"]]
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.stack([torch.from_numpy(known.annotations.annToMask(o)) for o in objects])
        return image, {"boxes": boxes, "masks": masks, "labels": torch.tensor([o["category_id"] for o in objects])}

    return sample


def reference_modelnet40(data: Any) -> Callable[[int], Any]:
    """The authors' provider.py: turn, jitter, scale, small turns, shift, in float64 numpy."""
    clouds, labels = data.train_data.clouds.numpy(), data.train_data.labels
    rng = np.random.default_rng(0)

    def turn(axis: int, angle: float) -> Any:
        matrix, (a, b) = np.eye(3), [i for i in range(3) if i != axis]
        matrix[a, a] = matrix[b, b] = np.cos(angle)
        matrix[a, b], matrix[b, a] = np.sin(angle), -np.sin(angle)
        return matrix

    def sample(i: int) -> Any:
        cloud = clouds[i] @ turn(1, rng.uniform() * 2 * np.pi)
        cloud = cloud + np.clip(0.01 * rng.standard_normal(cloud.shape), -0.05, 0.05)
        cloud = cloud * rng.uniform(0.8, 1.25)
        for axis in range(3):
            cloud = cloud @ turn(axis, float(np.clip(0.06 * rng.standard_normal(), -0.18, 0.18)))
        cloud = cloud + rng.uniform(-0.1, 0.1, 3)
        return {"cloud": torch.from_numpy(cloud.astype(np.float32)), "label": labels[i]}

    return sample


REFERENCES: dict[str, Callable[[Any], Callable[[int], Any]]] = {
    "imagenet": reference_imagenet,
    "voc": reference_voc,
    "something": reference_something,
    "coco": reference_coco,
    "modelnet40": reference_modelnet40,
}


# -- measuring ------------------------------------------------------------------------------------------------------


def measure(task: str, root: Path, count: int, rounds: int, options: dict[str, Any]) -> dict[str, float]:
    """Samples a second of both, and their ratio."""
    data = data_class(task)(root=str(root), num_workers=0, **(OPTIONS[task] | options))
    data.setup("fit")
    stride = max(1, len(data.train_data) // count)
    chosen = range(0, min(len(data.train_data), count * stride), stride)
    reference = REFERENCES[task](data)
    collate = type(data).collate or default_collate
    obvious_collate = collate if task == "coco" else default_collate

    def ours() -> None:
        for i in chosen:
            collate([data.train_data[Draw(i, i)]])

    def obvious() -> None:
        torch.manual_seed(0)
        for i in chosen:
            obvious_collate([reference(i)])

    times = interleaved({"ours": ours, "obvious": obvious}, rounds, warmup=1)
    rates = {name: len(chosen) / seconds for name, seconds in times.items()}
    return {"samples": len(chosen), **rates, "ratio": rates["ours"] / rates["obvious"]}


def published_shift(x: Tensor, segments: int, divisor: int = 8) -> Tensor:
    """The temporal shift as published: zeros, three slab copies, autograd through them."""
    clips = x.view(-1, segments, *x.shape[1:])
    fold = x.shape[1] // divisor
    out = torch.zeros_like(clips)
    out[:, :-1, :fold] = clips[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return out.view(x.shape)


def measure_shift(rounds: int) -> dict[str, float]:
    """Milliseconds of the 16 shifts of ResNet-50 on one clip of 8 frames, forward and backward, and the ratio."""
    shapes = [(64, 56)] + [(256, 56)] * 2 + [(256, 56)] + [(512, 28)] * 3 + [(512, 28)] + [(1024, 14)] * 5
    shapes += [(1024, 14)] + [(2048, 7)] * 2
    features = [torch.randn(8, c, s, s, requires_grad=True) for c, s in shapes]
    grads = [torch.randn_like(x) for x in features]

    def work(shift: Callable[[Tensor, int], Tensor]) -> None:
        for x, g in zip(features, grads, strict=True):
            torch.autograd.grad(shift(x, 8), x, g)

    times = interleaved({"ours": lambda: work(temporal_shift), "published": lambda: work(published_shift)}, rounds)
    return {"ours_ms": 1e3 * times["ours"], "published_ms": 1e3 * times["published"],
            "ratio": times["ours"] / times["published"]}  # fmt: skip


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(REFERENCES), choices=list(REFERENCES))
    parser.add_argument("--root", help="a dataset of the only task in its official layout, instead of made files")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.root and len(args.tasks) != 1:
        parser.error("--root is of one task; name it with --tasks")
    torch.set_num_threads(1)
    keep_freed_memory()
    rows: dict[str, dict[str, float]] = {}
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            if not args.root:
                write(task, Path(folder), args.samples)
            rows[task] = measure(task, Path(args.root or folder), args.samples, args.rounds, {})
    shift = measure_shift(3 * args.rounds)
    if args.json:
        print(json.dumps({"torch": torch.__version__, "threads": 1, "samples/s": rows, "shift": shift}, indent=1))
        return
    print(f"torch {torch.__version__}, one thread, medians of {args.rounds} interleaved rounds, samples/s")
    print("task           obvious      ours   ours / obvious")
    for task, row in rows.items():
        print(f"{task:12s} {row['obvious']:9.1f} {row['ours']:9.1f} {row['ratio']:9.2f}")
    print(f"TSM's 16 shifts, forward and backward: published {shift['published_ms']:.1f} ms, "
          f"ours {shift['ours_ms']:.1f} ms, {shift['ratio']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
