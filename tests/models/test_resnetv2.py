"""Big Transfer's network against timm's."""

import pytest
import timm
import torch
from torch import nn

from wsbench.models.resnetv2 import STANDARDIZED, ResNetV2
from wsbench.norms import normalize


def test_it_is_timms() -> None:
    """Keys, and logits with the same weights, filters large because timm's eps is 1e-8 here and 1e-6 in ``@timm``."""
    theirs = timm.create_model("resnetv2_50x1_bit", pretrained=False).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    ours = ResNetV2("resnetv2_50x1").double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.double)
    report = normalize(ours, "gn+ws@timm", x, include=STANDARDIZED)
    assert report.plain == ("head.fc",)
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(x)
    assert float((ours(x) - expected).detach().abs().max() / expected.detach().std()) < 1e-3


def test_unknown_width() -> None:
    with pytest.raises(ValueError, match="unknown ResNet 'resnetv2_50'"):
        ResNetV2("resnetv2_50")
