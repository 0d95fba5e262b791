"""A sweep and its cells killed at random moments: each cell one record, none twice, none lost, `status` right."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests import tiny
from tests.on_device import SMALL
from wsbench.grid.cells import attempts
from wsbench.records import read_record

SEEDS = (0, 1, 2)
_LONGEST = 300


def _grid(folder: Path, root: Path) -> str:
    words = [w.removeprefix("--") for w in SMALL["imagenet"]]
    small = {name: yaml.safe_load(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    options = {"task": "imagenet", "norm": "gn+ws", "data.root": str(root), "data.miniature": False,
               "trainer.max_steps": 24, "data.steps_per_epoch": 4, "data.effective_batch": 8, "data.micro_batch": 2,
               "checkpoint_every": "2", "data.num_workers": 0, "tensorboard": False, "trainer.accelerator": "cpu",
               **small}  # fmt: skip
    grid = {"options": options, "axes": {"seed": list(SEEDS)}}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"about": "campaign", "grids": {"mini": grid}}))
    return str(path)


def _start(folder: Path, grid: str, launcher: str) -> "subprocess.Popen[str]":
    further = ["--no-gpus", "--cpus", "1"] if launcher == "slurm" else ["--jobs", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "wsbench", "sweep", grid, "--launcher", launcher, *further], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _cells(folder: Path) -> list[Path]:
    return sorted((folder / "runs" / "imagenet").glob("*"))


def _records(folder: Path) -> int:
    return sum((cell / "result.json").is_file() for cell in _cells(folder))


def _look(folder: Path, grid: str) -> list[str]:
    """What `status` says, against what lies there before and after it."""
    before = _records(folder)
    done = subprocess.run(
        [sys.executable, "-m", "wsbench", "sweep", "status", grid], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    after = _records(folder)
    if done.returncode:
        return [f"status ends with {done.returncode}: {done.stderr[-300:]}"]
    count = len(re.findall(r"│ done ", done.stdout))
    states = len(re.findall(r"│ (?:done|running|failed|missing|stale) ", done.stdout))
    faults = [] if before <= count <= after else [f"status says {count} done, {before} to {after} are"]
    return faults + ([] if states == len(SEEDS) else [f"status shows {states} of {len(SEEDS)} cells"])


def _end(sweep: "subprocess.Popen[str]") -> None:
    try:
        sweep.communicate(timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        sweep.kill()
        sweep.communicate()


def _trial(
    folder: Path, grid: str, launcher: str, whole: dict[int, str], draw: random.Random
) -> tuple[list[str], list[str]]:
    told: list[str] = []
    faults: list[str] = []
    for _ in range(draw.randint(1, 2)):
        sweep = _start(folder, grid, launcher)
        time.sleep(draw.uniform(1, 40))
        faults += _look(folder, grid)
        victims = ["sweep", "cell"] if launcher == "local" else ["sweep"]
        victim, number = draw.choice(victims), draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        if sweep.poll() is not None:
            break
        if victim == "cell":
            living = [e["pid"] for c in _cells(folder) for e in attempts(c)[-1:] if e["event"] == "start"]
            if not living:
                continue
            process = draw.choice(living)
            told.append(f"{number.name} to a cell")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, number)
            _end(sweep)
            continue
        told.append(f"{number.name} to the sweep")
        sweep.send_signal(number)
        _end(sweep)
    for _ in range(3):  # its cells outlive a sweep that was killed
        sweep = _start(folder, grid, launcher)
        _end(sweep)
        if sweep.returncode == 0:
            break
    faults += [] if sweep.returncode == 0 else [f"the last sweep ends with {sweep.returncode}"]
    faults += _look(folder, grid)
    cells = _cells(folder)
    if len(cells) != len(SEEDS) or _records(folder) != len(SEEDS):
        return told, [*faults, f"{len(cells)} cells, {_records(folder)} records, of {len(SEEDS)}"]
    for cell in cells:
        record = read_record(cell / "result.json")
        if (
            record.metrics["top1_error"].model_dump_json() + record.best["top1_error"].model_dump_json()
            != whole[record.seed]
        ):
            faults.append(f"cell {cell.name} has another result")
        events = [e["event"] for e in attempts(cell)]
        ended = [e for e in attempts(cell) if e["event"] == "end" and e["status"] == 0]
        if len(ended) > 1:
            faults.append(f"cell {cell.name} ran to its end {len(ended)} times: {events}")
        left = [p.name for p in cell.iterdir() if p.name.startswith(".part-") or p.name in ("run.lock",)]
        faults += [f"left in cell {cell.name}: {', '.join(left)}"] if left else []
    return told, faults


def campaign(folder: Path, seed: int, seconds: float) -> tuple[str, list[str]]:
    """As many trials as there is time for; on Slurm, too, where that is there."""
    draw = random.Random(seed)
    root = tiny.write("imagenet", folder / "data")
    grid = _grid(folder, root)
    reference = folder / "whole"
    reference.mkdir()
    _end(_start(reference, grid, "local"))
    whole: dict[int, str] = {}
    for cell in _cells(reference):
        record = read_record(cell / "result.json")
        whole[record.seed] = (
            record.metrics["top1_error"].model_dump_json() + record.best["top1_error"].model_dump_json()
        )
    if len(whole) != len(SEEDS):
        raise RuntimeError("the sweep that is not interrupted does not end")
    launchers = ["local", "slurm"] if shutil.which("sbatch") else ["local"]
    deadline, number, signals, found = time.monotonic() + seconds, 0, 0, []
    while time.monotonic() < deadline or not number:
        here, launcher = folder / f"trial {number}", launchers[number % len(launchers)]
        here.mkdir()
        told, faults = _trial(here, grid, launcher, whole, draw)
        number, signals = number + 1, signals + len(told)
        found += [f"{launcher}, {'; '.join(told)}: {', '.join(faults)}"] if faults else []
    said = (f"{signals} signals to {number} sweeps of {len(SEEDS)} cells ({', '.join(launchers)}): "
            f"{number - len(found)} ended with one right record a cell, {len(found)} not")  # fmt: skip
    return said, found
