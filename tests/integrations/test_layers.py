import pytest
import torch
from torchvision.models import resnet18

from wsbench.integrations import norm_layer
from wsbench.norms import SpecError, normalize


@pytest.mark.parametrize("spec", ["bn", "gn", "ln", "in", "sn", "cln", "rms"])
def test_built_is_converted(spec: str) -> None:
    """A network that is built with a norm equals one that was converted to it, value for value."""
    images = torch.randn(2, 3, 64, 64)
    built, converted = resnet18(norm_layer=norm_layer(spec)), resnet18()
    normalize(converted, spec, example=images)
    converted.load_state_dict(built.state_dict())
    for mode in (True, False):
        expected = converted.train(mode)(images)
        torch.testing.assert_close(built.train(mode)(images), expected, rtol=0, atol=0)


def test_timm() -> None:
    import timm

    model = timm.create_model("resnet18", norm_layer=norm_layer("gn"), num_classes=5)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert not [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize(("spec", "message"), [("gn+ws", "is of the convolutions"), ("evos", "replaces the act")])
def test_what_a_norm_layer_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        norm_layer(spec)(64)


def test_eps() -> None:
    with pytest.raises(SpecError, match=r"eps 0\.001"):
        norm_layer("gn")(64, eps=1e-3)  # type: ignore[call-arg]
