"""Building VOC's trainaug set from VOC 2012 and SBD's own release."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, cast

import h5py
import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision.datasets import SBDataset, VOCSegmentation
from torchvision.datasets.utils import download_and_extract_archive

from wsbench.datamodules.errors import DAMAGED, DatasetError
from wsbench.datamodules.lists import inside, names_of
from wsbench.datamodules.palette import palette_image
from wsbench.datamodules.prepare.base import Asked, Preparation
from wsbench.datamodules.prepare.checks import Finding
from wsbench.datamodules.prepare.split import masks_without_lists, split_masks
from wsbench.datamodules.voc import (
    COUNTS,
    DATA_COMMAND,
    LISTS,
    MASK_SOURCE,
    list_file,
    mask_source,
    place,
    read_list,
    source_lines,
)
from wsbench.records import write_text_atomically

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012"
SBD_ARCHIVE = "benchmark.tgz of the Semantic Boundaries Dataset (Hariharan et al. 2011, University of California)"


def find_sbd(root: Path) -> Path | None:
    """The folder with SBD's ``cls`` and lists, below ``root``."""
    places = (root / "benchmark_RELEASE" / "dataset", root / "sbd", root)
    return next((p for p in places if (p / "cls").is_dir() and (p / "val.txt").is_file()), None)


def download(root: Path) -> None:
    """Fetch VOC 2012 and SBD where they are missing; both archives are checked against torchvision's MD5 sums."""
    root.mkdir(parents=True, exist_ok=True)
    if place(root) is None:
        VOCSegmentation(str(root), year="2012", image_set="train", download=True)
    if find_sbd(root) is None:
        download_and_extract_archive(SBDataset.url, str(root), filename=SBDataset.filename, md5=SBDataset.md5)


def sbd_mask(path: Path) -> NDArray[np.uint8]:
    """The class mask (H, W) of one of SBD's .mat files."""
    try:
        read: Any = _hdf5_mask(path) if h5py.is_hdf5(path) else loadmat(str(path))["GTcls"][0]["Segmentation"][0]
    except (MatReadError, *DAMAGED) as error:  # MATLAB 7.3 is HDF5
        raise DatasetError(f"'{path}' is no class mask of SBD ({error}); unpack {SBD_ARCHIVE} again") from error
    mask = np.asarray(read)
    if mask.ndim != 2 or mask.dtype.kind not in "uif" or not mask.size:
        raise DatasetError(f"'{path}' is no class mask of SBD (its Segmentation is {mask.dtype} {mask.shape}, expected "
                           f"(height, width) of numbers); unpack {SBD_ARCHIVE} again")  # fmt: skip
    return mask.astype(np.uint8)


def _hdf5_mask(path: Path) -> NDArray[np.uint8]:
    """GTcls.Segmentation of a file of MATLAB 7.3, whose arrays lie column by column."""
    with h5py.File(path, "r") as file:
        segmentation = file["GTcls"]["Segmentation"]
        if segmentation.dtype == h5py.ref_dtype:
            segmentation = file[segmentation[()].flat[0]]
        mask: NDArray[np.uint8] = segmentation[()].T
        return mask


def build_trainaug(root: Path, train_masks: Literal["voc", "sbd"] = "voc", quiet: bool = False) -> list[str]:
    """Write ``SegmentationClassAug`` and ``trainaug.txt``; returns the names.

    Args:
        root: folder with VOCdevkit and SBD.
        train_masks: whose masks VOC's own training images get. VOC's have void borders, SBD's have none. The list of
            the authors does not say; mmsegmentation takes VOC's.
        quiet: without a progress bar.

    Raises:
        DatasetError: if a part is missing or broken; nothing is left behind then.
    """
    sbd, folder = find_sbd(root), place(root)
    if sbd is None or folder is None:
        raise DatasetError(f"trainaug needs VOC 2012 and SBD under '{root}'; see `{DATA_COMMAND} --root {root}`")
    lists = folder / LISTS
    train, val = ({one.name for one in read_list(folder, split)} for split in ("train", "val"))
    extra = {*names_of(sbd / "train.txt"), *names_of(sbd / "val.txt")}
    names = sorted((train | extra) - val)
    missing = [n for n in names if not inside(folder / "JPEGImages", f"{n}.jpg").is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} images of SBD are not in '{folder / 'JPEGImages'}': {missing[:3]} ...")
    temporary = Path(tempfile.mkdtemp(prefix=".SegmentationClassAug-", dir=folder))
    try:
        for name in track(names, "building SegmentationClassAug", disable=quiet):
            target = inside(temporary, f"{name}.png")
            if name in train and (train_masks == "voc" or name not in extra):
                shutil.copyfile(folder / "SegmentationClass" / f"{name}.png", target)
            else:
                palette_image(sbd_mask(sbd / "cls" / f"{name}.mat")).save(target)
        (temporary / MASK_SOURCE).write_text("\n".join([train_masks, *source_lines(folder)]) + "\n")
        final = folder / "SegmentationClassAug"
        if final.exists():
            shutil.rmtree(final)
        temporary.chmod(0o755)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_text_atomically(lists / "trainaug.txt", "\n".join(names) + "\n")
    return names


class VOCPreparation(Preparation):
    """Fetches VOC and SBD, and builds trainaug."""

    takes = ("download", "rebuild", "train_masks", "train_set", "class_names")

    def lacks_val(self, root: Path) -> bool:
        """Whether there are images and masks, and no lists of them."""
        return masks_without_lists(root) is not None

    def split(self, root: Path, out: Path) -> Path | None:
        """By the images' names."""
        return split_masks(root, out)

    def build(self, root: Path, asked: Asked) -> str | None:
        """Build trainaug where it can be, of what lies there or is downloaded now."""
        if asked.download:
            download(root)
        return build(root, cast(Literal["voc", "sbd"] | None, asked.train_masks), asked.rebuild)

    def options(self, root: Path, asked: Asked) -> dict[str, Any]:
        """The list to train on, and the file with names of classes."""
        devkit = place(root)
        default = devkit is None or list_file(devkit, "trainaug").is_file()
        options = {"train_set": asked.train_set or ("trainaug" if default else "train")}
        return options | ({"class_names": asked.class_names} if asked.class_names else {})

    def check_official(self, root: Path, asked: Asked) -> list[Finding]:
        """SBD and trainaug, unless another list is to be trained on."""
        return [] if asked.train_set else check_trainaug(root)


def build(root: Path, train_masks: Literal["voc", "sbd"] | None = None, rebuild: bool = False) -> str | None:
    """Build trainaug where VOC and SBD lie and it is missing; says so.

    Args:
        root: as for :func:`build_trainaug`.
        train_masks: as there; None is ``voc``, or whatever it was built with.
        rebuild: build it even if it is there.

    Raises:
        DatasetError: it was built with other masks.
    """
    folder = place(root)
    if folder is None:
        return None
    if find_sbd(root) and (rebuild or not (folder / LISTS / "trainaug.txt").is_file()):
        masks = train_masks or "voc"
        names = build_trainaug(root, masks)
        return f"built trainaug: {len(names)} images, masks of VOC's own training images by {masks}"
    built_with = mask_source(folder / "SegmentationClassAug")
    if built_with and train_masks not in (None, built_with):
        raise DatasetError(f"trainaug was built with {built_with} masks; add --rebuild to change it")
    return None


def check_trainaug(root: Path) -> list[Finding]:
    """What the paper's recipe needs beside VOC: SBD, and the set that is built of both."""
    folder = place(root)
    assert folder is not None
    listed = folder / LISTS / "trainaug.txt"
    if listed.is_file():
        count = len(read_list(folder, "trainaug"))
        again = f"{DATA_COMMAND} --root {root} --rebuild"
        whole = COUNTS["trainaug"]
        return [Finding("trainaug", f"{whole:,} names", f"{count:,} names", count == whole, again)]
    sbd = find_sbd(root)
    masks = 0 if sbd is None else sum(1 for _ in (sbd / "cls").glob("*.mat"))
    hint = (
        f"unpack {SBD_ARCHIVE} in '{root}', or add --download; until then --data.train_set train uses VOC's own 1,464 "
        "images"
    )
    return [Finding("SBD", "11,355 masks", "missing" if sbd is None else f"{masks:,} masks in {sbd}", False, hint)]
