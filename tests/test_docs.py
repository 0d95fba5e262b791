"""The documentation: its code runs, its links lead somewhere, its commands have options that exist, its site builds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn
from torchvision.models import resnet18

from wsbench.cli import arguments
from wsbench.configuration import fields

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
#: pages whose code other tests run: with data in the official layout, and as a package that is installed
ELSEWHERE = {"lightning.md": "tests/test_lightning.py", "plugin.md": "tests/test_plugins.py",
             "CONTRIBUTING.md": "tests/norms/test_convert.py"}  # fmt: skip
#: code that cannot be run by itself: a config of OpenMMLab's, and downloads of pretrained weights
NOT_RUN = ("custom_imports", "pretrained=True")
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _code(page: Path) -> list[str]:
    return [block for block in _BLOCK.findall(page.read_text()) if not any(word in block for word in NOT_RUN)]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if _code(p) and p.name not in ELSEWHERE], ids=lambda page: str(page.name)
)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page one after another, as somebody would paste them."""
    monkeypatch.chdir(tmp_path)
    known = _given(page)
    for block in _code(page):
        exec(compile(block, str(page), "exec"), known)


def _given(page: Path) -> dict[str, object]:
    """What a page's code takes for granted: somebody's own network, data and optimizer."""
    if page.name not in ("window.md", "analysis.md", "recommend.md"):
        return {}
    model = resnet18(num_classes=4)
    x, y = torch.randn(2, 3, 2, 3, 32, 32), torch.randint(4, (2, 3, 2))
    if page.name != "window.md":
        x, y = x[0, 0], y[0, 0]
    return {"torch": torch, "F": F, "Trainer": Trainer, "folder": None, "model": model, "i": 15,
            "images": torch.randn(2, 3, 32, 32),
            "micro_batches": [(x, y)], "steps": 2, "n": 3, "criterion": nn.CrossEntropyLoss(),
            "optimizer": torch.optim.SGD(model.parameters(), 0.1), "loss": model(torch.randn(2, 3, 32, 32)).sum(),
            "x": x, "y": y}  # fmt: skip


def test_code_that_is_run_elsewhere_is() -> None:
    for name, path in ELSEWHERE.items():
        assert name in (ROOT / path).read_text()


_LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Files, and headings in them; addresses of the net are not opened."""
    for link in _LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, heading = link.partition("#")
        target = page if not path else (page.parent / path)
        assert target.exists(), f"{page.name} leads to {link}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in {_slug(title) for title in titles}, f"{page.name} leads to {link}"


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


_PATH = re.compile(r"`((?:src|tests|docs|conf|scripts|datamodules|benchmarks|deploy|leaderboards)/[\w./-]+\.\w+)`")


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = [path for path in _PATH.findall(page.read_text()) if "NAME" not in path and "TASK" not in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


def _commands(page: Path) -> list[list[str]]:
    lines = re.findall(r"python -m wsbench ([^\n`#|]+)", page.read_text())
    return [line.replace("\\", " ").split() for line in lines]


@pytest.mark.parametrize("page", [p for p in PAGES if _commands(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_options_that_exist(page: Path) -> None:
    every = {*fields.names(), "--help", "--import"}
    for words in _commands(page):
        own: set[str] = set()
        for name in (words[0], " ".join(words[:2])):
            if name in arguments.PARSERS:
                own |= {o for a in arguments.PARSERS[name]()._actions for o in a.option_strings}
        for word in words:
            option = word.partition("=")[0].rstrip(",.;:)")
            if option.startswith("--") and option != "--":
                assert option in own | every, f"{page.name}: python -m wsbench {' '.join(words)}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "api" / "norms.html").read_text()
    assert 'id="wsbench.norms.normalize"' in text
    assert ":class:`" not in text
