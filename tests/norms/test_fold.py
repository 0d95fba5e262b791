import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from wsbench.norms import NormalizedLayer, NormMismatchError, fold, normalize, require_spec, stamp_spec

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
