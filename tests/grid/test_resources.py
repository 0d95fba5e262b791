"""How much of the machine a sweep may use."""

import os
from pathlib import Path

from wsbench.grid.resources import cores, memory


def test_cores_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def write(folder: Path, name: str, value: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{value}\n")


def test_memory_of_cgroups(tmp_path: Path) -> None:
    machine = memory(tmp_path / "none", tmp_path / "none")
    assert machine == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    of = tmp_path / "cgroup"
    of.write_text("0::/user/job\n")
    write(tmp_path / "v2" / "user" / "job", "memory.max", "max")
    assert memory(tmp_path / "v2", of) == machine, "no limit"
    write(tmp_path / "v2" / "user", "memory.max", str(3 << 20))
    assert memory(tmp_path / "v2", of) == 3 << 20, "the group above has one"
    write(tmp_path / "v2" / "user" / "job", "memory.max", str(1 << 20))
    assert memory(tmp_path / "v2", of) == 1 << 20
    of.write_text("5:cpu,memory:/job\n4:freezer:/\n")
    write(tmp_path / "v1" / "memory" / "job", "memory.limit_in_bytes", str(2 << 20))
    assert memory(tmp_path / "v1", of) == 2 << 20
    write(tmp_path / "v1" / "memory" / "job", "memory.limit_in_bytes", "9223372036854771712")
    assert memory(tmp_path / "v1", of) == machine, "version 1 says so where there is none"
