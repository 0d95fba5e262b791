"""Verifying COCO 2017."""

from pathlib import Path

from wsbench.datamodules.checks import Finding, count, missing, readable
from wsbench.datamodules.coco import annotation_file, folder, is_valid, read_annotations
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.pictures import read_picture

LAYOUT = """\
ROOT/ (or ROOT/coco/)
    train2017/000000000009.jpg ...             118,287 pictures (train2017.zip of cocodataset.org)
    val2017/000000000139.jpg ...               5,000 pictures (val2017.zip)
    annotations/instances_train2017.json, instances_val2017.json   (annotations_trainval2017.zip)"""
PICTURES = {"train": 118_287, "val": 5_000}


def build(root: Path) -> str | None:
    """Nothing: the official files are read as they are."""
    return None


def verify(root: Path) -> list[Finding]:
    """Annotations, their pictures, and whether some can be read."""
    findings = []
    for split, expected in PICTURES.items():
        path = annotation_file(root, split)
        try:
            annotations = read_annotations(path)
        except DatasetError as error:
            hint = f"unpack annotations_trainval2017.zip in '{folder(root)}'"
            findings.append(Finding(f"{split}: annotations", path.name, str(error), False, hint))
            continue
        hint = f"unpack {split}2017.zip in '{folder(root)}'"
        categories = len(annotations.dataset["categories"])
        findings.append(count(f"{split}: categories", 80, categories, "fetch the annotations again", "categories"))
        names = [picture["file_name"] for picture in annotations.dataset["images"]]
        findings.append(count(f"{split}: listed", expected, len(names), "fetch the annotations again", "pictures"))
        pictures = [folder(root) / f"{split}2017" / name for name in names]
        findings.append(missing(f"{split}: pictures", pictures, hint))
        findings.append(readable(f"{split}: readable", pictures, read_picture, hint))
        if split == "train":
            kept = sum(is_valid(annotations.imgToAnns[i]) for i in annotations.imgs)
            findings.append(Finding("train: with a valid box", "trained on", f"{kept:,} pictures", True))
    return findings
