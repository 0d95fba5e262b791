"""What an install holds: rooms that live outside src/ are in it, and no bare top-level module is."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOTTOM = ("errors", "extras", "plugins", "records", "registry", "seeds")
BELOW = {
    "norms": {"norms", "plugins", "errors"},
    "plugins": {"errors"},
    "errors": set(),
    "options": {"errors"},
    "migration": set(),
    "seeds": set(),
    "registry": set(),
    "extras": {"errors"},
    "records": {"errors", "migration", "registry"},
    "models": {"models", "norms", "extras", "plugins"},
    "datamodules": {"datamodules", *BOTTOM},
    "run": {"run", "migration", "options", "__init__", *BOTTOM},
    "tasks": {"tasks", "models", "norms", "datamodules", "options", *BOTTOM},
    "configuration": {"__init__", "configuration", "datamodules", "norms", "options", "run", "tasks", *BOTTOM},
    "analysis": {"__init__", "analysis", "configuration", "datamodules", "models", "norms", "options", "run", "tasks",
                 *BOTTOM},
    "export": {"__init__", "configuration", "export", "integrations", "run", "tasks", *BOTTOM},
    "integrations": {"errors", "extras", "integrations", "norms"},
    "leaderboard": {"__init__", "leaderboard", "run", *BOTTOM},
    "grid": {"__init__", "configuration", "grid", "norms", "run", *BOTTOM},
    "recommend": {"__init__", "cli", "datamodules", "grid", "leaderboard", "models", "norms", "options", "recommend",
                  "run", *BOTTOM},
    "cli": {"__init__", "analysis", "cli", "configuration", "datamodules", "grid", "leaderboard", "norms", "options",
            "run", "tasks", *BOTTOM},
}  # fmt: skip


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {"wsbench": ROOT / "src" / "wsbench", "wsbench.conf": ROOT / "conf"}
    places |= {"wsbench.datamodules": ROOT / "datamodules", "wsbench.paper": ROOT / "leaderboards" / "paper"}
    places |= {"wsbench.published": ROOT / "leaderboards" / "published"}
    found = {
        ".".join((name, *init.parent.relative_to(place).parts))
        for name, place in places.items()
        for init in place.rglob("__init__.py")
    }
    assert set(project["packages"]) == found


def test_wheel(tmp_path: Path) -> None:
    for name in ("src", "conf", "datamodules", "leaderboards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", "out"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"wsbench", wheel.name.split("-py3")[0] + ".dist-info"}
    for name in ("conf/voc/paper.yaml", "conf/voc/mini.yaml", "datamodules/voc.py", "datamodules/mini/voc.py",
                 "paper/table7.csv", "published/coco.csv", "norms/weight.py", "py.typed"):  # fmt: skip
        assert f"wsbench/{name}" in names


def test_this_install_finds_recipes_and_datamodules() -> None:
    assert (files("wsbench.conf") / "voc" / "paper.yaml").is_file()
    assert len((files("wsbench.paper") / "table7.csv").read_text().splitlines()) == 5
    import wsbench.datamodules.voc as room

    assert room.CLASSES[15] == "person"


def test_every_room_has_rooms_below() -> None:
    root = ROOT / "src" / "wsbench"
    rooms = {path.stem for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(BELOW) == (rooms | {"datamodules"}) - {"__init__", "__main__"}


@pytest.mark.parametrize("room", BELOW)
def test_rooms_import_only_from_rooms_below(room: str) -> None:
    folder = ROOT / "datamodules" if room == "datamodules" else ROOT / "src" / "wsbench" / room
    paths = list(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if parts[0] == "wsbench":
                    target = parts[1] if len(parts) > 1 else "__init__"
                    assert target in BELOW[room], f"{path.name} imports {name}"
                elif room == "norms":
                    assert parts[0] in {"torch", *sys.stdlib_module_names}, f"norms imports {name}"


def test_torch_free_rooms() -> None:
    commands = "wsbench.leaderboard.leaderboard_command, wsbench.leaderboard.page.report_command"
    code = f"import sys, {commands}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_module_takes_the_name_of_what_its_room_exports() -> None:
    """``from wsbench.analysis import diagnose`` would be the function or a module, by what was imported before."""
    code = """if True:
        import importlib, inspect, pkgutil, wsbench
        rooms = {m.name for m in pkgutil.walk_packages(wsbench.__path__, "wsbench.") if m.ispkg}
        for room in rooms:
            for module in pkgutil.iter_modules(importlib.import_module(room).__path__, room + "."):
                importlib.import_module(module.name)
        for room in map(importlib.import_module, sorted(rooms)):
            for name in getattr(room, "__all__", ()):
                if inspect.ismodule(getattr(room, name)):
                    print(room.__name__, name)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
