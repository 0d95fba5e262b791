import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from wsbench.norms import (
    BatchNorm,
    FrozenBatchNorm,
    NormalizedLayer,
    NormMismatchError,
    fold,
    normalize,
    require_spec,
    stamp_spec,
)

SPECS = ["gn+ws", "bn+wn", "ln+ws-af", "in+ws@bit", "gn"]


@pytest.mark.parametrize("spec", SPECS)
def test_fold(spec: str) -> None:
    torch.manual_seed(0)
    model = resnet18().double()
    normalize(model, spec)
    model.eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    plain = fold(model)
    assert torch.equal(plain(x), model(x))
    assert not any(isinstance(m, NormalizedLayer) for m in plain.modules())
    assert {type(m) for m in plain.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), "the model stays as it was"
    assert not any("weight_gain" in k for k in plain.state_dict())
    if spec != "gn":
        assert any(isinstance(m, NormalizedLayer) for m in model.modules())


def test_fold_a_shared_layer() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    model = nn.Sequential(conv, nn.GroupNorm(2, 4), conv, nn.GroupNorm(2, 4))
    normalize(model, "gn2+ws")
    plain = fold(model)
    assert plain[0] is plain[2]
    assert type(plain[0]) is nn.Conv2d
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(plain(x), model(x))


def test_guard() -> None:
    checkpoint: dict[str, object] = {"state_dict": {}}
    stamp_spec(checkpoint, "GN+WS")
    require_spec(checkpoint, "gn+ws")
    with pytest.raises(NormMismatchError, match=r"a\.ckpt was trained with 'gn\+ws', the model is 'gn'"):
        require_spec(checkpoint, "gn", "a.ckpt")
    with pytest.raises(NormMismatchError, match="'gn\\+ws@authors'"):
        require_spec(checkpoint, "gn+ws@authors")
    with pytest.raises(NormMismatchError, match="does not say"):
        require_spec({}, "gn")


@pytest.mark.parametrize(
    ("spec", "make"),
    [("bn", resnet18), ("bn+ws", mobilenet_v2), ("bn+wn", resnet18), ("bn+ws@authors", resnet18),
     ("frozenbn+ws", resnet18)],
)  # fmt: skip
def test_bn_is_fused_with_an_example(spec: str, make: Any) -> None:
    """After forwards in training mode, so that the running statistics are those of the features."""
    torch.manual_seed(0)
    model = make(num_classes=7).double()
    x = torch.randn(2, 3, 48, 48, dtype=torch.double)
    normalize(model, spec.replace("frozenbn", "bn"), example=x)
    for m in model.modules():
        if isinstance(m, BatchNorm):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -1, 1)
    for _ in range(12):
        model(x)
    normalize(model, spec, example=x)
    model.eval()
    plain = fold(model, example=x)
    assert not plain.training
    assert not any(isinstance(m, nn.BatchNorm2d | BatchNorm | FrozenBatchNorm) for m in plain.modules())
    torch.testing.assert_close(plain(x), model(x), rtol=1e-9, atol=1e-9)
    assert any(isinstance(m, BatchNorm | FrozenBatchNorm) for m in model.modules()), "the model stays as it was"


class Forked(nn.Module):
    """A convolution whose output is normalized and used as it is as well; and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.forked, self.twice, self.alone = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.forked(x)
        x = self.norms[0](y) + y
        x = self.norms[2](self.twice(self.norms[1](self.twice(x))))
        out: torch.Tensor = self.norms[3](self.alone(x))
        return out


def test_bn_that_cannot_be_fused_is_left() -> None:
    model = Forked().double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.double)
    model(x)
    model.eval()
    plain = fold(model, example=x)
    kinds = [type(m) for m in plain.norms]
    assert kinds == [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm2d, nn.Identity]
    torch.testing.assert_close(plain(x), model(x))


def test_bn_without_running_statistics_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    x = torch.randn(2, 3, 4, 4)
    plain = fold(model, example=x)
    assert isinstance(plain[1], nn.BatchNorm2d)
    torch.testing.assert_close(plain(x), model(x))


def test_a_linear_layer_in_front_of_bn_is_fused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.double)
    model(x)
    plain = fold(model, example=x)
    assert isinstance(plain[1], nn.Identity)
    torch.testing.assert_close(plain(x), model.eval()(x))


def test_bn_over_another_dimension_than_the_linear_layers_is_left() -> None:
    """(N, T, F): BN normalizes T, the layer's outputs are F, and both are 5."""
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).double()
    x = torch.randn(4, 5, 5, dtype=torch.double)
    model(x)
    plain = fold(model, example=x)
    assert isinstance(plain[1], nn.BatchNorm1d)
    torch.testing.assert_close(plain(x), model.eval()(x))


def test_features_that_the_model_returns_stay_what_they_were() -> None:
    class Returned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            features = self.conv(x)
            return {"features": features, "out": self.norm(features)}

    model, x = Returned(), torch.randn(2, 3, 4, 4)
    model(x)
    torch.testing.assert_close(fold(model, example=x)(x), model.eval()(x))
