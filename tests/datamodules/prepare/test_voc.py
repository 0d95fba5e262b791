from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from wsbench.__main__ import main
from wsbench.datamodules import voc
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.prepare import voc as voc_prepare
from wsbench.datamodules.prepare.voc import build_trainaug, find_sbd, sbd_mask
from wsbench.datamodules.voc import place, read_list


def devkit(root: Path) -> Path:
    found = place(root)
    assert found is not None
    return found


def read_names(root: Path, split: str) -> list[str]:
    return [one.name for one in read_list(devkit(root), split)]


def mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("train_masks", ["voc", "sbd"])
def test_trainaug(voc_root: Path, train_masks: str) -> None:
    names = build_trainaug(voc_root, train_masks, quiet=True)  # type: ignore[arg-type]
    train, val = read_names(voc_root, "train"), read_names(voc_root, "val")
    extra = [f"2010_{i:06d}" for i in range(4)]
    assert names == read_names(voc_root, "trainaug") == sorted([*train, *extra])
    assert not set(names) & set(val), "a validation image that SBD trains on is left out"
    folder, cls = devkit(voc_root) / "SegmentationClassAug", find_sbd(voc_root) / "cls"  # type: ignore[operator]
    assert sorted(p.stem for p in folder.glob("*.png")) == names

    def sbd(name: str) -> np.ndarray:
        return loadmat(str(cls / f"{name}.mat"))["GTcls"][0]["Segmentation"][0]

    assert np.array_equal(mask(folder / f"{extra[0]}.png"), sbd(extra[0]))
    own = mask(devkit(voc_root) / "SegmentationClass" / f"{train[0]}.png")
    assert np.array_equal(mask(folder / f"{train[0]}.png"), own if train_masks == "voc" else sbd(train[0]))
    assert np.array_equal(
        mask(folder / f"{train[1]}.png"), mask(devkit(voc_root) / "SegmentationClass" / f"{train[1]}.png")
    )


def test_whose_masks_is_part_of_the_datas_identity(voc_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wsbench.datamodules import VOC

    lists = []
    for train_masks in ("voc", "sbd"):
        build_trainaug(voc_root, train_masks, quiet=True)  # type: ignore[arg-type]
        data = VOC(root=str(voc_root))
        data.setup("fit")
        lists.append(data.identity().splits["train"].list)
    assert lists == ["trainaug, voc masks", "trainaug, sbd masks"]
    assert main(["data", "voc", "--root", str(voc_root), "--train-masks", "voc"]) == 2
    assert "built with sbd masks; add --rebuild" in capsys.readouterr().err


def test_nothing_half_built_stays(voc_root: Path) -> None:
    broken = find_sbd(voc_root) / "cls" / "2010_000003.mat"  # type: ignore[operator]
    broken.write_bytes(b"not a mat file")
    with pytest.raises(DatasetError, match=r"2010_000003.mat"):
        build_trainaug(voc_root, quiet=True)
    left = {p.name for p in devkit(voc_root).iterdir()}
    assert left == {"JPEGImages", "SegmentationClass", "ImageSets"}
    with pytest.raises(DatasetError, match="trainaug"):
        read_names(voc_root, "trainaug")


def test_pictures_of_sbd_that_are_missing(voc_root: Path) -> None:
    (devkit(voc_root) / "JPEGImages" / "2010_000001.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 images of SBD.*2010_000001"):
        build_trainaug(voc_root, quiet=True)


def test_torchvisions_arrangement_of_sbd(voc_root: Path) -> None:
    (voc_root / "benchmark_RELEASE" / "dataset").rename(voc_root / "sbd")
    assert find_sbd(voc_root) == voc_root / "sbd"


def test_the_command(
    voc_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["data", "voc", "--root", str(tmp_path / "nowhere")]) == 1
    assert "there is no such folder" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "voc"]) == 1
    assert "give --root" in capsys.readouterr().out
    assert main(["data", "voc", "--root", str(voc_root)]) == 1, "6 and 5 images are not VOC's 1,464 and 1,449"
    out = capsys.readouterr().out
    assert "built trainaug: 10 images" in out
    assert "1,449 samples" in out
    for module in (voc, voc_prepare):
        monkeypatch.setattr(module, "COUNTS", {"train": 6, "val": 5, "trainaug": 10})
    assert main(["data", "voc", "--root", str(voc_root)]) == 0
    assert "ready: python -m wsbench fit --task voc" in capsys.readouterr().out


def test_trainaug_of_other_lists_is_refused(voc_root: Path) -> None:
    """A derived list is a cache: after val.txt changed it may hold images to evaluate on."""
    build_trainaug(voc_root, quiet=True)
    listed = devkit(voc_root) / "ImageSets" / "Segmentation" / "val.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[1:]))
    data = voc.VOC(root=str(voc_root))
    data.setup("fit")
    with pytest.raises(DatasetError, match=r"was built from other train\.txt and val\.txt.*--rebuild"):
        data.identity()


def test_masks_of_matlab_7_3(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for name in ("plain", "references"):
        with h5py.File(tmp_path / f"{name}.mat", "w", userblock_size=512) as file:
            group = file.create_group("GTcls")
            if name == "plain":
                group["Segmentation"] = labels.T
            else:
                file["#refs#/a"] = labels.T
                group.create_dataset("Segmentation", data=[[file["#refs#/a"].ref]], dtype=h5py.ref_dtype)
        assert np.array_equal(sbd_mask(tmp_path / f"{name}.mat"), labels)


def test_a_list_that_leaves_its_folder_is_refused(voc_root: Path) -> None:
    listed = find_sbd(voc_root) / "train.txt"  # type: ignore[operator]
    listed.write_text(listed.read_text() + "../../../outside\n")
    with pytest.raises(DatasetError, match="leaves the folder"):
        build_trainaug(voc_root, quiet=True)


def test_download_goes_through_torchvisions_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import voc as torchvision_voc

    asked = []
    monkeypatch.setattr(torchvision_voc, "download_and_extract_archive", lambda *a, **k: asked.append((a, k)))
    monkeypatch.setattr(voc_prepare, "download_and_extract_archive", lambda *a, **k: asked.append((a, k)))
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        voc_prepare.download(tmp_path)  # nothing was really fetched, and torchvision says so
    assert asked[0][1]["md5"] == "6cd6e144f989b92b3379bac3b3de84fd"
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages").mkdir()
    voc_prepare.download(tmp_path)
    assert asked[1][1]["md5"] == "82b4d87ceb2ed10f6038a1cba92111cb"
