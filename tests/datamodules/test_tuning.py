"""``--data.tuning``: part of the training samples is evaluated on in place of the reporting split."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.grid.small import write_tuned_grid
from wsbench.__main__ import main
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.sampling import Draw


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _places(sample: Any, samples: list[Any]) -> list[int]:
    return [i for i, other in enumerate(samples) if _equal(sample, other)]


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_parts_are_the_training_list_and_val_is_not_seen(task: str, tiny_roots: dict[str, Path]) -> None:
    """Which samples are where is found by their contents, not by what the module says of itself."""
    whole, cut = tiny.data(task, tiny_roots[task]), tiny.data(task, tiny_roots[task], tuning=0.5)
    cut.setup("validate")  # reads the training list, too
    whole.setup("fit")
    cut.setup("fit")
    drawn = [whole.train_data[Draw(i, 7)] for i in range(len(whole.train_data))]
    kept = [_places(cut.train_data[Draw(i, 7)], drawn) for i in range(len(cut.train_data))]
    assert all(len(places) == 1 for places in kept), "training sees the samples as it would without"
    everything = whole.part(range(len(drawn)), train=False)
    plain = [everything[i] for i in range(len(drawn))]
    held = [_places(cut.val_data[i], plain) for i in range(len(cut.val_data))]
    assert sorted(place for places in kept + held for place in places) == list(range(len(drawn)))
    assert len(held) == round(0.5 * len(drawn))
    reported = [whole.val_data[i] for i in range(len(whole.val_data))]
    assert not any(_places(cut.val_data[i], reported) for i in range(len(held)))
    assert len(cut.val_dataloader().dataset) == len(held)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_identity_says_so(task: str, tiny_roots: dict[str, Path]) -> None:
    whole, cut, again = (tiny.data(task, tiny_roots[task], tuning=share, seed=seed)
                         for share, seed in ((None, 0), (0.5, 0), (0.5, 1)))  # fmt: skip
    for data in (whole, cut, again):
        data.setup("fit")
    splits = cut.identity().splits
    assert cut.identity() == again.identity(), "one cut for all seeds"
    assert splits["train"].count + splits["val"].count == whole.identity().splits["train"].count
    assert splits["val"].checksum != whole.identity().splits["val"].checksum
    assert splits["val"].list.endswith("held out 0.5: tuning")


def test_a_share_that_leaves_nothing(tiny_roots: dict[str, Path]) -> None:
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(DatasetError, match="between 0 and 1; got"):
            tiny.data("imagenet", tiny_roots["imagenet"], tuning=share)
    with pytest.raises(DatasetError, match=r"0\.001 of 20 training samples is 0"):
        tiny.data("imagenet", tiny_roots["imagenet"], tuning=0.001).setup("fit")


def test_what_is_held_out_is_never_what_results_are_scored_on(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    """Lists are the user's: one that names the reporting split's samples for training is refused, not warned of."""
    lists = tiny_roots["voc"] / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    names = {split: (lists / f"{split}.txt").read_text().split() for split in ("train", "val")}
    (tmp_path / "both.txt").write_text("\n".join((*names["train"], names["val"][0])) + "\n")
    for train_set in ("val", str(tmp_path / "both.txt")):
        with pytest.raises(DatasetError, match=r"samples are in both train and val.*--data.tuning holds out"):
            tiny.data("voc", tiny_roots["voc"], tuning=0.5, train_set=train_set).setup("fit")
    shutil.copytree(tiny_roots["imagenet"], tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "val")
    (tmp_path / "images" / "val").mkdir()
    for folder in (tmp_path / "images" / "train").iterdir():
        (tmp_path / "images" / "val" / folder.name).symlink_to(folder)
    with pytest.raises(DatasetError, match=r"in both train and val.*--data.tuning holds out"):
        tiny.data("imagenet", tmp_path / "images", tuning=0.5).setup("fit")


@pytest.mark.parametrize(
    ("task", "link"),
    [(task, os.symlink) for task in tiny.TASKS] + [(task, os.link) for task in tiny.TASKS if task != "something"],
)  # folders, which clips are, have no hard links
def test_nor_under_another_name(task: str, link: Any, tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    """A training sample whose file is one of val's, by a link."""
    root = tmp_path / "data"
    shutil.copytree(tiny_roots[task], root)
    data = tiny.data(task, root, tuning=0.5)
    data.setup("fit")
    whole = tiny.data(task, root)
    whole.setup("fit")
    ours, theirs = Path(whole.train_data.path(0)), Path(whole.val_data.path(0))
    shutil.rmtree(ours) if ours.is_dir() else ours.unlink()
    link(theirs.resolve(), ours)
    with pytest.raises(DatasetError, match=r"in both train and val.*--data.tuning holds out"):
        tiny.data(task, root, tuning=0.5).setup("fit")


def test_a_tuned_sweep_over_it_is_refused_before_anything_runs(
    tiny_roots: dict[str, Path], in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_tuned_grid(Path(), tiny_roots["voc"], ["bn", "gn+ws"])
    assert main(["sweep", grid, "--dry-run", "--", "--data.train_set", "val"]) == 0
    assert "cannot run here" in (said := capsys.readouterr()).err + said.out
    assert main(["sweep", grid, "--", "--data.train_set", "val"]) == 2
    assert "in both train and val" in capsys.readouterr().err
    assert not Path("runs/voc").exists()
