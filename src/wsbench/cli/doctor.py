"""``python -m wsbench doctor``: versions, devices, optional parts, and what installs those that are missing."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from wsbench.errors import shortened
from wsbench.extras import OPEN3D_LIBRARIES
from wsbench.run.report import console

#: optional part: (module, distribution, what it is for, how to get it)
OPTIONAL = (
    ("open3d", ("open3d-cpu", "open3d"), "ModelNet40's meshes", "pip install 'wsbench[modelnet40]'"),
    ("plotly", ("plotly",), "images of clouds", "pip install 'wsbench[modelnet40]'"),
    ("onnx", ("onnx",), "export to ONNX", "pip install 'wsbench[export]'"),
    ("onnxruntime", ("onnxruntime",), "checking exported ONNX", "pip install 'wsbench[export]'"),
    ("onnxscript", ("onnxscript",), "export to ONNX", "pip install 'wsbench[export]'"),
    ("matplotlib", ("matplotlib",), "figures of analyze", "pip install 'wsbench[analysis]'"),
    ("submitit", ("submitit",), "sweeps on Slurm", "pip install 'wsbench[slurm]'"),
    ("ray", ("ray",), "sweeps on Ray", "pip install 'wsbench[ray]'"),
    ("altair", ("altair",), "figures of report", "pip install 'wsbench[report]'"),
    ("vl_convert", ("vl-convert-python",), "figures of report", "pip install 'wsbench[report]'"),
    ("jinja2", ("Jinja2",), "the page of report", "pip install 'wsbench[report]'"),
    ("wandb", ("wandb",), "fit --wandb", "pip install 'wsbench[wandb]'"),
    ("mlflow", ("mlflow",), "fit --mlflow", "pip install 'wsbench[mlflow]'"),
    ("mmseg", ("mmsegmentation",), "mmsegmentation's networks", "scripts/install-mmseg"),
    ("timm", ("timm",), "networks timm:NAME", "pip install 'wsbench[timm]'"),
)


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def required() -> list[tuple[str, str, str, bool]]:
    """(name, wanted, found, ok) of every package that wsbench needs, for training too."""
    rows = []
    for text in requires("wsbench") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "train"}):
            continue
        installed = _version(requirement.name)
        ok = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        rows.append((requirement.name, str(requirement.specifier) or "any", installed or "missing", ok))
    return rows


def missing_libraries() -> dict[str, str]:
    """System libraries that open3d needs and the loader does not find, to Debian's packages with them."""
    missing = {}
    for library, package in OPEN3D_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing[library] = package
    return missing


def devices() -> list[str]:
    """The processors and accelerators."""
    import torch

    names = [f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        names.append(f"cuda:{i} {properties.name}, {properties.total_memory >> 20} MiB, {bf16}")
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _optional(libraries: dict[str, str]) -> list[tuple[str, str, str, str]]:
    rows = []
    for module, names, purpose, remedy in OPTIONAL:
        installed, what = _version(*names), ""
        if installed is None:
            what = remedy
        elif module == "open3d" and libraries:
            what = f"apt-get install {' '.join(libraries.values())}"
        else:
            try:
                import_module(module)
            except (ImportError, OSError) as error:
                what = f"cannot be imported: {error}"
        rows.append((names[0], purpose, installed or "not installed", what))
    return rows


#: what wsbench imports of each package that it needs, where the name is another
_MODULES = {
    "scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml",
    "pycocotools": "pycocotools.mask", "torchvision": "torchvision.ops", "lightning": "lightning.pytorch",
    "tensorboard": "tensorboard.summary",
}  # fmt: skip
#: seconds that an import may take
_PATIENCE = 120
#: what a package that is there and cannot be imported needs
_REMEDIES = {
    "torchvision": "torch and torchvision must be of one build (both for CPUs, or both for one CUDA): install them "
    "together, from one index",
}


def broken(names: Sequence[str]) -> dict[str, str]:
    """``{package: why}`` of those that are installed and cannot be imported, each tried in a process of its own.

    A library of another build than its partner's (torch for CPUs beside torchvision for CUDA) may end the process.
    """
    started = {
        name: subprocess.Popen(
            [sys.executable, "-P", "-c", f"import {_MODULES.get(name, name.replace('-', '_'))}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for name in names
    }  # fmt: skip
    reasons = {}
    for name, process in started.items():
        try:
            _, stderr = process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            reasons[name] = f"its import does not end within {_PATIENCE} s"
            continue
        if process.returncode:
            last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
            ended = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
            reasons[name] = shortened(last) or f"its import ends with {ended}"
    return reasons


def main() -> int:
    """Returns 0 if everything that wsbench needs is there, else 1; optional parts do not matter."""
    out = console()
    needed = required()
    why = broken([name for name, _, _, ok in needed if ok])
    table = Table("", "package", "wanted", "found", title=f"wsbench {_version('wsbench')}, Python "
                  f"{platform.python_version()}, {platform.platform()}")  # fmt: skip
    for name, wanted, installed, ok in needed:
        table.add_row("ok" if ok and name not in why else "!!", name, wanted, installed)
    out.print(table)
    for name, reason in why.items():
        remedy = _REMEDIES.get(name, f"pip install --force-reinstall {name}")
        out.print(f"{name} is installed and cannot be imported: {reason}; {remedy}", markup=False, soft_wrap=True)
    if "torch" in why:
        return 1
    for device in devices():
        out.print(f"device: {device}", markup=False)
    libraries = missing_libraries()
    table = Table("", "optional part", "for", "found", "to do", title="optional parts")
    for name, purpose, installed, what in _optional(libraries):
        table.add_row("--" if what else "ok", name, purpose, installed, escape(what))
    out.print(table)
    for library, package in libraries.items():
        out.print(f"system library {library} is missing: apt-get install {package}", markup=False)
    data, cache = os.environ.get("WSBENCH_DATA"), Path(os.environ.get("WSBENCH_CACHE") or Path.home())
    out.print(f"datasets: $WSBENCH_DATA is {data or 'not set; miniatures are used'}", markup=False)
    free = shutil.disk_usage(cache if cache.exists() else Path.home()).free >> 30
    out.print(f"free disk space for miniatures: {free} GiB")
    wrong = [name for name, _, _, ok in needed if not ok]
    if wrong:
        out.print(f"repair: pip install -U {' '.join(wrong)}")
    return 1 if wrong or why else 0
