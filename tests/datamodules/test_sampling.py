import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsbench.datamodules.sampling import StreamSampler, UnpaddedSampler, accumulation


@given(
    length=st.integers(1, 40), steps=st.integers(1, 6), micro=st.integers(1, 3), accumulate=st.integers(1, 4),
    world=st.integers(1, 3), seed=st.integers(0, 5), epochs=st.integers(1, 3),
)  # fmt: skip
def test_a_step_does_not_depend_on_how_it_is_cut(
    length: int, steps: int, micro: int, accumulate: int, world: int, seed: int, epochs: int
) -> None:
    effective = micro * accumulate * world
    whole = StreamSampler(length, steps, effective, effective, seed)
    parts = [StreamSampler(length, steps, effective, micro, seed, rank, world) for rank in range(world)]
    stream = []
    for epoch in range(epochs):
        for sampler in (whole, *parts):
            sampler.steps_taken = lambda taken=epoch * steps: taken  # type: ignore[misc]
        expected = list(whole)
        assert len(whole) == len(expected) == steps * effective
        dealt = [list(p) for p in parts]
        assert all(len(d) == len(p) for d, p in zip(dealt, parts, strict=True))
        for step in range(steps):
            share = micro * accumulate
            union = sorted(d for ds in dealt for d in ds[step * share : (step + 1) * share])
            assert union == sorted(expected[step * effective : (step + 1) * effective])
        stream += expected
    seeds = [d.seed for d in stream]
    assert len(set(seeds)) >= len(seeds) - 1, "every draw has an augmentation of its own, but for a collision of hashes"
    for start in range(0, len(stream) - length + 1, length):
        assert sorted(d.index for d in stream[start : start + length]) == list(range(length)), "whole passes"


def test_stream_depends_on_the_seed_and_restarts_anywhere() -> None:
    whole = list(StreamSampler(50, 5, 4, 2, seed=0))
    assert whole != list(StreamSampler(50, 5, 4, 2, seed=1))
    assert whole[12:] == list(StreamSampler(50, 5, 4, 2, seed=0, steps_taken=lambda: 3))[:8]


@given(st.integers(0, 30), st.integers(1, 5))
def test_unpadded_counts_every_item_once(length: int, world: int) -> None:
    ranks = [list(UnpaddedSampler(length, rank, world)) for rank in range(world)]
    assert sorted(i for r in ranks for i in r) == list(range(length))


def test_accumulation() -> None:
    assert accumulation(16, 1, 4) == 4
    with pytest.raises(ValueError, match=r"16 is no multiple of micro_batch 3 x 2 device\(s\) = 6"):
        accumulation(16, 3, 2)
    with pytest.raises(ValueError, match="empty"):
        StreamSampler(0, 1, 1, 1)
