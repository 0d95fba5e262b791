"""Files of a stranger, opened by every command that reads such files: none may run code, none may write elsewhere.

Each attack has a canary, a file that is there afterwards only where the attack has worked.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.campaign.bad import World, fit, run, tree

#: what runs where it is imported, and where what it defines is used
MODULE = """
from pathlib import Path
Path({canary!r}).touch()
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
class Evil(Callback): pass
def build(num_classes=10): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
model = dict(type="EncoderDecoder")
"""


@dataclass
class Attack:
    """One."""

    name: str
    lines: list[list[str]]
    canary: Path
    """There, or changed, afterwards: it has worked."""
    folder: Path
    """Where the user stands."""
    fresh: bool = False
    """In a process of its own, as one starts it."""


@dataclass
class Finding:
    """What came of an attack."""

    name: str
    line: tuple[str, ...]
    worked: bool
    said: str
    traceback: str
    seconds: float


class Folder:
    """A stranger's run folder, and the folder of a user who has it."""

    def __init__(self, world: World, base: Path, number: int) -> None:
        self.world = world
        self.here = base / str(number)
        self.run = self.here / "downloaded"
        shutil.copytree(world.run, self.run)
        self.canary = base / "canaries" / str(number) / "canary"
        self.canary.parent.mkdir(parents=True)
        self.checkpoint = self.run / "last.ckpt"
        for place in (self.here, self.run):
            (place / f"evil_{number}.py").write_text(MODULE.format(canary=str(self.canary)))
        self.module = f"evil_{number}"
        self.pictures = self.here / "pictures"
        shutil.copytree(next((world.roots["imagenet"] / "val").iterdir()), self.pictures)

    def configure(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change config.yaml."""
        path = self.run / "config.yaml"
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content))

    def commands(self) -> list[list[str]]:
        """All that read a run's folder."""
        checkpoint, root = str(self.checkpoint), str(self.world.roots["imagenet"])
        return [
            ["validate", "--ckpt_path", checkpoint, "--data.root", root],
            ["predict", "--ckpt_path", checkpoint, "--data.pictures", str(self.pictures)],
            ["fit", "--ckpt_path", checkpoint, "--data.root", root, "--trainer.max_steps", "2"],
            ["export", "--ckpt_path", checkpoint, "--format", "torchscript"],
            ["analyze", "diagnose", checkpoint],
        ]


def _trainer(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["trainer"].update({field: value})


def _top(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(fields)


def _room(room: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config[room].update(fields)


def _configurations(f: Folder) -> dict[str, Callable[[dict[str, Any]], None]]:
    evil = {"class_path": f"{f.module}.Evil"}
    outside = str(f.canary)
    kept = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": outside, "every_n_train_steps": 1}}  # fmt: skip
    return {
        "a callback": _trainer("callbacks", [evil]),
        "a callback, not in a list": _trainer("callbacks", evil),
        "a callback that writes elsewhere": _trainer("callbacks", [kept]),
        "a logger": _trainer("logger", evil),
        "a logger that writes elsewhere": _trainer(
            "logger", {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": outside}}
        ),
        "a plugin": _trainer("plugins", [evil]),
        "a profiler": _trainer("profiler", evil),
        "a profiler that writes elsewhere": _trainer(
            "profiler", {"class_path": "lightning.pytorch.profilers.SimpleProfiler",
                         "init_args": {"dirpath": outside, "filename": "x"}}
        ),
        "a strategy": _trainer("strategy", evil),
        "an accelerator": _trainer("accelerator", evil),
        "a function as a callback": _trainer("callbacks", [{"class_path": "os.mkdir", "init_args": {"path": outside}}]),
        "a folder of the Trainer": _trainer("default_root_dir", outside),
        "a module": _top(**{"import": [f.module]}),
        "a folder of runs": _top(runs=outside),
        "a folder of predictions": _top(output=outside),
        "a network by module and function": _room("model", network=f"{f.module}:build"),
        "a network by a function of Python": _room("model", network="os:mkdir"),
        "a network of mmsegmentation by path": _room("model", network=f"mmseg:{f.here}/{f.module}"),
        "the same, by dots": _room("model", network=f"mmseg:x/../../../../..{f.here}/{f.module}"),
        "a class in the place of the model": _top(model=evil),
        "a class in the place of the data": _top(data=evil),
        "a class in a field of the model": _room("model", network=evil),
        "a class in a field of the data": _room("data", root=evil),
        "an optimizer": _top(optimizer=evil, lr_scheduler=evil),
        "a configuration in the configuration": _top(config=[str(f.here / "more.yaml")]),
        "a norm by module": _top(norm=f"{f.module}:Evil"),
        "pictures of the user": _room("data", pictures=str(Path.home())),
        "a task by module": _top(task=f"{f.module}.Evil"),
    }  # fmt: skip


class _Makes:
    """A pickle that makes a folder where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def _checkpoints(f: Folder) -> dict[str, Callable[[], None]]:
    whole = torch.load(f.checkpoint, weights_only=True)
    evil = _Makes(f.canary)

    def write(content: Any, **options: Any) -> Callable[[], None]:
        return lambda: torch.save(content, f.checkpoint, **options)

    def raw() -> None:
        import pickle

        f.checkpoint.write_bytes(pickle.dumps(whole | {"state_dict": evil}))

    return {
        "a pickle as the weights": write(whole | {"state_dict": evil}),
        "a pickle among the weights": write(whole | {"state_dict": {**whole["state_dict"], "x": evil}}),
        "a pickle as all": write(evil),
        "a pickle as the classes": write(whole | {"classes": evil}),
        "a pickle as the norm": write(whole | {"wsbench_norm": evil}),
        "a pickle among hyper-parameters": write(whole | {"hyper_parameters": evil, "hparams_name": "kwargs"}),
        "a pickle as callbacks": write(whole | {"callbacks": {"x": evil}}),
        "a pickle in torch's old format": write(
            whole | {"state_dict": evil}, _use_new_zipfile_serialization=False
        ),
        "a pickle without torch": raw,
        "classes by name": write(whole | {"datamodule_hyper_parameters": {"_class_path": f"{f.module}.Evil"}}),
        "hyper-parameters that name a class": write(
            whole | {"hyper_parameters": {"_class_path": f"{f.module}.Evil", "_instantiator": f"{f.module}.build"},
                     "hparams_name": "kwargs"}
        ),
    }  # fmt: skip


def attacks(world: World) -> Iterator[Attack]:
    """All of them, each prepared when it is asked for."""
    number, base = 0, Path(tempfile.mkdtemp(prefix="attacks-", dir=world.folder.parent))
    names = list(_configurations(Folder(world, base, 0)))
    for name in names:
        number += 1
        f = Folder(world, base, number)
        (f.here / "more.yaml").write_text(
            yaml.safe_dump({"trainer": {"callbacks": [{"class_path": f"{f.module}.Evil"}]}})
        )
        f.configure(_configurations(f)[name])
        yield Attack(f"config.yaml: {name}", f.commands(), f.canary, f.here)
    for name in ("tags of Python", "a bomb of aliases", "no mapping", "a thousand levels"):
        number += 1
        f = Folder(world, base, number)
        text = {
            "tags of Python": f"task: imagenet\nnorm: !!python/object/apply:os.mkdir ['{f.canary}']\n",
            "a bomb of aliases": "a0: &a0 [x, x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
            + "task: imagenet\nnorm: gn\nseed_everything: 0\ndata: {root: *a19}\nmodel: {lr: 0.1}\n",
            "no mapping": "- 1\n",
            "a thousand levels": "".join(f"{' ' * i}a:\n" for i in range(1000)),
        }[name]
        (f.run / "config.yaml").write_text(text)
        yield Attack(f"config.yaml: {name}", f.commands(), f.canary, f.here)
    for name in _checkpoints(Folder(world, base, number := number + 1)):
        number += 1
        f = Folder(world, base, number)
        _checkpoints(f)[name]()
        start = fit("imagenet", world.roots)
        more = [[*start, "--model.init_from", str(f.checkpoint)], ["sweep", "status", "--runs", str(f.here)]]
        yield Attack(f"checkpoint: {name}", [*f.commands(), *more], f.canary, f.here)
    number += 1
    f = Folder(world, base, number)
    np.savez(f.here / "weights.npz", **{"x": np.array([_Makes(f.canary)], dtype=object)})
    lines = [[*fit("imagenet", world.roots), "--model.init_from", str(f.here / "weights.npz")]]
    yield Attack("weights: an object in .npz", lines, f.canary, f.here)
    for module in ("yaml", "torch", "re", "numpy", "lightning", "rich", "pydantic", "jsonargparse", "argparse", "PIL",
                   "difflib", "sitecustomize", "typing", "io", "wsbench_norms"):  # fmt: skip
        number += 1
        f = Folder(world, base, number)
        (f.run / f"{module}.py").write_text(f"open({str(f.canary)!r}, 'w').close()\nraise SystemExit(3)\n")
        lines = [["--help"], ["fit", "--task", "voc", "--help"],
                 ["validate", "--ckpt_path", "last.ckpt", "--data.root", "/nowhere"]]  # fmt: skip
        yield Attack(f"{module}.py in the current folder", lines, f.canary, f.run, fresh=True)
    number += 1
    f = Folder(world, base, number)
    plan = f.here / "runs" / "sweeps" / "mini-mini"
    plan.mkdir(parents=True)
    (plan / "plan.json").write_text(
        json.dumps(
            {
                "cells": [
                    {
                        "options": {},
                        "id": f"../../../../canaries/{number}/canary",
                        "task": "..",
                        "argv": ["--import", f.module],
                    }
                ]
            }
        )
    )
    yield Attack(
        "plan.json of a sweep", [["sweep", "status"], ["sweep", "status", "mini", "--recipe", "mini"]], f.canary, f.here
    )


def _fresh(attack: Attack, line: list[str]) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "wsbench", *line], cwd=attack.folder, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    said = done.stdout + done.stderr
    return said, said if "Traceback" in said else ""


def campaign(world: World, seed: int, seconds: float, most: int | None = None) -> list[Finding]:
    """All lines of all attacks, in an order by the seed, as long as there is time."""
    found: list[Finding] = []
    deadline = time.monotonic() + seconds
    prepared = list(attacks(world))
    random.Random(seed).shuffle(prepared)
    for attack in prepared[:most]:
        for line in attack.lines:
            if time.monotonic() > deadline:
                return found
            before, start = tree(attack.canary.parent), time.perf_counter()
            left: list[str] = []
            if attack.fresh:
                said, traceback = _fresh(attack, line)
            else:
                moved = World(attack.folder, world.roots, world.run, world.broken)
                outcome = run(moved, line)
                said, traceback, left = outcome.said, outcome.traceback, outcome.left  # which it has removed
            for module in [name for name in sys.modules if name.startswith("evil_")]:
                del sys.modules[module]
            outside = [name for name in left if name.startswith(str(attack.canary.parent))]
            worked = bool(outside) or tree(attack.canary.parent) != before
            found.append(Finding(attack.name, tuple(line), worked, said, traceback, time.perf_counter() - start))
    return found
