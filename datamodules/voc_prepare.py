"""Verifying PASCAL VOC 2012, and building the trainaug set from it and SBD's own release."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision.datasets import SBDataset, VOCSegmentation
from torchvision.datasets.utils import download_and_extract_archive

from wsbench.datamodules.checks import Finding, readable
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.lists import lines_of
from wsbench.datamodules.palette import palette_image
from wsbench.datamodules.segmentation import open_picture
from wsbench.datamodules.voc import COUNTS, DATA_COMMAND, MASK_SOURCE, devkit, is_present
from wsbench.records import write_text_atomically

LAYOUT = """\
ROOT/VOCdevkit/VOC2012/
    JPEGImages/2007_000032.jpg ...           17,125 pictures
    SegmentationClass/2007_000032.png ...    2,913 palette masks, 255 void
    ImageSets/Segmentation/train.txt         1,464 names
    ImageSets/Segmentation/val.txt           1,449 names
ROOT/benchmark_RELEASE/dataset/              SBD as its archive unpacks (or ROOT/sbd, as torchvision arranges it)
    cls/2008_000002.mat ...                  11,355 class masks
    train.txt, val.txt                       8,498 + 2,857 names
and, built by this command:
    SegmentationClassAug/                    masks of the union
    ImageSets/Segmentation/trainaug.txt      10,582 names: VOC train and SBD train and val, without VOC val"""

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012"
SBD_ARCHIVE = "benchmark.tgz of the Semantic Boundaries Dataset (Hariharan et al. 2011, University of California)"


def find_sbd(root: Path) -> Path | None:
    """The folder with SBD's ``cls`` and lists, below ``root``."""
    places = (root / "benchmark_RELEASE" / "dataset", root / "sbd", root)
    return next((p for p in places if (p / "cls").is_dir() and (p / "val.txt").is_file()), None)


def download(root: Path) -> None:
    """Fetch VOC 2012 and SBD where they are missing; both archives are checked against torchvision's MD5 sums."""
    root.mkdir(parents=True, exist_ok=True)
    if not is_present(root):
        VOCSegmentation(str(root), year="2012", image_set="train", download=True)
    if find_sbd(root) is None:
        download_and_extract_archive(SBDataset.url, str(root), filename=SBDataset.filename, md5=SBDataset.md5)


def sbd_mask(path: Path) -> NDArray[np.uint8]:
    """The class mask (H, W) of one of SBD's .mat files."""
    try:
        mask: NDArray[np.uint8] = loadmat(str(path))["GTcls"][0]["Segmentation"][0].astype(np.uint8)
    except (MatReadError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DatasetError(f"'{path}' is no class mask of SBD ({error}); unpack {SBD_ARCHIVE} again") from error
    return mask


def build_trainaug(root: Path, train_masks: Literal["voc", "sbd"] = "voc", quiet: bool = False) -> list[str]:
    """Write ``SegmentationClassAug`` and ``trainaug.txt``; returns the names.

    Args:
        root: folder with VOCdevkit and SBD.
        train_masks: whose masks VOC's own training pictures get. VOC's have void borders, SBD's have none. The list of
            the authors does not say; mmsegmentation takes VOC's.
        quiet: without a progress bar.

    Raises:
        DatasetError: if a part is missing or broken; nothing is left behind then.
    """
    sbd, folder = find_sbd(root), devkit(root)
    if sbd is None or not is_present(root):
        raise DatasetError(f"trainaug needs VOC 2012 and SBD under '{root}'; see `{DATA_COMMAND} --root {root}`")
    lists = folder / "ImageSets" / "Segmentation"
    train, val = set(lines_of(lists / "train.txt")), set(lines_of(lists / "val.txt"))
    extra = set(lines_of(sbd / "train.txt")) | set(lines_of(sbd / "val.txt"))
    names = sorted((train | extra) - val)
    missing = [n for n in names if not (folder / "JPEGImages" / f"{n}.jpg").is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} pictures of SBD are not in '{folder / 'JPEGImages'}': {missing[:3]} ...")
    temporary = Path(tempfile.mkdtemp(prefix=".SegmentationClassAug-", dir=folder))
    try:
        for name in track(names, "building SegmentationClassAug", disable=quiet):
            target = temporary / f"{name}.png"
            if name in train and (train_masks == "voc" or name not in extra):
                shutil.copyfile(folder / "SegmentationClass" / f"{name}.png", target)
            else:
                palette_image(sbd_mask(sbd / "cls" / f"{name}.mat")).save(target)
        (temporary / MASK_SOURCE).write_text(f"{train_masks}\n")
        final = folder / "SegmentationClassAug"
        if final.exists():
            shutil.rmtree(final)
        temporary.chmod(0o755)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_text_atomically(lists / "trainaug.txt", "\n".join(names) + "\n")
    return names


def build(root: Path, train_masks: Literal["voc", "sbd"] | None = None, rebuild: bool = False) -> str | None:
    """Build trainaug where VOC and SBD lie and it is missing; says so.

    Args:
        root: as for :func:`build_trainaug`.
        train_masks: as there; None is ``voc``, or whatever it was built with.
        rebuild: build it even if it is there.

    Raises:
        DatasetError: it was built with other masks.
    """
    listed = devkit(root) / "ImageSets" / "Segmentation" / "trainaug.txt"
    if is_present(root) and find_sbd(root) and (rebuild or not listed.is_file()):
        masks = train_masks or "voc"
        names = build_trainaug(root, masks)
        return f"built trainaug: {len(names)} pictures, masks of VOC's own training pictures by {masks}"
    source = devkit(root) / "SegmentationClassAug" / MASK_SOURCE
    built_with = source.read_text().strip() if source.is_file() else None
    if built_with and train_masks not in (None, built_with):
        raise DatasetError(f"trainaug was built with {built_with} masks; add --rebuild to change it")
    return None


def _check_list(root: Path, split: str, labels: str) -> list[Finding]:
    folder = devkit(root)
    path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        return [Finding(f"{split}.txt", f"{COUNTS[split]} names", "missing", False)]
    names = lines_of(path)
    findings = [Finding(f"{split}.txt", f"{COUNTS[split]} names", f"{len(names)} names", len(names) == COUNTS[split])]
    for part, suffix in (("JPEGImages", "jpg"), (labels, "png")):
        absent = [n for n in names if not (folder / part / f"{n}.{suffix}").is_file()]
        found = f"{len(names) - len(absent)} files" + (f", missing {', '.join(absent[:3])} ..." if absent else "")
        findings.append(Finding(f"{split}: {part}", f"{len(names)} files", found, not absent))
    present = [n for n in names if (folder / "JPEGImages" / f"{n}.jpg").is_file()]
    tried = [folder / "JPEGImages" / f"{n}.jpg" for n in _sample(present)]
    tried += [path for n in _sample(present) if (path := folder / labels / f"{n}.png").is_file()]
    return [*findings, readable(f"{split}: readable", tried, open_picture, "", most=max(1, len(tried)))]


def _sample(names: Sequence[str], most: int = 50) -> Sequence[str]:
    return names[:: max(1, len(names) // most)]


def verify(root: Path) -> list[Finding]:
    """Look at everything the paper's recipe needs."""
    if not is_present(root):
        return [Finding("VOCdevkit/VOC2012", "unpacked", "missing", False)]
    findings = [*_check_list(root, "train", "SegmentationClass"), *_check_list(root, "val", "SegmentationClass")]
    sbd = find_sbd(root)
    count = 0 if sbd is None else sum(1 for _ in (sbd / "cls").glob("*.mat"))
    found = "missing" if sbd is None else f"{count} masks in {sbd}"
    built = (devkit(root) / "ImageSets" / "Segmentation" / "trainaug.txt").is_file()
    findings.append(Finding("SBD", "11355 masks", found, built or count == 11355))
    return findings + _check_list(root, "trainaug", "SegmentationClassAug")


def next_step(root: Path, findings: Sequence[Finding]) -> str:
    """What to do now, in words."""
    wrong = [f.what for f in findings if not f.ok]
    if not wrong:
        return f"ready: python -m wsbench fit --task voc --norm gn+ws --data.root {root}"
    if "VOCdevkit/VOC2012" in wrong:
        return f"unpack {VOC_ARCHIVE} in '{root}', or add --download"
    if "SBD" in wrong and "trainaug.txt" in wrong:
        return (
            f"unpack {SBD_ARCHIVE} in '{root}', or add --download; until then --data.train_set train uses VOC's own "
            "1,464 pictures"
        )
    return f"repair: {', '.join(wrong)}"
