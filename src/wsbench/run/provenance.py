"""Versions, commit, hardware and memory of the running process."""

import datetime
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory >> 20} MiB"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Peak of allocated device memory; on a CPU the peak resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def provenance(argv: Sequence[str], device: torch.device, precision: str) -> Provenance:
    """What is running, now."""
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
        hardware=hardware(device),
        precision=precision,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
