"""What a sweep prints of a cell that ended."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsbench.grid.attempt import Outcome, reason
from wsbench.grid.launcher import Event
from wsbench.grid.show import Progress


@pytest.mark.parametrize(
    ("status", "log", "said"),
    [
        (143, "", "stopped  seed 0: interrupted by SIGTERM"),
        (130, "", "stopped  seed 0: interrupted by SIGINT"),
        (143, "torch.OutOfMemoryError: CUDA out of memory", "FAILED  seed 0: out of memory: interrupted by SIGTERM"),
        (
            138,
            "wsbench: stopped by SIGUSR1 at step 35: last.ckpt holds step 35",
            "stopped  seed 0: interrupted by SIGUSR1",
        ),
        (
            75,
            "wsbench: stopped by --trainer.max_time at step 1: x",
            "stopped  seed 0: interrupted by --trainer.max_time",
        ),
        (-15, "", "stopped  seed 0: interrupted by SIGTERM"),  # before it could listen
        (-9, "", "FAILED  seed 0: ended by SIGKILL (the kernel does that when memory runs out)"),
        (1, "wsbench: error: no such norm", "FAILED  seed 0: no such norm"),
    ],
)
def test_what_a_signal_stopped_has_not_failed(
    status: int, log: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cell.log").write_text(f"\n== attempt\n{log}\n")
    cell: Any = SimpleNamespace(id="x", folder=tmp_path)
    plan: Any = SimpleNamespace(labels=lambda: {"x": "seed 0"})
    Progress(plan, [cell])(Event(cell, "ended", Outcome(status, reason(status, tmp_path / "cell.log"))))
    assert capsys.readouterr().out.strip() == f"[1/1] {said}"
