"""Reading samples as training does, in processes of their own: a file that ends one is a finding like any other."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from wsbench.datamodules.errors import DatasetError
from wsbench.extras import MissingPartError

#: samples that a process is handed at once
_CHUNK = 32


@dataclass(frozen=True)
class Finding:
    """One line of a verification."""

    what: str
    expected: str
    found: str
    ok: bool
    hint: str = ""
    """How to fix it, if it is not well."""
    problems: tuple[str, ...] = ()
    """What is wrong, one by one, too long for a cell of a table."""


class Checked(Protocol):
    """A dataset whose samples can be read one by one."""

    def __len__(self) -> int:
        """How many samples there are."""

    def path(self, index: int) -> Path:
        """The file or folder of a sample."""

    def check(self, index: int) -> None:
        """Read all of a sample; DatasetError if that cannot be done."""


def counted(what: str, expected: int, actual: int, hint: str, unit: str) -> Finding:
    """A number of things."""
    return Finding(what, f"{expected:,} {unit}", f"{actual:,} {unit}", actual == expected, hint)


_dataset: Any = None


def _take(dataset: Checked) -> None:
    global _dataset
    _dataset = dataset
    torch.set_num_threads(1)


def _problems(indices: Sequence[int]) -> list[tuple[int, str]]:
    problems = []
    for index in indices:
        try:
            _dataset.check(index)
        except (DatasetError, MissingPartError) as error:
            problems.append((index, str(error)))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this sample's and would end training, too
            problems.append((index, f"cannot read '{_dataset.path(index)}': {type(error).__name__}: {error}"))
    return problems


def _pool(dataset: Checked, processes: int) -> ProcessPoolExecutor:
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_take, initargs=(dataset,))


def broken(dataset: Checked, indices: Sequence[int], processes: int | None = None) -> Iterator[tuple[int, str]]:
    """The samples that cannot be read, and why, as they are found.

    Args:
        dataset: of the samples.
        indices: the ones to read.
        processes: that read; default: as many as this process may use.
    """
    processes = processes or len(os.sched_getaffinity(0))
    chunks = [list(indices[i : i + _CHUNK]) for i in range(0, len(indices), _CHUNK)]
    while chunks:
        lost: list[list[int]] = []
        with _pool(dataset, processes) as pool:
            waiting: dict[Future[list[tuple[int, str]]], list[int]] = {pool.submit(_problems, c): c for c in chunks}
            chunks = []
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    chunk = waiting.pop(future)
                    try:
                        yield from future.result()
                    except BrokenProcessPool:
                        lost.append(chunk)
        for chunk in lost:
            if len(chunk) == 1:
                yield from _alone(dataset, chunk[0])
            else:  # one of these, or a neighbour's crash took the pool with it: again, in halves
                half = len(chunk) // 2
                chunks += [chunk[:half], chunk[half:]]


def _alone(dataset: Checked, index: int) -> Iterator[tuple[int, str]]:
    with _pool(dataset, 1) as pool:
        try:
            yield from pool.submit(_problems, [index]).result()
        except BrokenProcessPool:
            yield index, (f"reading '{dataset.path(index)}' ends the process (a damaged file, or too little memory); "
                          "replace it")  # fmt: skip
