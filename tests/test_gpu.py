"""On a real CUDA device, ``pytest -m gpu``: what test_cuda.py does emulated, and what only a real one says."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.models import resnet50

from tests import tiny
from tests.on_device import SMALL, from_fit_to_prediction
from tests.test_cuda import NORMS, PRECISIONS
from wsbench.norms import AccumulationWindow, normalize
from wsbench.records import read_record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("task", "norm", "precision"), list(product(tiny.TASKS, NORMS, PRECISIONS)))
def test_a_command_line_from_fit_to_prediction(
    task: str, norm: str, precision: str, tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Resumed to the same bits, so with deterministic operations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = [*SMALL[task], "--trainer.devices", "1", "--trainer.deterministic", "true"]
    try:
        record = from_fit_to_prediction(task, norm, precision, tiny_roots[task], monkeypatch, capsys, options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert record.provenance.hardware.startswith(torch.cuda.get_device_name())
    assert record.provenance.cuda == torch.version.cuda
    assert record.provenance.driver
    assert 1 < (record.cost.peak_memory_mib or 0) < torch.cuda.get_device_properties(0).total_memory / 2**20


def one_step(spec: str, on: bool, count: int = 4) -> tuple[dict[str, Tensor], int]:
    """Gradients of a ResNet-50 after ``count`` micro-steps, and the kernels of the last one."""
    torch.manual_seed(0)
    network = resnet50(num_classes=10)
    normalize(network, spec)
    network.cuda()
    window = AccumulationWindow(network, simple_loop=True) if on else None
    kernels = 0
    for i in range(count):
        images = torch.randn(1, 3, 64, 64).cuda()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
            if window is not None:
                window.begin(i == count - 1)
            F.cross_entropy(network(images), torch.tensor([i]).cuda()).backward()
            if window is not None:
                window.end()
            torch.cuda.synchronize()
        kernels = sum(event.count for event in profiled.key_averages() if event.device_type.name == "CUDA")
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}, kernels


@pytest.mark.parametrize("spec", ["gn+ws", "gn+wn", "gn+cwn", "gn+sws"])
def test_a_window_changes_no_gradient(spec: str) -> None:
    """Float32 with float32 products: rounding, and the sum of micro-steps in another order."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        (on, _), (off, _) = one_step(spec, True), one_step(spec, False)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    for name, gradient in off.items():
        assert float((on[name] - gradient).norm()) <= 1e-3 * float(gradient.norm()) + 1e-6, name


def test_kernels_at_a_windows_end() -> None:
    """Of each of 53 layers beside plain GN; docs/gpu.md has what the emulation counts."""
    gn, ws = one_step("gn", False)[1], one_step("gn+ws", True)[1]
    assert (ws - gn) / 53 < 8


def test_a_window_holds_no_more_than_the_effective_weights() -> None:
    peaks = []
    for spec, on in (("gn", False), ("gn+ws", True)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        one_step(spec, on)
        peaks.append(torch.cuda.max_memory_allocated())
    weights = 4 * sum(p.numel() for p in resnet50(num_classes=10).parameters())
    assert peaks[1] - peaks[0] < 3 * weights


def test_the_benchmark_runs() -> None:
    line = [sys.executable, "-m", "benchmarks.step", "--device", "cuda", "--tasks", "resnet18 64px", "--rounds", "2"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert torch.cuda.get_device_name() in done.stdout


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("task", tiny.TASKS)
def test_two_devices_by_nccl(task: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "wsbench", "fit", "--task", task, "--recipe", "mini", "--norm", "gn+ws",
            "--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "2",
            "--trainer.limit_val_batches", "2"]  # fmt: skip
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob(f"runs/{task}/*/result.json")
    assert read_record(path).batch.devices == 2
