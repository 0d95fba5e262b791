"""Every cell of the paper's tables is resolved and started: the grids' own YAML, the paper's recipes, one step each."""

from pathlib import Path

import pytest
import torch

from tests import tiny
from wsbench.__main__ import main
from wsbench.cli.resolver import Resolver
from wsbench.grid.definition import argv, expand, load
from wsbench.models.resnet import RESNETS, Architecture
from wsbench.tasks import ImageNetClassification

pytestmark = pytest.mark.usefixtures("in_a_folder")

TABLES = {1: 9, 2: 12, 3: 4, 4: 9, 5: 9, 6: 4, 7: 4, 8: 4}
#: sizes only; batches, rates, schedules, norms and what a run starts from are the grid's
SIZES = {
    "imagenet": ["--data.crop", "32", "--data.resize", "32", "--data.eval_batch", "5"],
    "something": ["--data.crop", "32", "--data.resize", "32", "--data.eval_batch", "2"],
    "voc": ["--data.train_set", "train", "--data.crop", "65", "--model.aspp_width", "32"],
    "modelnet40": ["--data.points", "32", "--data.eval_batch", "5", "--model.width", "0.5"],
    "coco": ["--model.min_size", "64", "--model.max_size", "96", "--model.width", "32", "--model.head_convs", "1",
             "--model.fc_width", "32"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _slim_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's networks under their names, a block a stage and a sixteenth of the width."""
    for name in ("resnet50", "resnet101"):
        monkeypatch.setitem(RESNETS, name, Architecture((1, 1, 1, 1), max_planes=64))
    for name in ("resnext50_32x4d", "resnext101_32x4d"):
        monkeypatch.setitem(RESNETS, name, Architecture((1, 1, 1, 1), groups=32, width_per_group=4, max_planes=64))


def write_weights(path: Path) -> None:
    """An ImageNet checkpoint where tables 4 to 7 look for it: ``weights/NETWORK/NORM.ckpt``."""
    task = ImageNetClassification(norm=path.stem, network=path.parent.name, num_classes=10)
    content = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


@pytest.mark.slow
@pytest.mark.parametrize("number", TABLES)
def test_every_cell_starts(number: int, tiny_roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    cells = expand(load(f"table{number}").grids["paper"])
    assert len(cells) == TABLES[number]
    resolve = Resolver()
    ids = set()
    for options in cells:
        task = str(options["task"])
        if "model.init_from" in options:
            write_weights(Path(str(options["model.init_from"])))
        line = [*argv(options, "paper"), "--data.root", str(tiny_roots[task]), "--data.num_workers", "0", *SIZES[task]]
        resolved = resolve(line)
        assert (resolved.recipe, resolved.problem) == ("paper", None)
        ids.add(resolved.id)
        assert main(["fit", *line, "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]) == 0, line
        assert str(resolved.id) in capsys.readouterr().out.replace("\n", ""), "what is resolved is what runs"
    assert len(ids) == len(cells)


def test_the_tables_are_all() -> None:
    assert len(TABLES) == 8
    assert set(SIZES) == set(tiny.TASKS)
