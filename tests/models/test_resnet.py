"""ResNets against torchvision's and against another library's weight standardization."""

from functools import partial

import pytest
import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import Bottleneck, ResNet

from wsbench.models.resnet import RESNETS, ResNetClassifier, resnet_features
from wsbench.norms import normalize

LAYERS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions"),
    [("resnet50", 25.557, 53), ("resnet101", 44.549, 104), ("resnext50_32x4d", 25.029, 53),
     ("resnext101_32x4d", 44.178, 104)],
)  # fmt: skip
def test_published_sizes(name: str, parameters: float, convolutions: int) -> None:
    with torch.device("meta"):
        network = ResNetClassifier(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(parameters, abs=5e-4)
    report = normalize(network, "gn+ws")
    assert (len(report.weight_normalized), report.plain) == (convolutions, ("fc",))
    assert len(report.activations) == convolutions


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_bn_is_torchvisions(name: str) -> None:
    """Same seed, same weights, same logits."""
    torch.manual_seed(3)
    ours = ResNetClassifier(name).eval()
    torch.manual_seed(3)
    theirs = get_model(name).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize(("depth", "groups", "width"), [(50, 1, 64), (50, 32, 4), (101, 32, 4)])
def test_gn_and_ws_of_the_authors(depth: int, groups: int, width: int) -> None:
    """torchvision's ResNet with GroupNorm(32) and mmcv's ConvWS2d, the authors' formula, on the same weights."""
    theirs = ResNet(
        Bottleneck, LAYERS[depth], groups=groups, width_per_group=width, norm_layer=partial(nn.GroupNorm, 32)
    ).double()
    for module in list(theirs.modules()):
        for name, conv in list(module.named_children()):
            if isinstance(conv, nn.Conv2d):
                new = ConvWS2d(
                    conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
                    conv.groups, bias=False,
                ).double()  # fmt: skip
                new.weight = conv.weight
                setattr(module, name, new)
    name = f"resne{'xt' if groups > 1 else 't'}{depth}{'_32x4d' if groups > 1 else ''}"
    ours = ResNetClassifier(name).double()
    normalize(ours, "gn+ws@authors", torch.zeros(1, 3, 64, 64, dtype=torch.double))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-7, atol=1e-7)


def test_features_have_the_classifiers_keys() -> None:
    for name in ("resnet50", "resnet_mini"):
        with torch.device("meta"):
            classifier, features = ResNetClassifier(name, 7), resnet_features(name, 16)
        assert [k for k in classifier.state_dict() if not k.startswith("fc.")] == list(features.state_dict())
        assert classifier.fc.in_features == features.out_channels


def test_unknown_resnet() -> None:
    with pytest.raises(ValueError, match=f"unknown ResNet 'vgg'; choose from {', '.join(RESNETS)}"):
        ResNetClassifier("vgg")
