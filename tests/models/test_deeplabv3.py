"""The paper's DeepLabv3 against torchvision's backbone and an ASPP written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50, resnet101

from wsbench.models.deeplabv3 import DeepLabV3
from wsbench.models.resnet import ResNetFeatures
from wsbench.norms import normalize


@pytest.fixture(scope="module")
def r101() -> DeepLabV3:
    return DeepLabV3("resnet101", 21)


def test_counts_of_the_paper(r101: DeepLabV3) -> None:
    assert round(sum(p.numel() for p in r101.parameters()) / 1e6, 2) == 58.04
    model = DeepLabV3("resnet101", 21)
    report = normalize(model, "gn+ws", torch.zeros(1, 3, 65, 65))
    assert len(report.weight_normalized) == 110
    assert report.plain == ("classifier",)
    assert not report.notes
    assert len(normalize(DeepLabV3("resnet101", 21), "gn+ws").weight_normalized) == 110, "bias=False says the same"


def test_backbone_is_torchvisions_at_stride_16(r101: DeepLabV3) -> None:
    theirs = resnet101(replace_stride_with_dilation=[False, False, True])
    del theirs.fc
    assert sum("num_batches" not in k for k in theirs.state_dict()) == 520
    r101.backbone.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 65, 65)
    features = r101.backbone.eval()(x)
    theirs.eval()
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = getattr(theirs, name)(x)
    assert torch.equal(features, x)


def test_shapes_513_to_33_to_513() -> None:
    model = DeepLabV3("resnet50", 21).eval()
    seen = []
    model.backbone.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 513, 513)).shape == (1, 21, 513, 513)
    assert seen == [(1, 2048, 33, 33)]


def test_dilations_of_layer4(r101: DeepLabV3) -> None:
    blocks = [b.conv2 for b in r101.backbone.layer4]
    assert [c.dilation for c in blocks] == [(1, 1), (2, 2), (2, 2)]
    assert all(c.stride == (1, 1) for c in blocks)


def test_momenta(r101: DeepLabV3) -> None:
    def momenta(module: nn.Module) -> set[float | None]:
        return {m.momentum for m in module.modules() if isinstance(m, nn.BatchNorm2d)}

    assert momenta(r101.backbone) == {0.05}
    assert momenta(r101.aspp) == {0.0003}


def test_head_by_hand() -> None:
    """ASPP, projection, classifier and upsampling from functional operations on the same weights."""
    torch.manual_seed(0)
    model = DeepLabV3("resnet_mini", 5, rates=(2, 3, 5), width=8).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    x = torch.randn(2, 3, 65, 49, dtype=torch.double)
    features = model.backbone(x)
    state = dict(model.state_dict())

    def unit(h: torch.Tensor, prefix: str, index: int, **conv: int) -> torch.Tensor:
        h = F.conv2d(h, state[f"{prefix}.{index}.weight"], **conv)  # type: ignore[arg-type]
        bn = f"{prefix}.{index + 1}"
        return F.relu(
            h * state[f"{bn}.weight"].view(1, -1, 1, 1) / (1 + 1e-5) ** 0.5 + state[f"{bn}.bias"].view(1, -1, 1, 1)
        )

    parts = [unit(features, "aspp.branches.0", 0)]
    parts += [unit(features, f"aspp.branches.{i}", 0, padding=r, dilation=r) for i, r in enumerate((2, 3, 5), 1)]
    pooled = unit(features.mean((2, 3), keepdim=True), "aspp.pooling", 1)
    parts.append(pooled.expand(-1, -1, *features.shape[2:]))
    joined = unit(torch.cat(parts, 1), "aspp.project", 0)
    logits = F.conv2d(joined, state["classifier.weight"], state["classifier.bias"])
    torch.testing.assert_close(model(x), F.interpolate(logits, (65, 49), mode="bilinear", align_corners=True))


def test_keys_of_the_backbone_are_torchvisions() -> None:
    keys = set(resnet50().state_dict()) - {"fc.weight", "fc.bias"}
    assert set(ResNetFeatures((3, 4, 6, 3)).state_dict()) == keys


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="'vgg'; choose from resnet50, resnet101"):
        DeepLabV3("vgg", 21)
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32"):
        DeepLabV3("resnet50", 21, output_stride=4)
