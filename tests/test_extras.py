"""What is installed without extras is enough for the norms; the rest says which extra it needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wsbench.errors import TRAINING

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: a process in which the packages of `train` cannot be imported
WITHOUT = (
    "import importlib.util, sys\n"
    f"for name in {TRAINING!r}: sys.modules[name] = None\n"
    "found = importlib.util.find_spec\n"
    f"importlib.util.find_spec = lambda name, *a: None if name.partition('.')[0] in {TRAINING!r} else found(name, *a)\n"
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, timeout=120)


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    return run(f"from wsbench.__main__ import main\nsys.exit(main({list(argv)!r}))")


def test_the_norms_need_none() -> None:
    code = """
import torch
from torch import nn
from wsbench.integrations import from_pretrained, norm_layer, save_pretrained
from wsbench.norms import AccumulationWindow, fold, normalize
model = nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32))
x = torch.randn(1, 3, 8, 8)
normalize(model, "gn+ws", example=x)
with AccumulationWindow(model).micro_step(last=True):
    model(x).sum().backward()
assert torch.allclose(fold(model.eval())(x), model(x), atol=1e-6)
print(norm_layer("gn")(32))
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [["--help"], ["fit", "--help"], ["norms", "--no-cost"], ["completion", "bash"],
                                  ["sweep", "--help"], ["leaderboard", "--help"]])  # fmt: skip
def test_what_works_without(line: list[str]) -> None:
    done = command(*line)
    if line == ["completion", "bash"]:  # whose options are Lightning's, too
        assert "pip install 'wsbench[train]'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize("line", [["fit", "--task", "voc"], ["validate", "--ckpt_path", "x"], ["sweep", "table2"],
                                  ["data", "voc"], ["leaderboard"], ["export", "--ckpt_path", "x", "--format", "onnx"],
                                  ["analyze", "diagnose", "x"],
                                  ["recommend", "--task", "voc", "--data.root", "x", "--budget", "1h"]])  # fmt: skip
def test_what_says_that_it_needs_more(line: list[str]) -> None:
    done = command(*line)
    assert done.returncode == 2
    assert re.fullmatch(r"wsbench: error: this needs [\w.]+, which is not installed: pip install 'wsbench\[train\]'\n",
                        done.stderr), done.stderr  # fmt: skip


def test_every_extra_that_a_message_names_exists() -> None:
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        named |= {extra for found in re.findall(r"wsbench\[([\w,]+)\]", text) for extra in found.split(",")}
        named |= set(re.findall(r"_extra\([^)]*, \"(\w+)\"\)", text))
    assert named >= {"train", "timm", "report"}
    assert named <= set(PROJECT["optional-dependencies"])


def test_the_list_is_that_of_pyproject() -> None:
    modules = {"scikit-learn": "sklearn", "pillow": "PIL"}
    listed = {re.split(r"[\[<>=!]", text)[0] for text in PROJECT["optional-dependencies"]["train"]}
    listed.remove("typing-extensions")  # torch brings it
    assert {modules.get(name, name) for name in listed} == set(TRAINING)
