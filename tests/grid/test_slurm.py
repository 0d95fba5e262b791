"""Real Slurm, of this one host, started here: ``scripts/test-slurm``."""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY, write_voc
from tests.datamodules.prepare.test_split import photos
from tests.grid.small import folders, require_tuned, write_grid, write_tuned_grid
from tests.recommend.test_recommend_command import TINY as TINY_PHOTOS
from wsbench import plugins
from wsbench.__main__ import main
from wsbench.grid.cells import attempts
from wsbench.recommend.recommend_command import ANSWER, PLAN
from wsbench.records import read_record
from wsbench.run.lines import read_lines, read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SLURM = ("--launcher", "slurm", "--no-gpus", "--time", "20", "--memory", "1")


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def until(condition: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said("squeue")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A controller and a node, for as long as the module lasts."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None]
    if missing or os.getuid():
        pytest.skip(f"needs root and Slurm ({', '.join(missing)} missing): scripts/test-slurm installs it")
    state, host = tmp_path_factory.mktemp("slurm"), platform.node().split(".")[0]
    for name in ("log", "state", "spool"):
        (state / name).mkdir()
    conf = state / "slurm.conf"
    template = Path(__file__).with_name("slurm.conf").read_text()
    conf.write_text(template.replace("@STATE@", str(state)).replace("@HOST@", host))
    patch = pytest.MonkeyPatch()
    patch.setenv("SLURM_CONF", str(conf))
    daemons = [
        subprocess.Popen([name, "-D", "-f", str(conf), *further], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name, further in (("slurmctld", ()), ("slurmd", ("-N", host)))
    ]
    try:
        until(lambda: "idle" in said("sinfo", "--noheader", "--format=%T"), 60)
        yield
    finally:
        subprocess.run(["scancel", "--user", "root"], check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        patch.undo()


@pytest.fixture
def data(tmp_path: Path, in_a_folder: None) -> Path:
    return write_voc(tmp_path / "data")


def test_a_norm_of_a_module_beside_the_user(cluster: None, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "")
    doc = (Path(__file__).parents[2] / "docs" / "plugin.md").read_text()
    Path("slurm_norms.py").write_text(doc.split("```python\n")[1].split("```")[0].replace("power", "slurmed"))
    grid = write_grid(Path(), data, {"norm": ["slurmed+ws"]})
    assert main(["sweep", grid, *SLURM, "--import", "slurm_norms"]) == 0
    (folder,) = folders()
    assert read_record(folder / "result.json").norm_sources["slurmed"]["package"] == "slurm_norms"


def test_an_array_of_four_cells(cluster: None, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(Path(), data, {"norm": ["bn", "gn+ws"], "seed": [0, 1]})
    assert main(["sweep", grid, *SLURM, "--jobs", "2"]) == 0
    assert len(folders()) == 4
    jobs = set()
    for folder in folders():
        assert read_record(folder / "result.json").steps == 4
        assert "python -m wsbench fit" in (folder / "cell.log").read_text()
        queued, start, end = attempts(folder)
        assert (start["launcher"], end["status"]) == ("slurm", 0)
        jobs.add(queued["where"].partition("_")[0])
    assert len(jobs) == 1  # an array
    assert "--array=0-3%2" in next(Path("runs/sweeps/slurm").glob("*submission.sh")).read_text()
    capfd.readouterr()
    assert main(["sweep", grid, *SLURM]) == 0
    assert "0 to run" in capfd.readouterr().out


def test_a_tuned_grid_waits_for_its_first_stage(cluster: None, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two arrays, the second of what the first one's records chose."""
    assert main(["sweep", write_tuned_grid(Path(), data, ["bn", "gn+ws"]), *SLURM, "--jobs", "2"]) == 0
    require_tuned(capfd)
    assert {attempts(folder)[1]["launcher"] for folder in folders()} == {"slurm"}
    assert len({attempts(folder)[0]["where"].partition("_")[0] for folder in folders()}) == 2


def test_a_recommendation(cluster: None, tmp_path: Path, in_a_folder: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Measured, tuned and answered by jobs; the plan is shortened in between, as a test has no hour."""
    root = photos(tmp_path / "photos", {"cat": 12, "dog": 12})
    asked = ["recommend", "--task", "imagenet", "--data.root", str(root), "--networks", "resnet_mini", "--budget", "1h",
             "--norms", "gn,gn+ws", "--micro-batch", "4", *SLURM, "--jobs", "2"]  # fmt: skip
    assert main([*asked, "--dry-run", *TINY_PHOTOS]) == 0
    out = Path("recommend/imagenet-photos")
    written = json.loads((out / PLAN).read_text())
    written["plan"] |= {"epochs": 1, "rates": [0.01, 0.03, 0.1], "most_rates": 3, "tuning_seeds": 1, "seeds": 2}
    (out / PLAN).write_text(json.dumps(written))
    assert main([*asked, *TINY_PHOTOS]) == 0
    assert "continues with the plan" in capfd.readouterr().out
    answer = json.loads((out / ANSWER).read_text())
    assert len(answer["records"]) == 10
    cells = sorted((out / "runs" / "imagenet").iterdir())
    assert len(cells) == 12
    assert {attempts(folder)[1]["launcher"] for folder in cells} == {"slurm"}


def test_a_cell_of_two_tasks_trains_by_ddp(cluster: None, data: Path) -> None:
    grid = write_grid(Path(), data, {"norm": ["gn+ws"]})
    assert main(["sweep", grid, *SLURM, "--devices", "2"]) == 0
    (folder,) = folders()
    record = read_record(folder / "result.json")
    assert (record.batch.devices, record.batch.accumulate, record.steps) == (2, 1, 4)
    assert record.metrics["miou"].n_eval == 5
    assert (folder / "cell.1.log").exists()  # the other rank's


def test_a_preempted_cell_resumes_and_ends_at_the_right_step(cluster: None, data: Path) -> None:
    steps = 300
    grid = write_grid(Path(), data, {"norm": ["bn+ws"]}, **{"trainer.max_steps": steps, "data.steps_per_epoch": 10})
    job = ""

    def preempt() -> None:
        nonlocal job
        until(lambda: Path("runs/voc").is_dir() and folders() and (folders()[0] / "metrics.jsonl").exists())
        log = folders()[0] / "metrics.jsonl"
        until(lambda: log.read_text().count("val/miou") >= 3)
        job = attempts(folders()[0])[1]["job"]
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        until(lambda: "PENDING" in said("squeue", "--noheader", "--format=%T"))
        # Slurm holds a job that was queued again for two minutes
        subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], check=True)

    thread = threading.Thread(target=preempt)
    thread.start()
    assert main(["sweep", grid, *SLURM]) == 0
    thread.join()
    (folder,) = folders()
    assert [e["event"] for e in attempts(folder)] == ["queued", "start", "queued", "start", "end"]
    assert "preempted" in attempts(folder)[2]["where"]
    assert read_record(folder / "result.json").steps == steps
    assert (folder / "cell.log").read_text().count("--ckpt_path last") == 1
    evaluated = [line["step"] for line in read_lines(folder / "metrics.jsonl") if "val/miou" in line]
    assert set(evaluated) == set(range(10, steps + 1, 10))
    assert len(evaluated) <= steps // 10 + 1  # it went on, it did not start over
    assert max(read_metrics(folder / "metrics.jsonl")["val/miou"]) == steps


def test_the_manifest_queues_itself_again_and_resumes(cluster: None, data: Path) -> None:
    """``deploy/slurm.sbatch``, two tasks on this host: the signal before its time limit, then to the end."""
    manifest = Path(__file__).parents[2] / "deploy" / "slurm.sbatch"
    here = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=20")
    fields = ("--data.root", str(data), "--norm", "bn+ws", "--trainer.max_steps", "300", "--data.steps_per_epoch", "10")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sbatch", "--parsable", *here, str(manifest), *TINY, *fields],
        capture_output=True, text=True, check=True, env={**os.environ, "PATH": path},
    )  # fmt: skip
    job = done.stdout.strip()

    def log() -> str:
        paths = list(Path("runs/voc").glob("*/metrics.jsonl"))
        return paths[0].read_text() if paths else ""

    until(lambda: log().count("val/miou") >= 3)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    until(lambda: "PENDING" in said("squeue", "--noheader", "--format=%T"))
    subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], check=True)
    until(lambda: not said("squeue", "--noheader").strip())
    (folder,) = folders()
    record = read_record(folder / "result.json")
    assert (record.steps, record.batch.devices) == (300, 2)
    evaluated = [entry["step"] for entry in read_lines(folder / "metrics.jsonl") if "val/miou" in entry]
    assert set(evaluated) == set(range(10, 301, 10))
    assert len(evaluated) <= 31  # it went on, it did not start over
