"""``fit`` killed at random moments and at changes of its files, resumed, and compared by bits with one that was not."""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests import tiny
from tests.on_device import SMALL
from wsbench.__main__ import main
from wsbench.records import read_record
from wsbench.run.lines import read_metrics

#: options of each kind of run; two processes are started by Lightning
KINDS: dict[str, tuple[str, ...]] = {
    "bn": ("--norm", "bn"),
    "gn+ws": ("--norm", "gn+ws"),
    "gn+ws without window": ("--norm", "gn+ws", "--model.window", "false"),
    "two processes": ("--norm", "gn+ws", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: With which status a run may end that got one: wsbench's own; the kernel's, which a shell calls the same, where the
#: run had not begun or was over; or 0.
STATUSES = {number: (128 + number, -number, 0) for number in SIGNALS}
#: files whose change is a moment
EVENTS = ("config.yaml", "metrics.jsonl", ".part-", "last.ckpt", "previous.ckpt", "best.ckpt", "result.json")
#: seconds that a run may take
_LONGEST = 180


@dataclass
class Trial:
    """A run that was interrupted, as often as is written here, and resumed."""

    kind: str
    moments: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def line(root: Path, kind: str) -> list[str]:
    """The command: six epochs of four steps of four micro-steps, a checkpoint every two steps."""
    return ["fit", "--task", "imagenet", "--recipe", "mini", "--data.miniature", "false", "--data.root", str(root),
            "--trainer.max_steps", "24", "--data.steps_per_epoch", "4", "--data.effective_batch", "8",
            "--data.micro_batch", "2", "--checkpoint_every", "2", "--tensorboard", "false", "--data.num_workers", "0",
            "--trainer.accelerator", "cpu", *SMALL["imagenet"], *KINDS[kind]]  # fmt: skip


def start(folder: Path, argv: Sequence[str]) -> int:
    """Run a command in a process forked off this one, which has imported everything; returns its number."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ["OMP_NUM_THREADS"] = "1"
        if "--trainer.devices" in argv:  # Lightning starts the second as this one was started
            os.execv(sys.executable, [sys.executable, "-m", "wsbench", *argv])
        torch.set_num_threads(1)
        status = main(list(argv))
    except BaseException:  # noqa: BLE001  # the log has it, and the status says so
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(process: int, until: float) -> int | None:
    """The status of a process that has ended; None where it has not by then."""
    while True:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def run_folder(folder: Path) -> Path | None:
    """The run in a folder, once it is there."""
    return next((folder / "runs" / "imagenet").glob("*"), None)


def _changed(folder: Path, name: str, times: int) -> Callable[[], bool]:
    """Whether a file of the run has changed so many times since this was made."""
    seen: list[object] = []

    def look() -> bool:
        run = run_folder(folder)
        files = [] if run is None else [p for p in run.iterdir() if p.name.startswith(name)]
        state = []
        for path in files:
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            state.append((path.name, status.st_mtime_ns, status.st_size))
        if not seen or seen[-1] != state:
            seen.append(state)
        return len(seen) > times

    return look


def finish(folder: Path, argv: Sequence[str]) -> int:
    """Run to the end."""
    process = start(folder, argv)
    status = wait(process, time.monotonic() + _LONGEST)
    if status is None:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return 99
    return status


def trial(folder: Path, root: Path, kind: str, whole: Path, seconds: float, draw: random.Random) -> Trial:
    """Interrupt a run up to three times, resume it, compare."""
    told = Trial(kind)
    argv = [*line(root, kind), "--ckpt_path", "auto"]
    for _ in range(draw.randint(1, 3)):
        process, number = start(folder, argv), draw.choice(SIGNALS)
        deadline = time.monotonic() + _LONGEST
        if draw.random() < 0.5:
            moment = draw.uniform(0, seconds)
            told.moments.append(f"{number.name} after {moment:.2f} s")
            status = wait(process, time.monotonic() + moment)
        else:
            name, times = draw.choice(EVENTS), draw.randint(1, 4)
            told.moments.append(f"{number.name} at change {times} of {name}")
            changed, status = _changed(folder, name, times), None
            while status is None and not changed() and time.monotonic() < deadline:
                status = wait(process, 0)
        if status is None:
            if number == signal.SIGKILL:
                os.killpg(process, number)
            else:
                os.kill(process, number)
            status = wait(process, deadline)
        if status is None:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            told.faults.append(f"{told.moments[-1]}: it did not end")
        elif status not in STATUSES[number]:
            told.faults.append(f"{told.moments[-1]}: status {status}")
        if status == 0:
            break
    status = finish(folder, argv)
    if status != 0:
        told.faults.append(f"resumed, it ends with status {status}")
    told.faults += _differences(folder, whole)
    text = (folder / "log.txt").read_text(errors="replace")
    if "Traceback" in text:
        told.faults.append(f"a traceback: {text.strip().splitlines()[-1][:200]}")
    return told


def _differences(folder: Path, whole: Path) -> list[str]:
    ours, theirs = run_folder(folder), run_folder(whole)
    assert theirs is not None
    if ours is None or not (ours / "result.json").is_file():
        return ["no record"]
    found = []
    records = [read_record(run / "result.json") for run in (ours, theirs)]
    if (records[0].metrics, records[0].best) != (records[1].metrics, records[1].best):
        found.append("another result")
    states = [torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (ours, theirs)]
    if any(not torch.equal(states[0][key], states[1][key]) for key in states[1]):
        found.append("other weights")
    logs = [read_metrics(run / "metrics.jsonl") for run in (ours, theirs)]
    if logs[0] != logs[1]:
        found.append("another log")
    evaluations = [line for line in (ours / "metrics.jsonl").read_text().splitlines() if '"val/' in line]
    if len(evaluations) != len(set(evaluations)):
        found.append("an evaluation is logged twice")
    left = [p.name for p in ours.iterdir() if p.name.startswith(".part-") or p.name == "run.lock"]
    return found + [f"left behind: {', '.join(left)}"] * bool(left)


def campaign(folder: Path, seed: int, seconds: float) -> tuple[str, list[str]]:
    """As many trials as there is time for, of one kind after the other."""
    draw = random.Random(seed)
    root = tiny.write("imagenet", folder / "data")
    deadline = time.monotonic() + seconds
    references: dict[str, float] = {}
    trials: list[Trial] = []
    kinds = [kind for kind in KINDS if kind != "two processes" or seconds > 300]
    while time.monotonic() < deadline or not trials:
        kind = kinds[len(trials) % len(kinds)]
        whole = folder / f"whole {kind}"
        if kind not in references:
            began = time.monotonic()
            if finish(whole, line(root, kind)) != 0:
                raise RuntimeError(f"the run that is not interrupted fails: {(whole / 'log.txt').read_text()[-2000:]}")
            references[kind] = time.monotonic() - began
        trials.append(trial(folder / f"trial {len(trials)}", root, kind, whole, references[kind], draw))
    wrong = [t for t in trials if t.faults]
    signals = sum(len(t.moments) for t in trials)
    said = (f"{signals} signals to {len(trials)} runs ({', '.join(references)}): {len(trials) - len(wrong)} resumed to "
            f"the same bits, {len(wrong)} not")  # fmt: skip
    return said, [f"{t.kind}: {'; '.join(t.moments)}: {', '.join(t.faults)}" for t in wrong]
