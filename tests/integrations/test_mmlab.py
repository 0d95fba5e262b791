"""A config's network equals the converted one; mmcv-lite has the builders, mmdetection and the like only call them."""

from typing import Any

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer, build_norm_layer
from torch import nn

from wsbench.integrations import mmlab
from wsbench.norms import NormalizedConv2d, SpecError, normalize


def network(conv_cfg: dict[str, Any] | None, norm_cfg: dict[str, Any]) -> nn.Sequential:
    cfgs = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg}
    return nn.Sequential(
        ConvModule(3, 32, 3, padding=1, **cfgs), ConvModule(32, 64, 3, stride=2, padding=1, groups=4, **cfgs),
        ConvModule(64, 64, 1, act_cfg=None, **cfgs), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip


@pytest.mark.parametrize("spec", ["gn+ws", "bn+ws", "gn", "in+ws-af", "gn16+ws@timm", "sn+wn", "ln+ws@authors"])
def test_a_config_is_the_converted_network(spec: str) -> None:
    weight = "+" in spec
    made = network({"type": "WS", "spec": spec} if weight else None, {"type": "wsbench", "spec": spec})
    plain = network(None, {"type": "BN"})
    images = torch.randn(2, 3, 16, 16)
    normalize(plain, spec, example=images)
    assert list(made.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(made.state_dict())
    outputs = [each(images) for each in (made, plain)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    for output in outputs:
        output.square().sum().backward()
    for (name, a), (_, b) in zip(made.named_parameters(), plain.named_parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_registered_by_the_config_alone() -> None:
    """``custom_imports`` imports the module; types are found by their names, of one to three dimensions."""
    conv = build_conv_layer({"type": "WS"}, 8, 16, 3, bias=False)
    assert isinstance(conv, NormalizedConv2d)
    assert build_conv_layer({"type": "WS3d"}, 4, 4, 3)(torch.randn(1, 4, 5, 5, 5)).shape == (1, 4, 3, 3, 3)
    assert build_conv_layer({"type": "WS1d"}, 4, 4, 3)(torch.randn(1, 4, 5)).shape == (1, 4, 3)
    name, norm = build_norm_layer({"type": "wsbench", "spec": "gn+ws", "requires_grad": False}, 64, postfix=1)
    assert (name, norm.num_groups) == ("bn1", 32)
    assert not any(p.requires_grad for p in norm.parameters())


def test_what_is_refused() -> None:
    with pytest.raises(SpecError, match="has no weight normalization"):
        build_conv_layer({"type": "WS", "spec": "gn"}, 8, 16, 3)
    with pytest.raises(SpecError, match="eps"):
        build_norm_layer({"type": "wsbench", "spec": "gn", "eps": 1e-3}, 64)
    with pytest.raises(TypeError, match="momentum"):
        build_norm_layer({"type": "wsbench", "spec": "gn", "momentum": 0.1}, 64)
    assert mmlab.WsbenchNorm._abbr_ == "bn"
