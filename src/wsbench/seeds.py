"""Seeds derived from a run's seed and a place in the run."""

import hashlib


def derived_seed(purpose: str, *place: int) -> int:
    """A 32-bit seed, a hash of all of ``place`` (the run's seed first); other purposes get other seeds.

    torch's CPU generator uses the lowest 32 bits of its seed only, so shifting the parts into a larger number would
    give every run the same draws.
    """
    text = "/".join((purpose, *map(str, place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
