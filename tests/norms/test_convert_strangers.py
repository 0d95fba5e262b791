"""Conversion of networks that do more than run their layers: raw weights, state, threads, parts that never run."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.norms.test_convert_in_place import Auxiliary, Elsewhere, X
from tests.norms.test_convert_subclasses import Same, network
from wsbench.norms import (
    ConversionError,
    normalize,
)


def test_a_raw_weight_past_the_attribute_is_an_error() -> None:
    class Past(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self._parameters["weight"], self.bias)

    model = network(Past(3, 8, 3, bias=False))
    with pytest.raises(ConversionError, match=r"'0': its raw weight is given to an operation.*exclude=\['0'\]"):
        normalize(model, "gn+ws", X)
    assert type(model[0]) is Past


def test_an_included_layer_that_never_runs_is_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(F.conv2d(x, self.conv.weight))
            return out

    with pytest.raises(ConversionError, match="'conv': its raw weight is given to an operation"):
        normalize(Functional(), "gn+ws", X, include=["conv"])
    attention = nn.TransformerEncoderLayer(8, 2, 16)
    report = normalize(attention, "gn+ws", torch.zeros(3, 2, 8), include=["*out_proj"])
    assert any("included by '*out_proj', but the example does not call it" in note for note in report.notes)


def test_fused_and_named_norms_are_compared_too() -> None:
    class Doubles(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(2 * super().forward(x))

    class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    class Called(nn.BatchNorm2d):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * super().__call__(x)

    for norm in (Doubles(8), FrozenBatchNorm2d(8), Called(8)):
        report = normalize(nn.Sequential(nn.Conv2d(3, 8, 3), norm), "gn", X)
        assert report.activations == ()
        assert "does more than the norm that it is named after" in report.notes[0]


def test_an_input_without_a_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8))
    report = normalize(model, "in", X[0])
    assert report.activations == ()
    assert "without a batch dimension" in report.notes[0]


def test_a_frozen_stage_stays_frozen_where_its_norm_has_no_parameters() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), torchvision.ops.FrozenBatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=False),
        torchvision.ops.FrozenBatchNorm2d(8),
    )  # fmt: skip
    model[0].requires_grad_(False)
    for example in (X, None):
        twin = copy.deepcopy(model)
        normalize(twin, "sn+ws", example)
        assert not any(p.requires_grad for p in twin[1].parameters())
        assert all(p.requires_grad for p in twin[3].parameters())


def test_what_a_forward_leaves_behind_is_put_back() -> None:
    class Leaves(Auxiliary):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ema", torch.zeros(()))
            self.teacher = nn.Linear(2, 2).requires_grad_(False)

        def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
            if self.training:
                self.ema = self.ema + random.random() + float(np.random.rand())
                with torch.no_grad():
                    self.teacher.weight.add_(1)
            return super().forward(x, target)

    model = Leaves()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1), np.random.seed(1)
    normalize(model, "gn+ws", X)
    assert (random.random(), np.random.rand()) == expected
    for name in ("ema", "teacher.weight"):
        assert torch.equal(model.state_dict()[name], state[name])


def test_a_network_without_layers_is_warned_of() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Conv2d(3, 8, 3)]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers[0](x)
            return out

    with pytest.warns(UserWarning, match="found no convolution, linear or normalization layer in Listed"):
        normalize(Listed(), "gn+ws", X)


def test_threads_share_a_converted_subclass() -> None:
    model = network(Same(3, 8, 3, bias=False)).eval()
    normalize(model, "gn8+ws", X)
    with torch.no_grad():
        expected = model(X)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: model(X), range(100)))
    for out in found:
        torch.testing.assert_close(out, expected)


def test_parametrized_behind_and_back_to_plain() -> None:
    model = Elsewhere()
    normalize(model, "gn+ws", X)
    parametrizations.weight_norm(model.conv1)
    with pytest.raises(ConversionError, match=r"'conv1': its weight is computed by a parametrization"):
        normalize(model, "gn")
    model(X)
