"""LoRA adapters on converted networks (peft); docs/norms.md says the same."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.norms.test_transforms import images, net
from wsbench.norms import fold

pytestmark = pytest.mark.thorough


def lora(model: nn.Module, *names: str) -> Any:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    config = peft.LoraConfig(r=2, target_modules=list(names), init_lora_weights=False)
    torch.manual_seed(3)
    return peft.get_peft_model(model, config)


def test_lora_on_a_folded_network() -> None:
    """The adapter alone trains, and is merged exactly."""
    model, x = net("gn+ws").eval(), images()
    adapted = lora(fold(model), "body.0", "hidden").double().eval()
    conv = adapted.base_model.model.body[0]
    expected = model.body[0](x) + conv.lora_B["default"](conv.lora_A["default"](x)) * conv.scaling["default"]
    torch.testing.assert_close(conv(x), expected)
    adapted(x).sum().backward()
    assert conv.base_layer.weight.grad is None
    assert conv.lora_A["default"].weight.grad is not None
    before = adapted(x)
    torch.testing.assert_close(adapted.merge_and_unload()(x), before)


def test_lora_on_a_network_that_is_not_folded() -> None:
    """Convolutions are refused. A linear layer adapts, but merging adds to a weight that is standardized behind it."""
    with pytest.raises(TypeError, match=r"NormalizedConv2d needs spec=.*LoRA.*fold\(model\)"):
        lora(net("gn+ws"), "body.0")
    model, x = net("gn+ws").eval(), images()
    own = copy.deepcopy(model)
    adapted = lora(model, "hidden").double().eval()
    linear, h = adapted.base_model.model.hidden, torch.randn(4, 16, dtype=torch.double)
    expected = own.hidden(h) + linear.lora_B["default"](linear.lora_A["default"](h)) * linear.scaling["default"]
    torch.testing.assert_close(linear(h), expected)
    before = adapted(x)
    assert not torch.allclose(adapted.merge_and_unload()(x), before, rtol=1e-3, atol=1e-4), "docs/norms.md says so"
