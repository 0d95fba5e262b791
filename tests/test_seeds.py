import torch

from wsbench.seeds import derived_seed


def draw(*place: int) -> float:
    return float(torch.rand((), generator=torch.Generator().manual_seed(derived_seed("augmentation", *place))))


def test_every_part_reaches_what_is_drawn() -> None:
    """Not only the integers differ: torch's CPU generator looks at 32 bits of them."""
    draws = [draw(seed, position) for seed in (0, 1, 2**20, 2**32 - 1, 20241124) for position in (0, 1, 2**31)]
    assert len(set(draws)) == len(draws)
    assert derived_seed("order", 0, 0) != derived_seed("step", 0, 0)
    assert draw(0, 1) == draw(0, 1)
