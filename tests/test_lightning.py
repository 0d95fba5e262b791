"""docs/lightning.md: its scripts run as they stand but for folders and lengths, on one process and on two."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from tests import tiny
from wsbench.norms import NormSpec
from wsbench.tasks import ImageNetClassification
from wsbench.tasks.data import BatchUnknownError
from wsbench.tasks.errors import TaskOptionError

DOCS = Path(__file__).parents[1] / "docs" / "lightning.md"
SCRIPTS = {
    match[1]: match[2] for match in re.finditer(r"```python\n# (\w+)\.py\n(.*?)```", DOCS.read_text(), re.DOTALL)
}
ROOTS = {
    "imagenet": "my_photos", "something": "my_clips", "voc": "my_masks", "modelnet40": "my_shapes", "coco": "my_boxes"
}  # fmt: skip
#: optimizer steps of two epochs on the tiny datasets, each smaller than the effective batch or little larger
STEPS = {"imagenet": 2, "something": 2, "voc": 2, "modelnet40": 2, "coco": 2}
BATCH = {"imagenet": 16, "something": 8, "voc": 8, "modelnet40": 16, "coco": 4}


def adapted(name: str, roots: dict[str, Path], devices: int) -> str:
    """A script for the tiny data, two epochs long, on a CPU."""
    code = SCRIPTS[name]
    if name in ROOTS:
        assert ROOTS[name] in code
        code = code.replace(ROOTS[name], str(roots[name])).replace("num_workers=2", "num_workers=0")
        code = re.sub(r"max_epochs=\d+", "max_epochs=2", code)
    quiet = f'accelerator="cpu", devices={devices}, enable_progress_bar=False, enable_model_summary=False, logger=False'
    return code.replace("Trainer(", f"Trainer({quiet}, ")


def test_every_task_has_a_script() -> None:
    assert set(SCRIPTS) == {*tiny.TASKS, "loader"}
    assert all(code.count("\n") <= 30 for code in SCRIPTS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.usefixtures("in_a_folder")
def test_a_script_on_one_process(name: str, tiny_roots: dict[str, Path]) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(adapted(name, tiny_roots, 1), f"{name}.py", "exec"), space)
    task, trainer = space["task"], space["trainer"]
    assert task.evaluation.step == trainer.global_step
    if name == "loader":
        assert trainer.global_step == 4 * 32 // (2 * 4)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001), "one milestone, at epoch 3"
        return
    assert trainer.global_step == STEPS[name]
    assert trainer.accumulate_grad_batches == BATCH[name], "derived from the effective batch"
    assert task.evaluation.n_eval == tiny.COUNTS[name]["val"]
    if name == "imagenet":
        assert space["again"].classes == task.classes


TWO = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
results = {}
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    space = {"__name__": "__main__"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    task, trainer = space["task"], space["trainer"]
    results[path.stem] = [trainer.world_size, trainer.global_step, trainer.accumulate_grad_batches,
                          task.evaluation.n_eval, sorted(task.evaluation.values.items())]
Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
"""


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.ddp
def test_the_scripts_on_two_processes(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    """By torchrun, one after the other; each optimizer step is as large as on one, each sample evaluated once."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name in SCRIPTS:
        (folder / f"{name}.py").write_text(adapted(name, tiny_roots, 2))
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(tmp_path / "two.py"), str(folder)]  # fmt: skip
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    import json

    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for name in tiny.TASKS:
        world, steps, accumulate, n_eval, _ = first[name]
        assert (world, steps, accumulate * 2) == (2, STEPS[name], BATCH[name])
        assert n_eval == tiny.COUNTS[name]["val"]
        assert first[name] == second[name], "both processes have the results of all"


def fit(trainer: Trainer, task: Any, *data: Any) -> None:
    trainer.fit(task, *data)


def test_a_contradicting_accumulation_names_both_numbers(tiny_roots: dict[str, Path]) -> None:
    task = tiny.model("imagenet", "gn")
    data = tiny.data("imagenet", tiny_roots["imagenet"], micro_batch=1, effective_batch=8)
    with pytest.raises(
        TaskOptionError, match=r"accumulate_grad_batches 3 contradicts.*effective_batch 8.*set effective_b"
    ):
        fit(tiny.trainer(accumulate_grad_batches=3), task, data)


def test_a_trainer_that_is_used_again(tiny_roots: dict[str, Path]) -> None:
    """What an earlier fit derived is not what the user said."""
    trainer = tiny.trainer(accumulate_grad_batches=1, max_steps=2)
    for batch in (8, 4):
        data = tiny.data("imagenet", tiny_roots["imagenet"], micro_batch=1, effective_batch=batch)
        fit(trainer, tiny.model("imagenet", "gn"), data)
        assert trainer.accumulate_grad_batches == batch
        trainer.fit_loop.epoch_loop.max_steps += 2
    sample = {"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "label": 1}
    loader = torch.utils.data.DataLoader([sample] * 4, batch_size=1)  # type: ignore[arg-type]
    fit(trainer, tiny.model("imagenet", "gn"), loader)
    assert trainer.accumulate_grad_batches == 1


def test_what_contradicts_the_effective_batch_is_refused(tiny_roots: dict[str, Path]) -> None:
    data = tiny.data("imagenet", tiny_roots["imagenet"])
    scheduler = GradientAccumulationScheduler({0: 2})
    with pytest.raises(TaskOptionError, match=r"GradientAccumulationScheduler and --data\.effective_batch both say"):
        fit(tiny.trainer(accumulate_grad_batches=1, callbacks=[scheduler]), tiny.model("imagenet", "gn"), data)
    with pytest.raises(TaskOptionError, match=r"--trainer\.overfit_batches takes the sampler away"):
        fit(tiny.trainer(accumulate_grad_batches=1, overfit_batches=2), tiny.model("imagenet", "gn"), data)


class Fixed(ImageNetClassification):
    """A subclass that decides for itself."""

    def __init__(self, extra: int = 3, **kwargs: Any) -> None:
        super().__init__(network="resnet_mini", **kwargs)
        self.extra = extra


def test_a_subclass_and_a_spec_object_load_from_a_checkpoint(tiny_roots: dict[str, Path], tmp_path: Path) -> None:
    task = Fixed(extra=5, norm=NormSpec.parse("gn+ws"), num_classes=10)
    trainer = tiny.trainer(max_steps=1, accumulate_grad_batches=1)
    fit(trainer, task, tiny.data("imagenet", tiny_roots["imagenet"]))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = Fixed.load_from_checkpoint(tmp_path / "x.ckpt")
    assert (again.extra, again.spec, again.classes) == (5, task.spec, task.classes)


@pytest.mark.parametrize("name", tiny.TASKS)
def test_every_task_loads_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    task = tiny.model(name, "gn+ws")
    content = {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "pytorch-lightning_version": "2.5.5",
    }
    task.on_save_checkpoint(content)
    torch.save(content, tmp_path / "x.ckpt")
    again = type(task).load_from_checkpoint(tmp_path / "x.ckpt")
    assert again.network_name == task.network_name
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), task.parameters(), strict=True))


def test_a_loader_without_a_batch_size_is_refused() -> None:
    task = ImageNetClassification(norm="gn", network="resnet_mini", num_classes=4)
    sample = {"image": torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "label": torch.zeros(1, dtype=torch.long)}
    loader = torch.utils.data.DataLoader([sample] * 4, batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(BatchUnknownError, match="does not say its batch_size"):
        fit(tiny.trainer(max_steps=1), task, loader)


def test_the_milestones_are_those_of_optimizer_steps(tiny_roots: dict[str, Path]) -> None:
    """A Trainer that says nothing about accumulation: epoch 1 begins after 20 // 4 steps, not after as many batches."""
    rates: list[float] = []
    task: Any = tiny.model("imagenet", "gn", lr=0.1, milestones=(1,))
    data = tiny.data("imagenet", tiny_roots["imagenet"], micro_batch=1, effective_batch=4, steps_per_epoch=None)
    step = task.on_before_optimizer_step

    def look(optimizer: Any) -> None:
        rates.append(round(optimizer.param_groups[0]["lr"], 6))
        step(optimizer)

    task.on_before_optimizer_step = look
    fit(tiny.trainer(accumulate_grad_batches=1, max_steps=-1, max_epochs=2, limit_val_batches=0), task, data)
    assert rates == [0.1] * 5 + [0.01] * 5
