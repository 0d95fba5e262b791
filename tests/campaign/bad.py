"""Wrong inputs to every command, in one process: each has to end in at most three lines that name it."""

import contextlib
import io
import json
import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import tiny
from tests.on_device import SMALL
from wsbench import plugins
from wsbench.__main__ import main

#: seconds for one input
LONGEST = 30
#: lines of `data`, which shows the layout and what is wrong
_REPORT = 25
#: options of Lightning's Trainer, each with values that cannot work
TRAINER: dict[str, tuple[str, ...]] = {
    "devices": ("0", "-2", "abc", "1.5", "[0,0]", "[]", "two"),
    "num_nodes": ("0", "-1", "x", "1.5"),
    "accelerator": ("gpu", "tpu", "foo", "''", "cuda"),
    "strategy": ("foo", "fsdp", "deepspeed", "ddp_spawnx", "deepspeed_stage_9"),
    "precision": ("8", "foo", "16-maybe", "transformer-engine", "bf16-half"),
    "max_steps": ("-5", "x", "1.5", "nan"),
    "max_epochs": ("-3", "x", "0.5"),
    "min_steps": ("x", "-2"),
    "min_epochs": ("x", "-2"),
    "max_time": ("x", "12", "1:2", "-1:00:00:00"),
    "log_every_n_steps": ("0", "-1", "x"),
    "val_check_interval": ("2.0", "0", "-1", "x", "0.0", "nan"),
    "check_val_every_n_epoch": ("0", "-1", "x"),
    "limit_train_batches": ("2.5", "-1", "x"),
    "limit_val_batches": ("2.5", "-1", "x"),
    "gradient_clip_val": ("-1", "x", "nan", "inf"),
    "gradient_clip_algorithm": ("foo", "3"),
    "accumulate_grad_batches": ("0", "-1", "3", "x"),
    "overfit_batches": ("0.5", "-1", "3", "x"),
    "profiler": ("foo", "3"),
    "deterministic": ("maybe",),
    "benchmark": ("x",),
    "inference_mode": ("x",),
    "barebones": ("true",),
    "fast_dev_run": ("-1", "x"),
    "sync_batchnorm": ("x",),
    "reload_dataloaders_every_n_epochs": ("-1", "x"),
    "logger": ("foo", "nowhere.Logger"),
    "plugins": ("foo", "nowhere.Plugin"),
    "callbacks": ("foo", "nowhere.Callback", "os.system"),
    "default_root_dir": ("/proc/x",),
    "max_step": ("5",),
    "epochs": ("5",),
}
#: callbacks that cannot do what they are for here
CALLBACKS: tuple[tuple[str, ...], ...] = (
    ("EarlyStopping", "monitor=val/nothing"),
    ("EarlyStopping", "monitor=val/top1_error", "mode=sideways"),
    ("LearningRateFinder",),
    ("BatchSizeFinder",),
    ("GradientAccumulationScheduler", "scheduling={0: 2}"),
    ("StochasticWeightAveraging", "swa_lrs=0.1"),
    ("ModelPruning", "pruning_fn=nothing"),
    ("ModelCheckpoint", "monitor=val/nothing"),
    ("ModelCheckpoint", "monitor=val/top1_error", "mode=up"),
    ("ModelCheckpoint", "every_n_train_steps=-1"),
    ("ModelCheckpoint", "save_top_k=-5"),
    ("LearningRateMonitor", "logging_interval=hour"),
    ("Timer", "duration=x"),
    ("DeviceStatsMonitor", "nothing=1"),
)
NUMBERS = ("-1", "nan", "inf", "x", "1e30", "''")
MODEL = {
    "imagenet": ("lr", "momentum", "weight_decay", "label_smoothing", "agc", "warmup_steps", "milestones"),
    "voc": ("lr", "weight_decay", "aspp_width", "output_stride"),
    "modelnet40": ("lr", "k", "width", "dropout"),
    "coco": ("lr", "width", "rois", "proposals", "min_size", "trainable_layers"),
    "something": ("lr", "dropout", "segments"),
}
DATA = ("micro_batch", "effective_batch", "steps_per_epoch", "eval_batch", "num_workers", "num_classes", "max_dropped",
        "min_steps_per_epoch")  # fmt: skip
NORMS = ("gn+wz", "gm", "gn+", "+ws", "gn++ws", "gn0", "gn-1", "gn+ws-xx", "gn+ws@nobody", "bn32", "gn+ws+ws", "gn ws",
         "", "g n", "gn7", "[red]gn[/red]", "mabn0", "brn4", "évos",
         "gn\n+ws", "bcn@x")  # fmt: skip
TYPOS = ("--nrom", "--tsak", "--data.rot", "--model.lrr", "--trainer.max_step", "--trainer.devises", "--seed", "--runz",
         "--ckpt", "--overwite", "--data.microbatch", "--foo", "--model", "--data.root.x", "-x")  # fmt: skip


@dataclass
class World:
    """A folder with a tiny dataset of each task, a run, and files that are broken in every way."""

    folder: Path
    roots: dict[str, Path]
    run: Path
    broken: dict[str, Path] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a wrong input did."""

    line: tuple[str, ...]
    status: int | None
    said: str
    seconds: float
    left: list[str]
    traceback: str = ""

    @property
    def faults(self) -> list[str]:
        """What is wrong with it."""
        lines = [text for text in self.said.splitlines() if text.strip()]
        found = []
        if self.traceback:
            found.append("traceback")
        if self.status == 0:
            found.append("accepted")
        elif not lines:
            found.append("silent")
        elif len(lines) > (_REPORT if self.line[0] == "data" else 3) and not self.traceback:
            found.append(f"{len(lines)} lines")
        if self.left:
            found.append("left behind")
        return found


def build(folder: Path, roots: dict[str, Path] | None = None) -> World:
    """The world, in a folder that is empty."""
    here = folder / "work"
    here.mkdir(parents=True)
    if roots is None:
        roots = {task: tiny.write(task, folder / "data" / task) for task in tiny.TASKS}
    before = Path.cwd()
    os.chdir(here)
    try:
        with quiet():
            assert main([*fit("imagenet", roots), "--runs", str(folder / "runs")]) == 0
    finally:
        os.chdir(before)
    (run,) = (folder / "runs" / "imagenet").iterdir()
    world = World(here, roots, run)
    files = folder / "broken"
    files.mkdir()
    good = (run / "last.ckpt").read_bytes()
    whole = torch.load(run / "last.ckpt", weights_only=True)
    state = whole["state_dict"]
    contents: dict[str, Any] = {
        "text.ckpt": b"hello", "empty.ckpt": b"", "cut.ckpt": good[: len(good) // 2], "zeros.ckpt": bytes(10_000),
        "text.pth": b"e\x00", "text.safetensors": b"hello", "text.npz": b"hello", "empty.npz": b"",
        "empty.yaml": b"", "list.yaml": b"- 1\n- 2\n", "binary.yaml": bytes(range(256)), "text.yaml": b"hello",
        "deep.yaml": b"".join(b" " * i + b"a:\n" for i in range(1000)) + b" " * 1000 + b"a: 1\n",
        "unknown.yaml": b"foo: 1\n", "wrong.yaml": b"data:\n  micro_batch: many\n", "tabs.yaml": b"data:\n\troot: x\n",
        "cut.json": b'{"id": "x"', "list.json": b"[]", "empty.json": b"", "wrong.json": b'{"id": 3}',
        "empty.csv": b"", "grid.yaml": b"norm: [gn", "billion.yaml": json.dumps(
            {"options": {"task": "imagenet"}, "grid": {f"model.x{i}": list(range(10)) for i in range(9)}}).encode(),
        "grid-list.yaml": b"[1, 2]", "image.png": b"no picture",
    }  # fmt: skip
    for name, content in contents.items():
        (files / name).write_bytes(content)
    things: dict[str, Any] = {
        "list.ckpt": [1, 2],
        "number.ckpt": 3,
        "nothing.ckpt": {},
        "no-state.ckpt": {"epoch": 1},
        "half.ckpt": whole | {"state_dict": dict(list(state.items())[: len(state) // 2])},
        "shapes.ckpt": whole | {"state_dict": {k: torch.zeros(3, 3) for k in state}},
        "names.ckpt": whole | {"state_dict": {f"x.{k}": v for k, v in state.items()}},
        "words.ckpt": whole | {"state_dict": dict.fromkeys(state, "words")},
        "other-task.ckpt": whole | {"task": "voc"},
        "no-loops.ckpt": {k: v for k, v in whole.items() if k not in ("loops", "optimizer_states")},
    }
    for name, thing in things.items():
        torch.save(thing, files / name)
    np.savez(files / "other.npz", x=np.zeros(3))
    (files / "folder.ckpt").mkdir()
    world.broken = {p.name: p for p in files.iterdir()}
    return world


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Standard output and error, gathered."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield out


def fit(task: str, roots: dict[str, Path]) -> list[str]:
    """A line that works."""
    return ["fit", "--task", task, "--recipe", "mini", "--data.miniature", "false", "--data.root", str(roots[task]),
            "--norm", "gn+ws", "--trainer.max_steps", "1", "--data.steps_per_epoch", "1", "--data.num_workers", "0",
            "--trainer.accelerator", "cpu", "--tensorboard", "false", *SMALL[task]]  # fmt: skip


def inputs(world: World) -> list[tuple[str, ...]]:
    """All of them."""
    good = fit("imagenet", world.roots)
    found: list[list[str]] = []
    for name, values in TRAINER.items():
        found += [[*good, f"--trainer.{name}", value] for value in values]
    for callback, *options in CALLBACKS:
        given = [f"--trainer.callbacks+=lightning.pytorch.callbacks.{callback}"]
        found.append([*good, *given, *(f"--trainer.callbacks.{option}" for option in options)])
    for task, names in MODEL.items():
        line = fit(task, world.roots)
        found += [[*line, f"--model.{name}", value] for name in names for value in NUMBERS]
    for task in tiny.TASKS:
        line = fit(task, world.roots)
        found += [[*line, f"--data.{name}", value] for name in DATA for value in ("-1", "x", "1.5", "''", "nan")]
        found += [[*line, "--data.root", value] for value in ("/nowhere", str(world.broken["image.png"]), "/", "''")]
        found += [[*line, "--data.effective_batch", str(10**11)], [*line, "--data.steps_per_epoch", "0"]]
    found += [[*good, "--model.lr", "1e30"], [*good, "--model.momentum", "2"], [*good, "--model.milestones", "[-1]"]]
    found += [[*good, "--norm", norm] for norm in NORMS]
    found += [[*good, typo, "1"] for typo in TYPOS] + [[*good, typo] for typo in TYPOS]
    found += [[*good, "--seed_everything", v] for v in ("-1", "x", "true", "99999999999999999999", "1.5", "null")]
    found += [[*good, "--checkpoint_every", v] for v in ("often", "0", "-3", "10 minutes", "''")]
    found += [[*good, "--matmul_precision", "low"], [*good, "--tf32_convolutions", "maybe"]]
    found += [[*good, "--model.network", v] for v in ("nothing", "resnet9000", "''", "os.system", "resnet50.x")]
    found += [[*good, "--import", v] for v in ("nothing_at_all", "os.path.nothing", "1", "", "../x", "a b")]
    found += [[*good, "--runs", v] for v in (str(world.broken["text.yaml"]), "/proc/runs", "/dev/null/x")]
    found += [["fit", "--task", v] for v in ("nothing", "", "VOC", "imagnet")] + [["fit", "--recipe", "none"]]
    found += [["fit", "--task"], ["fit", "--norm"], ["fit", "x"], ["fit", "--task", "voc", "--recipe", "paper"]]
    files = [p for name, p in world.broken.items() if not name.endswith((".yaml", ".json", ".csv", ".png"))]
    for path in (*files, Path("/nowhere.ckpt"), Path("/"), world.broken["image.png"]):
        found += [[*good, "--ckpt_path", str(path)],
                  ["predict", "--ckpt_path", str(path), "--data.pictures", str(world.folder)],
                  ["export", "--ckpt_path", str(path)], ["analyze", "--ckpt_path", str(path)],
                  ["analyze", "diagnose", str(path)]]  # fmt: skip
        if path.name not in ("other-task.ckpt", "no-loops.ckpt"):  # whose weights are whole, and may start a run
            found.append([*good, "--model.init_from", str(path)])
        if path.name != "no-loops.ckpt":  # which may be evaluated
            found.append(["validate", "--task", "imagenet", "--ckpt_path", str(path)])
    configs = [p for name, p in world.broken.items() if name.endswith((".yaml", ".json"))]
    for path in (*configs, Path("/nowhere.yaml"), Path("/")):
        found += [["fit", "--config", str(path)], [*good, "--config", str(path)], ["sweep", str(path), "--dry-run"],
                  ["sweep", "status", str(path)], ["leaderboard", "submit", str(path)]]  # fmt: skip
    last = str(world.run / "last.ckpt")
    found += [["validate"], ["test"], ["predict"], ["predict", "--ckpt_path", last],
              ["predict", "--ckpt_path", last, "--data.pictures", "/nowhere"],
              ["predict", "--ckpt_path", last, "--data.pictures", str(world.broken["image.png"])],
              ["predict", "--ckpt_path", last, "--data.pictures", str(world.folder)],
              ["predict", "--ckpt_path", last, "--data.pictures", str(world.broken["folder.ckpt"])],
              ["validate", "--ckpt_path", last, "--data.root", "/nowhere"],
              ["validate", "--ckpt_path", last, "--norm", "bn"], ["validate", "--ckpt_path", last, "--task", "voc"],
              ["export"], ["export", "--ckpt_path", last, "--format", "foo"], ["export", "--foo"],
              ["export", "--ckpt_path", last, "--output", "/proc/x.onnx"], ["export", "--ckpt_path", last, "x"],
              ["analyze"], ["analyze", "--task", "foo"], ["analyze", "--foo"], ["analyze", "diagnose"],
              ["analyze", "diagnose", "nothing_here"], ["analyze", "--task", "voc", "--norms", "gn+wz"],
              ["data"], ["data", "foo"], ["data", "voc", "--root", "/nowhere"], ["data", "voc", "--foo"],
              ["data", "imagenet", "--root", str(world.broken["image.png"])], ["data", "coco", "--root"],
              ["sweep"], ["sweep", "nothing"], ["sweep", "status", "nothing"], ["sweep", "list", "x"],
              ["sweep", "table2", "--jobs", "0"], ["sweep", "table2", "--jobs", "x"], ["sweep", "table2", "--foo"],
              ["sweep", "table2", "--launcher", "foo"], ["sweep", "--dry-run"], ["sweep", "table2", "--only", "x=y"],
              ["leaderboard", "foo"], ["leaderboard", "--runs", "/nowhere"], ["leaderboard", "compare"],
              ["leaderboard", "compare", "gn", "nothing"], ["leaderboard", "check", "--base", "nothing"],
              ["leaderboard", "submit"], ["leaderboard", "submit", "/nowhere"], ["leaderboard", "--foo"],
              ["leaderboard", "submit", str(world.broken["folder.ckpt"])],
              ["report", "--foo"], ["report", "--output", "/proc/x.html"], ["report", "/nowhere"],
              ["norms", "--foo"], ["norms", "gn+wz"], ["doctor", "--foo"], ["foo"], ["fot"], ["--foo"],
              ["sweeep"]]  # fmt: skip
    return [tuple(line) for line in found]


def tree(*folders: Path) -> dict[str, float]:
    """Files and folders, and when they changed."""
    return {str(p): p.stat().st_mtime for folder in folders for p in folder.rglob("*")}


class TooLong(BaseException):
    """An input that has not been refused by now is being run."""


def _too_long(number: int, frame: Any) -> None:
    raise TooLong(f"nothing was said within {LONGEST} s")


def run(world: World, line: Sequence[str]) -> Outcome:
    """Run a line as the command would."""
    before = tree(world.folder, world.run.parents[2])
    status: int | None = None
    failed = ""
    start = time.perf_counter()
    old = Path.cwd()
    os.chdir(world.folder)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LONGEST)
    try:
        with quiet() as out:
            try:
                status = main(list(line))
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:  # noqa: BLE001  # whatever comes is what the campaign looks for
                failed = traceback.format_exc()
    finally:
        signal.alarm(0)
        os.chdir(old)
        os.environ.pop(plugins.VARIABLE, None)  # an --import of this line is not one of the next
    after = tree(world.folder, world.run.parents[2])
    left = [name for name, when in after.items() if before.get(name) is None]
    for name in sorted(left, reverse=True):
        path = Path(name)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return Outcome(tuple(line), status, out.getvalue(), time.perf_counter() - start, left, failed)


def campaign(world: World, seed: int, seconds: float, most: int | None = None) -> list[Outcome]:
    """``most`` of them, or as many as there is time for, in an order by the seed."""
    lines = inputs(world)
    random.Random(seed).shuffle(lines)
    deadline, found = time.monotonic() + seconds, []
    for line in lines[:most]:
        if time.monotonic() > deadline:
            break
        found.append(run(world, line))
    return found
