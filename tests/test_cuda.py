"""Runs on a CUDA device: emulated (tests/emulated_cuda.py), so that they run anywhere."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torchvision.models import resnet50

from tests import tiny
from tests.emulated_cuda import Counts, emulated_cuda
from tests.on_device import SMALL, from_fit_to_prediction
from wsbench.__main__ import main
from wsbench.norms import AccumulationWindow, normalize
from wsbench.records import read_record
from wsbench.tasks import BenchmarkTask

NORMS = ("gn+ws", "bn", "sn", "in", "gn+wn")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
#: an emulated tensor that is made in inference mode has no version, and cannot be detached
PLAIN_EVALUATION = ("--trainer.inference_mode", "false")


@pytest.fixture
def device() -> Iterator[Counts]:
    with emulated_cuda() as counts:
        yield counts


# -- the emulation itself -------------------------------------------------------------------------------------------


def test_devices_may_not_be_mixed(device: Counts) -> None:
    x = torch.randn(3, device="cuda")
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
        x + torch.zeros(3)
    assert (x + torch.tensor(1.0)).is_cuda, "a number on the CPU may be added"
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        x.numpy()


def wait_for_number(x: torch.Tensor) -> None:
    float(x[0])


def wait_for_list(x: torch.Tensor) -> None:
    x.tolist()


def wait_for_copy(x: torch.Tensor) -> None:
    x.cpu()


def wait_for_constant(x: torch.Tensor) -> None:
    x.new_tensor([1.0, 2.0])


def wait_for_places(x: torch.Tensor) -> None:
    x[x > 0]


def wait_for_condition(x: torch.Tensor) -> None:
    if (x > 0).any():
        pass


def wait_for_unpinned(x: torch.Tensor) -> None:
    torch.ones(3).to("cuda:0", non_blocking=True)


@pytest.mark.parametrize(
    "wait",
    [wait_for_number, wait_for_list, wait_for_copy, wait_for_constant, wait_for_places, wait_for_condition,
     wait_for_unpinned],
)  # fmt: skip
def test_a_wait_is_noted_with_its_line(wait: Any, device: Counts) -> None:
    x = torch.tensor([1.0, -1.0, 2.0], device="cuda")
    device.clear()
    wait(x)
    assert len(device.waits) == 1
    assert device.waits[0][1].startswith("tests/test_cuda.py:")


def test_what_needs_no_wait_is_not_noted(device: Counts) -> None:
    x = torch.tensor([1.0, -1.0, 2.0], device="cuda")
    batch = torch.ones(3).pin_memory()
    device.clear()
    y = torch.where(x > 0, x, 0.0) + batch.to("cuda:0", non_blocking=True)
    y[y > 1] = 0
    y.new_full((2,), 3.0)
    assert device.waits == []
    assert y.cpu().tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("norm", ["gn+ws", "bn"])
def test_numbers_are_those_of_the_cpu(norm: str, tiny_roots: dict[str, Path]) -> None:
    found = []
    for accelerator in ("cpu", "cuda"):
        torch.manual_seed(3)
        task, data = tiny.model("imagenet", norm), tiny.data("imagenet", tiny_roots["imagenet"])
        if accelerator == "cuda":
            with emulated_cuda():
                tiny.trainer(accelerator="cuda", devices=1).fit(task, data)
                found.append([p.detach().cpu() for p in task.parameters()])
        else:
            tiny.trainer().fit(task, data)
            found.append([p.detach() for p in task.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# -- every task -----------------------------------------------------------------------------------------------------


class Phases(Callback):
    """Kernels and waits of each micro-step and each evaluation batch."""

    def __init__(self, counts: Counts, checkpoint: Path) -> None:
        self.counts, self.checkpoint = counts, checkpoint
        self.seen: list[tuple[str, int, list[tuple[str, str]]]] = []

    def _begin(self) -> None:
        self.counts.clear()

    def _end(self, name: str) -> None:
        self.seen.append((name, self.counts.kernels, list(self.counts.waits)))
        self.counts.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._begin()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        ends = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._end("step" if ends else "micro-step")

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, idx: int, _: int = 0) -> None:
        self._begin()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, out: Any, batch: Any, idx: int, _: int = 0
    ) -> None:
        self._end("evaluation")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.checkpoint)  # afterwards the emulated parameters are other objects

    def waits(self, name: str) -> list[list[tuple[str, str]]]:
        """Of the phases of this name but the first, which copies constants."""
        return [waits for kind, _, waits in self.seen if kind == name][1:]


@pytest.mark.parametrize(
    ("task", "norm", "precision"),
    [
        pytest.param(*cell, marks=() if cell[1] == "gn+ws" or cell[::2] == ("imagenet", "32-true") else
                     [pytest.mark.slow, pytest.mark.thorough])
        for cell in product(tiny.TASKS, NORMS, PRECISIONS)
    ],
)  # fmt: skip
def test_the_host_does_not_wait(
    task: str, norm: str, precision: str, tiny_roots: dict[str, Path], tmp_path: Path, device: Counts
) -> None:
    """No wait in a micro-step, one in an optimizer step (and GradScaler's), one in an evaluation batch.

    torchvision's detector chooses boxes on the host; what it waits for is counted, so that it does not grow.
    """
    phases = Phases(device, tmp_path / "x.ckpt")
    settings: dict[str, Any] = {"accelerator": "cuda", "devices": 1, "precision": precision, "inference_mode": False}
    model, data = tiny.model(task, norm), tiny.data(task, tiny_roots[task])
    trainer = tiny.trainer(callbacks=[phases], max_steps=4, **settings)
    trainer.fit(model, data)
    assert model.evaluation is not None
    micro_step, step, evaluation = (52, 53, 24) if task == "coco" else (0, 1, 1)
    step += precision == "16-mixed"
    for name, most in (("micro-step", micro_step), ("step", step), ("evaluation", evaluation)):
        for waits in phases.waits(name):
            assert len(waits) <= most, (name, waits)
    again, value = tiny.model(task, norm), model.evaluation.values
    resumed = tiny.trainer(**settings)
    resumed.validate(again, data, ckpt_path=str(tmp_path / "x.ckpt"), verbose=False, weights_only=True)
    assert again.evaluation is not None
    assert again.evaluation.values == value


@pytest.mark.parametrize(("spec", "opening", "ending"), [("gn+ws", 2, 4), ("gn+wn", 3, 6)])
def test_kernels_at_the_ends_of_a_window(spec: str, opening: int, ending: int, device: Counts) -> None:
    """Of each of ResNet-50's 53 layers, beside what gn alone takes."""
    network = resnet50()
    normalize(network, spec)
    network.to("cuda")
    window = AccumulationWindow(network, simple_loop=True)
    images, labels = torch.randn(1, 3, 64, 64, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    found: dict[str, int] = {}
    for first in (True, False, True, False):  # the first time constants are made
        device.clear()
        window.begin(last=not first)
        found["opening" if first else "last opening"] = device.kernels
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        device.clear()
        window.end(look_later=True)
        found["middle" if first else "ending"] = device.kernels
        if not first:
            network.zero_grad()
    assert found["opening"] / 53 <= opening
    assert found["ending"] / 53 <= ending
    assert found["last opening"] == found["middle"] == 0


#: a norm and a precision for each task; the others with pytest -m long
DIAGONAL = tuple(zip(tiny.TASKS, NORMS, (*PRECISIONS, *PRECISIONS), strict=False))


@pytest.mark.parametrize(
    ("task", "norm", "precision"),
    [
        pytest.param(*cell, marks=() if cell in DIAGONAL else pytest.mark.long)
        for cell in product(tiny.TASKS, NORMS, PRECISIONS)
    ],
)
def test_a_command_line_from_fit_to_prediction(
    task: str, norm: str, precision: str, tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with emulated_cuda():
        record = from_fit_to_prediction(
            task, norm, precision, tiny_roots[task], monkeypatch, capsys, [*SMALL[task], *PLAIN_EVALUATION]
        )
    assert record.provenance.hardware == "Emulated GPU, 8192 MiB"
    assert record.provenance.cuda == torch.version.cuda
    assert record.provenance.float32 == "matmul highest, convolutions tf32"
    assert record.cost.peak_memory_mib == 123.0


# -- determinism ----------------------------------------------------------------------------------------------------


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Lightning sets it for the process and leaves it."""
    before = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("task", tiny.TASKS)
def test_deterministic_algorithms_are_enough(
    task: str, tiny_roots: dict[str, Path], device: Counts, deterministic: None
) -> None:
    model, data = tiny.model(task, "gn+ws"), tiny.data(task, tiny_roots[task])
    tiny.trainer(accelerator="cuda", devices=1, deterministic=True, inference_mode=False).fit(model, data)
    assert model.evaluation is not None


def test_an_operation_without_a_deterministic_form_is_noticed(device: Counts, deterministic: None) -> None:
    logits = torch.randn(1, 3, 4, 4, device="cuda", requires_grad=True)
    labels = torch.zeros(1, 4, 4, dtype=torch.int64, device="cuda")
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError, match="nll_loss2d_forward does not have a deterministic"):
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.nn.functional.cross_entropy(logits, labels, reduction="none").sum().backward()


# -- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("task", tiny.TASKS)
def test_true_half_precision_trains_or_is_refused(
    task: str, precision: str, tiny_roots: dict[str, Path], device: Counts
) -> None:
    model, data = tiny.model(task, "gn+ws"), tiny.data(task, tiny_roots[task])
    trainer = tiny.trainer(accelerator="cuda", devices=1, precision=precision)
    if task == "coco" or (task, precision) == ("modelnet40", "16-true"):
        with pytest.raises(ValueError, match=f"--trainer.precision {precision}: .*(use|mixed)"):
            trainer.fit(model, data)
        return
    trainer.fit(model, data)
    assert model.evaluation is not None
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_loss_over_many_pixels_stays_finite_in_float16(device: Counts) -> None:
    """257 x 257 pixels of a loss of 2.4 each are more than float16 holds."""
    task = tiny.model("voc", "gn+ws").half()
    batch = {
        "image": torch.zeros(1, 3, 257, 257, dtype=torch.uint8),
        "mask": torch.ones(1, 257, 257, dtype=torch.uint8),
        "size": torch.tensor([[257, 257]]),
    }
    total, number = task.loss(batch)
    assert total.dtype == torch.float32
    assert int(number) == 257 * 257
    assert 65504 < float(total) < 4 * 257 * 257


def test_steps_that_the_scaler_leaves_out_are_counted(
    tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    step = BenchmarkTask.on_before_optimizer_step

    def overflow_once(task: BenchmarkTask, optimizer: Any) -> None:
        step(task, optimizer)
        scaler: Any = task.trainer.precision_plugin
        if task.global_step == 1:
            scaler.scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = {
                task.device: torch.ones((), device=task.device)
            }

    monkeypatch.setattr(BenchmarkTask, "on_before_optimizer_step", overflow_once)
    line = ["fit", "--task", "imagenet", "--recipe", "mini", "--data.miniature", "false", "--norm", "gn+ws",
            "--data.root", str(tiny_roots["imagenet"]), "--trainer.max_steps", "4", "--data.steps_per_epoch", "2",
            "--trainer.precision", "16-mixed", *SMALL["imagenet"], *PLAIN_EVALUATION]  # fmt: skip
    with emulated_cuda():
        assert main(line) == 0
    (folder,) = Path("runs/imagenet").iterdir()
    record = read_record(folder / "result.json")
    assert (record.steps, record.skipped_steps) == (4, 1)
    assert "1 of 4 optimizer steps moved nothing" in capsys.readouterr().out


def test_float32_is_multiplied_as_asked_and_recorded(
    tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    line = ["fit", "--task", "imagenet", "--recipe", "mini", "--data.miniature", "false", "--norm", "gn",
            "--data.root", str(tiny_roots["imagenet"]), "--trainer.max_steps", "1", "--data.steps_per_epoch", "1",
            *SMALL["imagenet"], *PLAIN_EVALUATION]  # fmt: skip
    try:
        with emulated_cuda():
            assert main(line) == 0
            assert capsys.readouterr().out.count("--matmul_precision high is faster on this GPU") == 1
            assert main([*line, "--matmul_precision", "high", "--tf32_convolutions", "false"]) == 0
            assert "--matmul_precision" not in capsys.readouterr().out
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    records = [read_record(p) for p in Path("runs/imagenet").glob("*/result.json")]
    assert {r.provenance.float32 for r in records} == {
        "matmul highest, convolutions tf32", "matmul high, convolutions ieee",
    }  # fmt: skip
    changed = next(r for r in records if "high," in r.provenance.float32)
    assert changed.overrides["matmul_precision"] == "high"
