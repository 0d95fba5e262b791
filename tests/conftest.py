"""Fixtures: a tiny VOC and SBD in their real layouts, a cache of its own, and skips that fail where required."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, and for the processes that tests start
    _cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from wsbench.datamodules.palette import palette_image

REQUIRE_ALL = os.environ.get("WSBENCH_REQUIRE_ALL") == "1"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With WSBENCH_REQUIRE_ALL=1 a skipped test has failed."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but WSBENCH_REQUIRE_ALL=1: {report.longrepr}"


@pytest.fixture(scope="session", autouse=True)
def _session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that is not the user's; no dataset of the user's either."""
    patch = pytest.MonkeyPatch()
    patch.setenv("WSBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("WSBENCH_DATA", raising=False)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a command that ran in this process has told its children (``--import``, say) ends with the test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def write_voc(root: Path, train: int = 6, val: int = 5, sbd: int = 4, classes: int = 21) -> Path:
    """VOCdevkit/VOC2012 and benchmark_RELEASE/dataset with small random images.

    SBD's train list holds one of VOC's val images and one of VOC's train images, its val list the rest.
    """
    rng = np.random.default_rng(0)
    devkit = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (devkit / name).mkdir(parents=True)
    names = {"train": [f"2007_{i:06d}" for i in range(train)], "val": [f"2008_{i:06d}" for i in range(val)]}
    extra = [f"2010_{i:06d}" for i in range(sbd)]
    shapes = {}
    for name in (*names["train"], *names["val"], *extra):
        height, width = (int(v) for v in rng.integers(24, 40, 2))
        shapes[name] = (height, width)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            devkit / "JPEGImages" / f"{name}.jpg"
        )
    for split, members in names.items():
        (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(members) + "\n")
        for name in members:
            mask = rng.integers(0, classes, shapes[name], dtype=np.uint8)
            mask[:2] = 255
            palette_image(mask).save(devkit / "SegmentationClass" / f"{name}.png")
    release = root / "benchmark_RELEASE" / "dataset"
    (release / "cls").mkdir(parents=True)
    lists = {"train": [names["val"][0], names["train"][0], *extra[:1]], "val": extra[1:]}
    for split, members in lists.items():
        (release / f"{split}.txt").write_text("\n".join(members) + "\n")
        for name in members:
            mask = rng.integers(0, classes, shapes[name], dtype=np.uint8)
            content = np.zeros((1, 1), dtype=[("Segmentation", "O")])
            content["Segmentation"][0, 0] = mask
            savemat(release / "cls" / f"{name}.mat", {"GTcls": content})
    return root


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """A fresh tiny VOC with SBD beside it."""
    return write_voc(tmp_path / "data")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VOC that no test changes."""
    return write_voc(tmp_path_factory.mktemp("data"))


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder and an argv of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["wsbench"])
    monkeypatch.setattr(sys, "path", [*sys.path])  # modules of this folder are of this test


@pytest.fixture
def run(root: Path, in_a_folder: None) -> Path:
    """The folder of a finished run."""
    from tests.running import fit, only_run

    assert fit(root) == 0
    return only_run()


#: A run that takes a second: the miniature's recipe on a tiny VOC.
TINY = (
    "--task", "voc", "--recipe", "mini", "--data.miniature", "false", "--data.crop", "33",
    "--data.effective_batch", "2", "--data.steps_per_epoch", "2", "--trainer.max_steps", "4",
    "--trainer.accelerator", "cpu", "--model.aspp_width", "32",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few samples of every task in its official layout; no test changes them."""
    from tests import tiny

    return {task: tiny.write(task, tmp_path_factory.mktemp(task) / "data") for task in tiny.TASKS}
