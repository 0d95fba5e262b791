"""``wsbench data TASK`` and ``wsbench doctor``."""

import shutil
from pathlib import Path
from unittest import mock

import pytest

from tests import tiny
from wsbench.__main__ import main
from wsbench.cli import doctor
from wsbench.datamodules import data_class
from wsbench.registry import TASKS


@pytest.fixture
def roots(tiny_roots: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies that may be broken."""
    return {task: Path(shutil.copytree(tiny_roots[task], tmp_path / task)) for task in tiny.TASKS}


def run(task: str, root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["data", task, "--root", str(root)])
    return status, " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("task", tiny.TASKS)
def test_without_a_dataset_it_shows_the_layout(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", task]) == 1
    out = capsys.readouterr().out
    assert "layout:" in out
    assert "give --root FOLDER" in out


@pytest.mark.parametrize("task", tiny.TASKS)
def test_an_empty_folder_has_a_next_step(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(task, tmp_path, capsys)
    assert status == 1
    assert "it is empty" in out
    assert "next: lay it out as above" in out


def test_data_without_a_val_is_for_recommend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not called broken: what recommend would do with it is the next step."""
    for task, files in (
        ("imagenet", [tmp_path / "imagenet" / "cat" / "a.png", tmp_path / "imagenet" / "dog" / "b.png"]),
        ("modelnet40", [tmp_path / "modelnet40" / "chair" / "a.off"]),
        (
            "voc",
            [
                tmp_path / "voc" / name / f"a.{kind}"
                for name, kind in (("JPEGImages", "jpg"), ("SegmentationClass", "png"))
            ],
        ),
    ):
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        status, out = run(task, tmp_path / task, capsys)
        assert status == 1
        assert f"wsbench recommend --task {task} --data.root {tmp_path / task}" in out


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_dataset_of_ones_own_is_ready_and_the_next_step_works(
    task: str, roots: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No official count is asked of it; the command that is named trains on it."""
    status, out = run(task, roots[task], capsys)
    assert (status, "!!" in out) == (0, False), out
    command = out.split("next: ready: python -m wsbench ")[1].split()
    assert command[:6] == ["fit", "--task", task, "--norm", "gn+ws", "--recipe"]
    monkeypatch.chdir(roots[task].parent)
    monkeypatch.setattr("sys.argv", ["wsbench"])
    further = ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    sizes = {"modelnet40": ["--data.points", "32"], "voc": ["--data.crop", "65"]}.get(task, [])
    assert main([*command, *further, *sizes]) == 0


def test_official_counts_are_asked_of_the_official_set(
    roots: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in map(data_class, tiny.TASKS):
        monkeypatch.setattr(kind, "resembles_official", True)
    of_the_paper = [task for task, entry in TASKS.items() if entry.paper is not None]
    counts = dict(zip(of_the_paper, (1_281_167, 86_017, 1_464, 9_840, 117_266), strict=True))
    for task in tiny.TASKS:
        status, out = run(task, roots[task], capsys)
        assert status == 1, task
        assert f"{counts[task]:,} samples" in out, task
        assert "again" in out.split("next: ")[1]


def test_options_of_voc_belong_to_voc(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "coco", "--download"]) == 2
    assert "coco has no use for --download; belongs to voc" in capsys.readouterr().err


def test_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "lightning", "open3d", "mmsegmentation", "CPU", "WSBENCH_DATA"):
        assert word in out


def test_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    libraries = mock.patch.object(doctor, "missing_libraries", return_value={"libusb-1.0.so.0": "libusb-1.0-0"})
    with libraries, mock.patch.object(doctor, "broken", return_value={}):  # what it finds is looked at above
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
