"""Versions, commit, hardware and memory of the running process."""

import datetime
import platform
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision

import wsbench
from wsbench.records import Provenance


def _git(*args: str) -> str | None:
    """Output of git in the folder this package was imported from; None without git or outside a working tree."""
    folder = Path(wsbench.__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit_of_tree() -> tuple[str | None, bool | None]:
    """Commit and dirtiness of this package's own tree; nothing where it was installed into somebody else's."""
    if _git("ls-files", "--error-unmatch", Path(wsbench.__file__).name) is None:
        return None, None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


def hardware(device: torch.device, devices: int = 1) -> str:
    """The device as text, and how many train together if it is not one."""
    several = f"{devices} x " if devices > 1 else ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{several}{properties.name}, {properties.total_memory >> 20} MiB"
    return f"{several}{platform.machine()} CPU, {torch.get_num_threads()} threads"


#: where Linux's driver says its version
_DRIVER = Path("/proc/driver/nvidia/version")


def driver_version() -> str:
    """Version of NVIDIA's driver; empty where there is none, or it is not said."""
    try:
        match = re.search(r"Kernel Module\S*\s+(?:for \S+\s+)?([\d.]+)", _DRIVER.read_text())
    except OSError:
        return ""
    return match[1] if match else ""


def machine(device: torch.device, devices: int = 1) -> dict[str, Any]:
    """The fields of a record's provenance that are read off while training runs; afterwards all is on the CPU again.

    Args:
        device: that this process trains on.
        devices: that train together.
    """
    facts: dict[str, Any] = {
        "hardware": hardware(device, devices),
        "float32": f"matmul {torch.get_float32_matmul_precision()}",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.type == "cuda":
        facts["float32"] += f", convolutions {'tf32' if torch.backends.cudnn.allow_tf32 else 'ieee'}"
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        facts |= {"cuda": torch.version.cuda or "", "driver": driver_version(), "cudnn": str(cudnn or "")}
    return facts


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Peak of allocated device memory; on a CPU the peak resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def provenance(argv: Sequence[str], machine: Mapping[str, Any], precision: str) -> Provenance:
    """What has run.

    Args:
        argv: the command line.
        machine: as of :func:`machine`.
        precision: the Trainer's.
    """
    commit, dirty = commit_of_tree()
    return Provenance(
        wsbench=wsbench.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        lightning=lightning.__version__,
        commit=commit,
        dirty=dirty,
        command=shlex.join(["python", "-m", "wsbench", *argv]),
        precision=precision,
        **machine,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
