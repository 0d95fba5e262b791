"""Ray on this machine; a worker that is killed is a node that is lost."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import write_voc
from tests.grid.small import folders, require_tuned, write_grid, write_tuned_grid
from wsbench.__main__ import main
from wsbench.grid.cells import attempts
from wsbench.records import read_record

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


def parent(pid: int) -> int:
    """Of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_killed_worker_is_replaced_and_its_cell_resumes(
    tmp_path: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'wsbench[ray]'")
    data = write_voc(tmp_path / "data")
    options = {"trainer.max_steps": 300, "data.steps_per_epoch": 5}
    grid = write_grid(tmp_path, data, {"norm": ["bn", "gn16+ws"]}, **options, **{"model.aspp_width": 24})

    def lose() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for log in Path("runs/voc").glob("*/metrics.jsonl"):
                if log.read_text().count("val/miou") >= 2:
                    cell = attempts(log.parent)[1]["pid"]
                    os.kill(parent(cell), signal.SIGKILL)
                    os.killpg(cell, signal.SIGKILL)
                    return
            time.sleep(0.1)

    thread = threading.Thread(target=lose)
    thread.start()
    assert main(["sweep", grid, "--launcher", "ray"]) == 1  # 24 channels have no 16 groups
    thread.join()
    assert "1 done, 1 failed" in capsys.readouterr().out
    failed, done = sorted(folders(), key=lambda f: (f / "result.json").exists())
    assert "16 groups" in attempts(failed)[-1]["reason"]
    assert read_record(done / "result.json").steps == 300
    assert [e["event"] for e in attempts(done)] == [
        "queued",
        "start",
        "start",
        "end",
    ]  # the first was lost with its worker
    assert (done / "cell.log").read_text().count("--ckpt_path last") == 1


def test_a_tuned_grid(tmp_path: Path, in_a_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'wsbench[ray]'")
    grid = write_tuned_grid(tmp_path, write_voc(tmp_path / "data"), ["gn+ws"])
    assert main(["sweep", grid, "--launcher", "ray"]) == 0
    require_tuned(capsys, norms=1)
    assert {attempts(folder)[1]["launcher"] for folder in folders()} == {"ray"}
