"""What ``--analysis true`` costs: every second optimizer step of one run is measured, and compared with the others.

python -m benchmarks.analysis
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from wsbench.analysis import GradientShares
from wsbench.analysis.log import read
from wsbench.datamodules import ImageNet
from wsbench.tasks import ImageNetClassification

#: network, image size, micro-steps of an optimizer step, optimizer steps of the epochs that the cost is related to
CASES = {"miniature": ("resnet_mini", 48, 8, (40, 200)), "ResNet-50": ("resnet50", 224, 8, (40, 200, 5004))}


class _EverySecondStep(GradientShares):
    """Measures the even steps, written to disk as in a run, and times all of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._start = time.perf_counter()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch_idx % trainer.accumulate_grad_batches == 0 and trainer.global_step % 2 == 0:
            assert self._tap is not None
            self._tap.close()
            self._tap.open()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        batch_idx = args[2]
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.times[trainer.global_step % 2 == 1].append(time.perf_counter() - self._start)


def measure(case: str, steps: int) -> tuple[dict[bool, list[float]], float]:
    """Seconds of measured and of other steps, and the largest error of A + B + R."""
    network, crop, accumulate, _ = CASES[case]
    data = ImageNet(miniature=True, num_classes=10, crop=crop, resize=crop, micro_batch=1, effective_batch=accumulate,
                    steps_per_epoch=steps, num_workers=0)  # fmt: skip
    task = ImageNetClassification(norm="gn+ws", network=network, num_classes=10, lr=0.01)
    with tempfile.TemporaryDirectory() as folder:
        callback = _EverySecondStep(Path(folder))
        callbacks: list[Callback] = [callback]
        trainer = Trainer(
            accelerator="auto", devices=1, max_steps=steps, accumulate_grad_batches=accumulate, callbacks=callbacks,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(task, data)
        return callback.times, max(line["network"]["error"] for line in read(Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps, every second measured")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; one sample a micro-step, medians")
    for case in args.cases:
        times, error = measure(case, args.steps)
        measured, other = (statistics.median(times[kind][1:]) for kind in (True, False))
        extra = measured - other
        shares = ", ".join(f"{100 * extra / (n * other):.2f} % of {n}" for n in CASES[case][3])
        print(f"{case}: a step {1e3 * other:.0f} ms, measured {1e3 * measured:.0f} ms ({1e3 * extra:+.1f} ms); of an "
              f"epoch's steps: {shares}; largest relative error {error:.0e}")  # fmt: skip


if __name__ == "__main__":
    main()
