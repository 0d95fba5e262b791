"""What a norm's class says of it is what its layers do."""

import pytest
import torch
from torch import nn

from wsbench.norms import ACTIVATIONS, NormSpec, normalize
from wsbench.norms.facts import NormFacts, facts_of
from wsbench.norms.registry import ActivationMethod
from wsbench.run.identity import ACROSS_DEVICES
from wsbench.tasks.memory import memory_format_for

C = 8


def layer(name: str) -> nn.Module:
    new = ACTIVATIONS[name].build(C, 2 if ACTIVATIONS[name].takes_groups else None).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*new.parameters(), *new.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.double) + 0.5)
    return new.train()


def images() -> torch.Tensor:
    return torch.randn(4, C, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_samplewise(name: str) -> None:
    x = images()
    other = torch.cat([x[:1], 3 * x[1:] + 1])
    alone = torch.allclose(layer(name)(x)[0], layer(name)(other)[0], rtol=1e-12, atol=1e-12)
    assert alone == ACTIVATIONS[name].facts.samplewise


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_statistic_of_one_channel_takes_a_bias_out(name: str) -> None:
    x, bias = images(), torch.arange(C, dtype=torch.double).view(1, -1, 1, 1)
    vanishes = torch.allclose(layer(name)(x + bias), layer(name)(x), rtol=1e-8, atol=1e-8)
    assert vanishes == ACTIVATIONS[name].facts.per_channel


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_fixed_map_is_affine_in_its_input(name: str) -> None:
    x, norm = images(), layer(name)
    zero = norm(0 * x)
    affine = torch.allclose(norm(2 * x) - zero, 2 * (norm(x) - zero), rtol=1e-9, atol=1e-9)
    assert affine == (ACTIVATIONS[name].facts.fixed or name == "none")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_named_with_a_source(name: str) -> None:
    facts = ACTIVATIONS[name].facts
    assert facts.sees != NormFacts().sees
    assert (facts.paper is None) == (facts.year is None) == (name == "none")
    assert facts.starts_from is None or facts.starts_from in ACTIVATIONS


def test_ids_know_what_sees_all_devices() -> None:
    assert set(ACROSS_DEVICES) == {name for name, method in ACTIVATIONS.items() if method.facts.across_devices}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_brings_its_activation_is_none_but_for_it(name: str) -> None:
    """It clips or gates: on a grid of inputs it is no affine map of what a norm without activation makes of them."""
    facts, norm = ACTIVATIONS[name].facts, layer(name)
    assert hasattr(norm, "drop_activation") == facts.brings_activation
    if facts.brings_activation:
        plain = layer(name)
        plain.drop_activation()  # type: ignore[operator]
        assert not torch.allclose(norm(images()), plain(images()))
        assert set(plain.state_dict()) < set(norm.state_dict())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_recipes_momentum_is_for_running_statistics_of_a_batch(name: str) -> None:
    facts, norm = ACTIVATIONS[name].facts, layer(name)
    if facts.bn_momentum:
        before = norm.running_mean.clone()  # type: ignore[union-attr,operator]
        norm.momentum = 0.0
        norm(images())
        assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
        assert facts.starts_from == "bn" or name == "bn"


class Whitened(nn.Module):
    """A norm of somebody else."""

    facts = NormFacts("a test", samplewise=True, one_value="it is passed through", channels_last_from=2)

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features))

    @classmethod
    def from_channels(cls, channels: int, groups: int | None) -> "Whitened":
        return cls(channels)

    def values_per_statistic(self, shape: torch.Size) -> int:
        return shape[2:].numel()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input


def test_a_norm_of_somebody_else_is_treated_by_what_it_says() -> None:
    ACTIVATIONS.add("whitened", ActivationMethod(Whitened, "a test"))
    try:
        model = nn.Sequential(nn.Conv2d(3, C, 3, bias=False), nn.BatchNorm2d(C))
        report = normalize(model, "whitened+ws", torch.zeros(1, 3, 3, 3))
        assert any("so it is passed through" in note for note in report.notes)
        cpu, spec = torch.device("cpu"), NormSpec("whitened")
        assert memory_format_for("auto", cpu, spec, 1)[0] == torch.contiguous_format
        assert memory_format_for("auto", cpu, spec, 2)[0] == torch.channels_last
        assert ACTIVATIONS["whitened"].facts.samplewise
    finally:
        ACTIVATIONS.remove("whitened")
    assert facts_of(nn.Identity()) == NormFacts()
