"""Samplers whose output is a pure function of seed and position, so that a resumed run sees what it would have seen."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data.distributed import DistributedSampler

from wsbench.errors import UserError
from wsbench.seeds import derived_seed


@dataclass(frozen=True, order=True)
class Draw:
    """One training sample: which item, and the seed of its augmentation."""

    index: int
    seed: int


class _Own(DistributedSampler):  # type: ignore[type-arg]
    """A sampler that deals out to devices by itself, in Lightning's eyes: it wraps any other in one of its own."""

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the order follows from positions in the stream, not from epochs."""


class StreamSampler(_Own):
    """An endless stream of shuffled passes over a dataset, cut into optimizer steps and dealt out to devices.

    Position p of the stream is item ``permutation(seed, p // n)[p % n]``; step s takes positions s E to (s + 1) E - 1
    for an effective batch of E. So every step is full, no sample is passed over, and what a step consists of does not
    depend on micro-batch, accumulation, devices, workers or restarts.

    Args:
        length: items n in the dataset.
        steps: optimizer steps in an iteration.
        effective_batch: samples in a step, over all devices and micro-steps.
        micro_batch: samples of one device in one micro-step.
        seed: of the permutations and, with the position, of the augmentation.
        rank: this device.
        world_size: number of devices.
        steps_taken: says, when an iteration begins, how many optimizer steps the run has taken. (Lightning's epoch
            numbers will not do: after a resume they depend on where in an epoch the checkpoint was written.)
    """

    def __init__(
        self,
        length: int,
        steps: int,
        effective_batch: int,
        micro_batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        steps_taken: Callable[[], int] = lambda: 0,
    ) -> None:
        if length < 1:
            raise ValueError("cannot sample from an empty dataset")
        self.length, self.steps, self.effective_batch, self.micro_batch = length, steps, effective_batch, micro_batch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._items = length
        self._kinds: list[int] | None = None
        self.accumulate = accumulation(effective_batch, micro_batch, world_size)
        self.steps_taken = steps_taken

    def group_by(self, kinds: Sequence[int]) -> None:
        """Let every micro-batch hold items of one kind only.

        Of each pass, what does not fill a micro-batch of its kind is left out, other items each time. What a step
        consists of then depends on ``micro_batch``, still not on devices, workers or restarts.

        Args:
            kinds: the kind of each item.

        Raises:
            ValueError: no kind has as many items as a micro-batch.
        """
        self._kinds = list(kinds)
        counts = Counter(self._kinds)
        self.length = sum(count - count % self.micro_batch for count in counts.values())
        if self.length == 0:
            raise ValueError(f"no kind has {self.micro_batch} items, as many as a micro-batch")

    def __len__(self) -> int:
        return self.steps * self.accumulate * self.micro_batch

    def _permutation(self, number: int) -> list[int]:
        """The items of a pass in their order; ``length`` of them."""
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, number))
        permutation: list[int] = torch.randperm(self._items, generator=generator).tolist()
        if self._kinds is None:
            return permutation
        waiting: dict[int, list[int]] = {}
        order: list[int] = []
        for item in permutation:
            batch = waiting.setdefault(self._kinds[item], [])
            batch.append(item)
            if len(batch) == self.micro_batch:
                order += batch
                batch.clear()
        return order

    def __iter__(self) -> Iterator[Draw]:
        number, order = -1, list[int]()
        first = self.steps_taken() * self.effective_batch
        for micro_step in range(self.steps * self.accumulate):
            start = first + (micro_step * self.world_size + self.rank) * self.micro_batch
            for position in range(start, start + self.micro_batch):
                if position // self.length != number:
                    number = position // self.length
                    order = self._permutation(number)
                yield Draw(order[position % self.length], derived_seed("augmentation", self.seed, position))


class UnpaddedSampler(_Own):
    """Every item exactly once over all devices: evaluation that counts no sample twice.

    torch's DistributedSampler repeats items until the devices have equally many; these ranks may differ by one.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class BatchError(UserError, ValueError):
    """Batch numbers that contradict each other."""


def accumulation(effective_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro-steps in an optimizer step.

    Raises:
        BatchError: if the devices' micro-batches do not divide the effective batch.
    """
    at_once = micro_batch * world_size
    if effective_batch % at_once:
        raise BatchError(
            f"effective_batch {effective_batch} is no multiple of micro_batch {micro_batch} x {world_size} device(s) = "
            f"{at_once}; change --data.micro_batch, --data.effective_batch or --trainer.devices"
        )
    return effective_batch // at_once


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's CPU generator draw from ``seed``, and go on afterwards as if nothing had happened.

    For library transforms, which take no generator. (torch.manual_seed would reseed the accelerator as well.)
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
