"""Something-Something's lists, and its miniature, which only the order of frames can solve."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests import tiny
from wsbench.datamodules import SomethingSomething
from wsbench.datamodules.clips import evaluation_frames, training_frames
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.mini import something as mini
from wsbench.datamodules.something import FRAMES, LISTS, read_classes


@pytest.fixture
def root(tiny_roots: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(tiny_roots["something"], tmp_path / "data"))


def set_up(root: Path, **changes: object) -> SomethingSomething:
    data = tiny.data("something", root, **changes)
    data.setup("fit")
    assert isinstance(data, SomethingSomething)
    return data


def test_official_files(root: Path) -> None:
    assert SomethingSomething.is_present(root)
    data = set_up(root)
    assert (len(data.train_data), len(data.val_data)) == (12, 6)
    assert list(data.classes) == sorted(mini.LABELS), "alphabetical, as TRN and TSM number them"
    listed = set_up(root, class_order="csv")
    assert list(listed.classes) == list(mini.LABELS)
    a, b = data.val_data.clips[0], listed.val_data.clips[0]
    assert data.classes[a.label] == listed.classes[b.label]
    assert a.folder == b.folder
    assert data.identity() != listed.identity(), "the order of classes is part of the data's identity"


def write_lists(root: Path, prefix: str = "") -> None:
    """The lists of TRN and TSM, which say the same as the official files."""
    data = set_up(root)
    (root / LISTS["labels"]).write_text("".join(f"{name}\n" for name in data.classes))
    for split, samples in (("train", data.train_data), ("val", data.val_data)):
        lines = [f"{prefix}{clip.folder.name} {clip.frames} {clip.label}\n" for clip in samples.clips]
        (root / LISTS[split]).write_text("".join(lines))


def test_lists_of_trn_and_tsm_say_the_same(root: Path) -> None:
    official = set_up(root)
    write_lists(root)
    listed = set_up(root, lists="videofolder")
    assert listed.train_data.clips == official.train_data.clips
    assert listed.identity() == official.identity() == set_up(root).identity()
    for path in (root / LISTS["train"]).parent.glob("something-something-v1-*.csv"):
        path.unlink()
    write = (root / LISTS["val"]).read_text().splitlines()
    (root / LISTS["val"]).write_text("".join(f"something/v1/img/{line}\n" for line in write))
    assert set_up(root).val_data.clips == official.val_data.clips, "TSM's script writes a path in front"


def test_lists_that_the_official_files_have_left_behind_are_refused(root: Path) -> None:
    """A derived list is a cache: what it was derived from may have been replaced since."""
    write_lists(root)
    path = root / "something-something-v1-train.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:6]))
    with pytest.raises(
        DatasetError, match=r"train\.csv' \(6 clips\) and '.*train_videofolder\.txt' \(12\) do not name"
    ):
        set_up(root)
    assert len(set_up(root, lists="csv").train_data) == 6
    assert len(set_up(root, lists="videofolder").train_data) == 12


def test_short_clips_are_left_out_counted_and_too_many_refused(root: Path) -> None:
    data = set_up(root)
    folder = data.train_data.clips[0].folder
    for path in sorted(folder.glob("*.jpg"))[2:]:
        path.unlink()
    with pytest.raises(DatasetError, match=rf"1 of 12 samples of 'train' have fewer than 3 frames.*{folder.name} \(2 "):
        set_up(root)
    left = set_up(root, max_dropped=0.1)
    assert len(left.train_data) == 11
    assert left.identity().splits["train"].dropped == 1
    assert left.identity().splits["val"].dropped == 0


def test_broken_lists_and_clips_are_named(root: Path) -> None:
    clip = set_up(root).train_data.clips[3].folder
    frames = shutil.copytree(clip, root / "kept")
    shutil.rmtree(clip)
    with pytest.raises(DatasetError, match=rf"the clip '.*{FRAMES}/{clip.name}' is missing"):
        set_up(root)
    clip.mkdir()
    with pytest.raises(DatasetError, match=rf"{clip.name}' has no frames"):
        set_up(root)
    shutil.copytree(frames, clip, dirs_exist_ok=True)
    path = root / "something-something-v1-validation.csv"
    path.write_text(path.read_text() + "99;Eating something\n")
    with pytest.raises(
        DatasetError,
        match=r"clip '99' has the label 'Eating something', which 'something-something-v1-labels\.csv' does not",
    ):
        set_up(root)
    with pytest.raises(DatasetError, match=r"--data.num_classes 7 was given, the data has 6 classes"):
        set_up(root, num_classes=7)
    with pytest.raises(DatasetError, match=r"has no category\.txt"):
        set_up(root, lists="videofolder")
    (root / "something-something-v1-labels.csv").write_text("a\na\n")
    with pytest.raises(DatasetError, match=r"labels\.csv' names 'a' 2 times"):
        read_classes(root, "csv")


def test_frames_say_nothing_about_the_class_only_their_order_does() -> None:
    """Every class leaves out each of the nine places equally often, so the bags of places are distributed alike."""
    bags = {}
    for step in mini.LABELS.values():
        bags[step] = Counter(frozenset(mini.places(step, start)) for start in range(mini.PLACES))
        assert all(len(bag) == mini.PARTS for bag in bags[step]), "no place twice"
    assert all(bag == bags[1] for bag in bags.values())
    orders = {step: {tuple(mini.places(step, start)) for start in range(mini.PLACES)} for step in bags}
    assert all(not (orders[a] & orders[b]) for a in orders for b in orders if a != b), "the order tells them apart"


@pytest.mark.parametrize("frames", [16, 24])
def test_sampling_takes_one_frame_of_each_part(frames: int) -> None:
    import torch

    repeat = frames // mini.PARTS
    for seed in range(20):
        drawn = training_frames(frames, mini.PARTS, torch.Generator().manual_seed(seed))
        assert [(n - 1) // repeat for n in drawn] == list(range(mini.PARTS))
    assert [(n - 1) // repeat for n in evaluation_frames(frames, mini.PARTS)] == list(range(mini.PARTS))


def test_prediction_needs_folders_of_frames(root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="no folders of frames"):
        tiny.data("something", root, pictures=str(empty)).setup("predict")
    data = tiny.data("something", root, pictures=str(root / FRAMES))
    data.setup("predict")
    assert data.predict_data[0]["clip"].shape == (8, 3, 32, 32)
