"""A run's id: the content of all that decides its numbers, and of nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from tests import tiny
from tests.conftest import TINY
from wsbench.cli.resolver import Resolver
from wsbench.configuration.choice import recipe_content
from wsbench.datamodules.coco import split_place
from wsbench.datamodules.palette import palette_image
from wsbench.records import DataIdentity, SplitIdentity, read_record
from wsbench.registry import TASKS
from wsbench.run import identity

RECORDS = Path(__file__).parents[2] / "leaderboards" / "records"
DATA = DataIdentity(name="x", splits={"val": SplitIdentity(list="val", count=1, checksum="c", labels="l")})


def id_of(root: Path, *options: str, resolver: Resolver | None = None) -> str:
    found = (resolver or Resolver())([*TINY, "--data.root", str(root), *options]).id
    assert found is not None
    return found


# -- what counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "same"),
    [
        (("--trainer.devices", "2", "--data.effective_batch", "2"), True),
        (("--trainer.strategy", "ddp"), True),
        (("--trainer.accelerator", "auto"), True),
        (("--trainer.log_every_n_steps", "1"), True),
        (("--trainer.benchmark", "true"), True),
        (("--data.num_workers", "2"), True),
        (("--data.eval_batch", "2"), True),
        (("--data.num_classes", "21"), True),
        (("--model.window", "false"), True),
        (("--runs", "elsewhere"), True),
        (("--model.lr", "0.02"), True),  # as the recipe has it
        (("--model.lr", "0.03"), False),
        (("--trainer.max_steps", "5"), False),
        (("--trainer.precision", "bf16-mixed"), False),
        (("--trainer.gradient_clip_val", "1"), False),
        (("--data.flip", "0.5"), False),
        (("--data.effective_batch", "3"), False),
        (("--norm", "gn"), False),
        (("--seed_everything", "1"), False),
        (("--trainer.sync_batchnorm", "true"), False),
    ],
)
def test_what_was_run_counts_and_not_where(root: Path, options: tuple[str, ...], same: bool) -> None:
    assert (id_of(root) == id_of(root, *options)) is same


def test_synchronized_statistics_depend_on_devices(root: Path) -> None:
    synced = ("--trainer.sync_batchnorm", "true", "--data.effective_batch", "4")
    assert id_of(root, *synced, "--trainer.devices", "2") != id_of(root, *synced, "--trainer.devices", "4")


def test_a_new_field_or_default_of_lightning_changes_no_id(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Lightning had a release with another field and another default."""
    before = id_of(root)
    original = Trainer.__init__

    def newer(self: Trainer, *args: Any, a_new_field: int = 7, **kwargs: Any) -> None:
        original(self, *args, **kwargs)

    import inspect

    signature = inspect.signature(original)
    fields = [p.replace(default="32-true") if p.name == "precision" else p for p in signature.parameters.values()]
    fields.insert(-1, inspect.Parameter("a_new_field", inspect.Parameter.KEYWORD_ONLY, default=7, annotation=int))
    newer.__signature__ = signature.replace(parameters=fields)  # type: ignore[attr-defined]
    newer.__doc__, newer.__annotations__ = original.__doc__, {**original.__annotations__, "a_new_field": int}
    monkeypatch.setattr(Trainer, "__init__", newer)
    resolver = Resolver()
    assert id_of(root, resolver=resolver) == before
    assert id_of(root, "--trainer.a_new_field", "8", resolver=resolver) == before, "and it is there"


def test_the_recipes_content_counts_not_its_name_alone() -> None:
    recipe = recipe_content("voc", "paper")
    other = {**recipe, "model": {**recipe["model"], "lr": 1}}
    aside = {**recipe, "data": {**recipe["data"], "num_workers": 99}}
    digests = [identity.recipe_digest(r) for r in (recipe, other, aside)]
    assert digests[0] == digests[2] != digests[1]
    ids = {identity.run_id("voc", "paper", digest, {}, "gn", 0, DATA) for digest in digests}
    assert len(ids) == 2


def test_weights_to_start_from_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"one")
    (tmp_path / "b.ckpt").write_bytes(b"one")
    (tmp_path / "c.ckpt").write_bytes(b"two")

    def run(source: str) -> str:
        changed = identity.overrides({"model": {"init_from": source}}, {})
        return identity.run_id("voc", "paper", "d", changed, "gn", 0, DATA)

    a, b, c = (run(str(tmp_path / f"{n}.ckpt")) for n in "abc")
    assert a == b != c
    stated = run(f"gn+ws={tmp_path / 'a.ckpt'}")
    assert stated not in (a, run(f"gn={tmp_path / 'a.ckpt'}"))


# -- labels ---------------------------------------------------------------------------------------------------------


def wipe_masks(root: Path) -> None:
    for path in (root / "VOCdevkit" / "VOC2012" / "SegmentationClass").glob("train*.png"):
        mask = np.asarray(Image.open(path))
        palette_image(np.where(mask > 1, mask, np.uint8(1))).save(path)


def rotate_names(root: Path) -> None:
    for split in ("train", "val"):
        place = split_place(root, split)
        assert place is not None
        content = json.loads(place.annotations.read_text())
        names = [c["name"] for c in content["categories"]]
        for category, name in zip(content["categories"], names[1:] + names[:1], strict=True):
            category["name"] = name
        place.annotations.write_text(json.dumps(content))


def move_image(root: Path) -> None:
    first, second = sorted((root / "train").iterdir())[:2]
    image = next(first.iterdir())
    image.rename(second / image.name)


def swap_labels(root: Path) -> None:
    path = root / "something-something-v1-labels.csv"
    lines = path.read_text().splitlines()
    renamed = {lines[0]: lines[1], lines[1]: lines[0]}
    train = root / "something-something-v1-train.csv"
    rows = [line.split(";") for line in train.read_text().splitlines()]
    train.write_text("".join(f"{name};{renamed.get(label, label)}\n" for name, label in rows))


def move_a_point(root: Path) -> None:
    import h5py

    with h5py.File(root / "modelnet40_ply_hdf5_2048" / "ply_data_train0.h5", "r+") as file:
        points = file["data"][:]
        points[3, 500] += 0.25  # beyond those that are trained on
        file["data"][:] = points


CHANGES: dict[str, Callable[[Path], None]] = {
    "voc": wipe_masks, "coco": rotate_names, "imagenet": move_image, "something": swap_labels,
    "modelnet40": move_a_point,
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_a_label_that_changed_is_another_dataset(task: str, tmp_path: Path) -> None:
    root = tiny.write(task, tmp_path / "data")

    def look() -> DataIdentity:
        data = tiny.data(task, root)
        data.setup("fit")
        return data.identity()

    before = look()
    assert before == look(), "and the second look, which reads what was kept, says the same"
    CHANGES[task](root)
    after = look()
    assert after.splits["train"].labels != before.splits["train"].labels


def test_annotations_in_another_order_are_the_same(tmp_path: Path) -> None:
    root = tiny.write("coco", tmp_path / "data")
    data = tiny.data("coco", root)
    data.setup("fit")
    place = split_place(root, "train")
    assert place is not None
    content = json.loads(place.annotations.read_text())
    content["annotations"].reverse()
    content["images"].reverse()
    for i, annotation in enumerate(content["annotations"]):
        annotation["id"] = 7000 + i
    place.annotations.write_text(json.dumps(content, indent=3))
    again = tiny.data("coco", root)
    again.setup("fit")
    assert again.identity() == data.identity()


# -- migration ------------------------------------------------------------------------------------------------------


def test_published_records_have_the_ids_that_their_runs_have_today() -> None:
    """By the command line that each record names, resolved afresh: a handful of every task."""
    resolver = Resolver()
    for task in TASKS:
        found = [(path, read_record(path)) for path in sorted((RECORDS / task).glob("*.json"))]
        mini = [(path, record) for path, record in found if record.recipe == "mini"]
        assert TASKS[task].paper is None or len(mini) >= 30
        for path, record in mini[::9]:
            options = [part for name, value in record.overrides.items() for part in (f"--{name}", yaml.safe_dump(
                value, default_flow_style=True).strip().removesuffix("\n..."))]  # fmt: skip
            line = ["--task", task, "--recipe", "mini", "--norm", record.norm, "--seed_everything", str(record.seed)]
            if record.batch.devices == 1:
                assert resolver([*line, *options]).id == identity.id_of(record), path


def test_what_a_run_started_from_is_its_content_and_where_it_lay(tmp_path: Path) -> None:
    source = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}}, source)
    known = identity.with_content(str(source))
    assert isinstance(known, dict)
    assert known["source"] == str(source)
    source.unlink()
    assert identity.with_content(str(source)) == str(source)
