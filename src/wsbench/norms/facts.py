"""What the rest of the house must know of an activation normalization; it stands on the norm's class."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NormFacts:
    """Facts of one normalization; a class says ``facts = NormFacts(...)``, and the defaults assume nothing.

    Args:
        sees: what one statistic is over, in words.
        paper: who, and where.
        year: of publication.
        samplewise: whether in training a sample's output depends on that sample alone.
        per_channel: whether a statistic is of one channel, which subtracts all of a bias in front of it.
        fixed: whether it is a fixed affine map, without any statistic of its input.
        one_value: what it does in training where a statistic has one value.
        starts_from: the method whose checkpoints it is made to start from, besides its own.
        channels_last_from: images on a device from which a network with it trains faster on a CPU in channels_last.
    """

    sees: str = "not said"
    paper: str | None = None
    year: int | None = None
    samplewise: bool = False
    per_channel: bool = False
    fixed: bool = False
    one_value: str = "affine map only"
    starts_from: str | None = None
    channels_last_from: int | None = None


def facts_of(norm: object) -> NormFacts:
    """The facts of a layer or a class, whoever wrote it; the defaults where it says nothing."""
    facts = getattr(norm, "facts", None)
    return facts if isinstance(facts, NormFacts) else NormFacts()
