"""What the rest of the house must know of a normalization; it stands on its class."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NormFacts:
    """Facts of one normalization; a class says ``facts = NormFacts(...)``, and the defaults assume nothing.

    Args:
        sees: what one statistic is over.
        paper: who, and where.
        year: of publication.
        samplewise: whether in training a sample's output depends on that sample alone.
        per_channel: whether a statistic is of one channel, which subtracts all of a bias in front of it.
        fixed: whether it is a fixed affine map, without any statistic of its input.
        one_value: what it does in training where a statistic has one value.
        starts_from: the method whose checkpoints it is made to start from, besides its own; it has that one's state.
        brings_activation: whether its formula is the activation's, too, which then takes the place of the one behind it
            (see :class:`wsbench.norms.behind.ActivatingNorm`).
        across_devices: whether in training a statistic is over the micro-batches of all devices.
        bn_momentum: whether what a recipe says of BN's momentum is for it, too.
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
    brings_activation: bool = False
    across_devices: bool = False
    bn_momentum: bool = False
    channels_last_from: int | None = None


@dataclass(frozen=True)
class WeightFacts:
    """Where a weight normalization comes from; its class says ``facts = WeightFacts(...)``.

    Args:
        paper: who, and where.
        year: of publication.
        sees: what one statistic is over.
    """

    paper: str | None = None
    year: int | None = None
    sees: str = "one filter"


def facts_of(norm: object) -> NormFacts:
    """The facts of a layer or a class, whoever wrote it; the defaults where it says nothing."""
    facts = getattr(norm, "facts", None)
    return facts if isinstance(facts, NormFacts) else NormFacts()
