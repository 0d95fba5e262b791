"""``wsbench data TASK`` and ``wsbench doctor``."""

import shutil
from pathlib import Path
from unittest import mock

import pytest

from tests import tiny
from wsbench import doctor, prepare
from wsbench.__main__ import main
from wsbench.datamodules import coco_prepare, imagenet_prepare, modelnet40_prepare, something_prepare

NEW = ("imagenet", "something", "modelnet40", "coco")


@pytest.fixture
def roots(tiny_roots: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies that may be broken."""
    return {task: Path(shutil.copytree(tiny_roots[task], tmp_path / task)) for task in NEW}


def run(task: str, root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["data", task, "--root", str(root)])
    return status, " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("task", tiny.TASKS)
def test_without_a_dataset_it_shows_the_layout(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", task]) == 1
    out = capsys.readouterr().out
    assert "expected layout" in out
    assert "give --root FOLDER" in out


@pytest.mark.parametrize("task", NEW)
def test_an_empty_folder_has_a_next_step(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(task, tmp_path, capsys)
    assert status == 1
    assert "next: " in out
    assert any(word in out.split("next: ")[1] for word in ("unpack", "lay"))


@pytest.mark.parametrize("task", NEW)
def test_a_dataset_in_order_is_ready(
    task: str, roots: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the official counts set to those of the tiny dataset."""
    counts = tiny.COUNTS[task]
    test = {"train": counts["train"], "test": counts["val"]}
    monkeypatch.setattr(imagenet_prepare, "COUNTS", tiny.COUNTS["imagenet"])
    monkeypatch.setattr(something_prepare, "COUNTS", tiny.COUNTS["something"])
    monkeypatch.setattr(modelnet40_prepare, "COUNTS", {"hdf5": test, "off": test})
    monkeypatch.setattr(modelnet40_prepare, "SAMPLED", 512)
    monkeypatch.setattr(coco_prepare, "PICTURES", tiny.COUNTS["coco"])
    real, official = {"imagenet": 10, "something": 6, "modelnet40": 10, "coco": 10}[task], (1000, 174, 40, 80)
    module = prepare.PREPARE[task]
    count = module.count

    def counted(what: str, expected: int, *rest: object) -> object:
        return count(what, real if expected in official else expected, *rest)

    monkeypatch.setattr(module, "count", counted)
    status, out = run(task, roots[task], capsys)
    assert "!!" not in out, out
    assert f"next: ready: python -m wsbench fit --task {task}" in out
    assert status == 0
    status, again = run(task, roots[task], capsys)
    assert status == 0
    assert "built" not in again.split("next:")[0].replace("not built", "").replace("and, built by", "")


def test_missing_and_broken_things_are_named(roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    victim = sorted((roots["coco"] / "train2017").iterdir())[2]
    victim.unlink()
    status, out = run("coco", roots["coco"], capsys)
    assert status == 1
    assert f"missing {victim.name}" in out
    (roots["coco"] / "annotations" / "instances_val2017.json").unlink()
    assert "unpack annotations_trainval2017.zip" in run("coco", roots["coco"], capsys)[1]

    clips = sorted((roots["something"] / "20bn-something-something-v1").iterdir())
    (clips[0] / "00001.jpg").write_bytes(b"no picture")
    assert "broken: 00001.jpg" in run("something", roots["something"], capsys)[1]
    for name in ("category.txt", "train_videofolder.txt", "val_videofolder.txt"):
        (roots["something"] / name).unlink()
    shutil.rmtree(clips[1])
    assert main(["data", "something", "--root", str(roots["something"])]) == 2
    assert f"{clips[1].name}' is missing" in capsys.readouterr().err
    assert not (roots["something"] / "train_videofolder.txt").exists(), "nothing half-written"

    (roots["modelnet40"] / "modelnet40_ply_hdf5_2048" / "ply_data_test0.h5").write_bytes(b"no")
    assert "ply_data_test0.h5" in run("modelnet40", roots["modelnet40"], capsys)[1]
    next((roots["imagenet"] / "val" / "n00000004").iterdir()).unlink()
    assert "val: empty classes" in run("imagenet", roots["imagenet"], capsys)[1]


def test_options_of_voc_belong_to_voc(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "coco", "--download"]) == 2
    assert "belong to voc" in capsys.readouterr().err


def test_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "lightning", "open3d", "mmsegmentation", "CPU", "WSBENCH_DATA"):
        assert word in out


def test_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(doctor, "missing_libraries", return_value={"libusb-1.0.so.0": "libusb-1.0-0"}):
        assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "libusb-1.0.so.0 is missing: apt-get install libusb-1.0-0" in out
    needed = [("torch", ">=2.8", "2.1", False)]
    with mock.patch.object(doctor, "required", return_value=needed):
        assert main(["doctor"]) == 1
    assert "repair: pip install -U torch" in capsys.readouterr().out


def test_doctor_knows_the_loader() -> None:
    with mock.patch.dict(doctor.OPEN3D_LIBRARIES, {"libnone-7.so": "none-7"}):
        assert doctor.missing_libraries()["libnone-7.so"] == "none-7"
    rows = {name: (wanted, ok) for name, wanted, _, ok in doctor.required()}
    assert rows["torch"] == (">=2.8", True)
    assert "pytest" not in rows, "extras are optional"


def test_doctor_says_how_to_get_an_optional_part(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        mock.patch.object(doctor, "_version", return_value=None),
        mock.patch.object(doctor, "required", return_value=[]),
    ):
        assert main(["doctor"]) == 0
    out = "".join(capsys.readouterr().out.replace("│", "").split())
    assert "pipinstall'wsbench[export]'" in out, "the brackets are not taken for a style"
