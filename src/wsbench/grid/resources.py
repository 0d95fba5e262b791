"""What this process may use of the machine: not all of it, in a container, in a job of a cluster, or under taskset."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OF_PROCESS = Path("/proc/self/cgroup")


def cores() -> int:
    """CPU cores, by affinity and by the quota of cgroups."""
    from joblib import cpu_count

    return int(cpu_count())


def memory(cgroups: Path = CGROUPS, of_process: Path = OF_PROCESS) -> int:
    """Bytes of memory, by the machine and by the limits of all cgroups (of version 1 or 2) that the process is in.

    Args:
        cgroups: where they are mounted.
        of_process: which the process is in, as the kernel lists them.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    lines = of_process.read_text(encoding="utf-8").splitlines() if of_process.is_file() else []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        second = number == "0" and not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        top, name = (cgroups, "memory.max") if second else (cgroups / "memory", "memory.limit_in_bytes")
        inside = top / path.lstrip("/")
        for folder in (inside, *inside.parents):
            limits += _limit(folder / name)
            if folder == top:
                break
    return min(limits)


def _limit(path: Path) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:  # no such controller, or a folder of another namespace
        return []
    return [int(text)] if text.isdigit() else []  # "max"
