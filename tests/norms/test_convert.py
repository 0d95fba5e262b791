"""``normalize`` on models of torchvision and timm: what is and what is not converted, by name."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torchvision.models import densenet121, get_model, resnet18, resnet50
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.models.segmentation import deeplabv3_resnet101

from wsbench.norms import (
    ACTIVATIONS,
    BatchNorm,
    FanInError,
    GroupNorm,
    GroupsError,
    InstanceNorm,
    NormalizedConv2d,
    NormalizedConvTranspose2d,
    NormalizedLinear,
    PatternError,
    SwitchNorm,
    normalize,
)
from wsbench.norms.registry import ActivationMethod

IMAGE = torch.zeros(1, 3, 64, 64)


def convolutions(model: nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("example", [IMAGE, None])
def test_resnets(name: str, example: torch.Tensor | None) -> None:
    model = get_model(name)
    keys = {k: v.shape for k, v in model.state_dict().items() if "running" not in k and "tracked" not in k}
    report = normalize(model, "gn+ws", example)
    assert set(report.weight_normalized) == convolutions(model)
    assert len(report.weight_normalized) == 53
    assert report.plain == ("fc",)
    assert len(report.activations) == 53
    assert {k: v.shape for k, v in model.state_dict().items()} == keys
    assert all(m.num_groups == 32 for m in model.modules() if isinstance(m, GroupNorm))
    assert not report.notes


def test_torchvision_deeplab() -> None:
    model = deeplabv3_resnet101(weights=None, weights_backbone=None, aux_loss=True)
    report = normalize(model, "gn+ws", IMAGE)
    assert report.plain == ("classifier.4", "aux_classifier.4")
    assert len(report.weight_normalized) == 104 + 7 + 1


def test_torchvision_mask_rcnn() -> None:
    model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, min_size=64)
    report = normalize(model, "gn+ws", [torch.rand(3, 64, 64)])
    assert set(report.plain) == {
        "rpn.head.conv.0.0", "rpn.head.conv.1.0", "rpn.head.cls_logits", "rpn.head.bbox_pred",
        "roi_heads.box_head.5", "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.conv5_mask", "roi_heads.mask_predictor.mask_fcn_logits",
    }  # fmt: skip
    parts = [n.split(".")[0] + "." + n.split(".")[1] for n in report.weight_normalized]
    assert {p: parts.count(p) for p in parts} == {
        "backbone.body": 53, "backbone.fpn": 8, "roi_heads.box_head": 4, "roi_heads.mask_head": 4}  # fmt: skip


def test_timm_resnet50() -> None:
    report = normalize(timm.create_model("resnet50"), "gn+ws", IMAGE)
    assert (len(report.weight_normalized), report.plain) == (53, ("fc",))


def test_timm_efficientnet() -> None:
    model = timm.create_model("efficientnet_b0")
    blocks = [n for n, m in model.named_modules() if type(m).__name__ in ("InvertedResidual", "DepthwiseSeparableConv")]
    report = normalize(model, "gn+ws", IMAGE)
    excitation = {f"{b}.se.{c}" for b in blocks for c in ("conv_reduce", "conv_expand")}
    assert set(report.plain) == excitation | {"classifier"}
    assert len(report.weight_normalized) == 49
    assert "blocks.1.0.bn3: note: 32 does not divide 24 channels, 24 groups" in report.notes
    assert isinstance(model.bn1, nn.Sequential)
    assert isinstance(model.bn1[-1], nn.SiLU), "timm's fused activation must survive"
    with pytest.raises(GroupsError, match=r"blocks.0.0.bn2.*32 groups do not divide 16 channels"):
        normalize(timm.create_model("efficientnet_b0"), "gn32+ws", IMAGE)


def test_timm_convnext() -> None:
    model = timm.create_model("convnext_tiny")
    report = normalize(model, "gn+ws", IMAGE)
    depthwise = {n for n, m in model.named_modules() if n.endswith("conv_dw")}
    assert set(report.weight_normalized) == depthwise | {"stem.0"}
    assert set(report.kept) == {n.replace("conv_dw", "norm") for n in depthwise}, "LayerNorm over the last dimension"
    assert set(report.activations) == {"stem.1", "head.norm"} | {f"stages.{i}.downsample.0" for i in (1, 2, 3)}
    assert {"stages.1.downsample.1", "stages.0.blocks.0.mlp.fc1", "head.fc"} <= set(report.plain)


def test_only_what_a_norm_consumes_directly() -> None:
    report = normalize(densenet121(), "gn+ws", IMAGE)
    assert "features.denseblock1.denselayer1.conv1" in report.weight_normalized
    assert "features.denseblock1.denselayer1.conv2" in report.plain, "it is concatenated before the next norm"


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu_first = nn.Conv2d(4, 4, 1, bias=False)
        self.norm2 = nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.norm3 = nn.InstanceNorm2d(4, affine=True)
        self.unused = nn.Conv2d(4, 4, 1, bias=False)
        self.fc = nn.Linear(4, 4)
        self.norm4 = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.shared(self.shared(x)))
        x = self.norm2(self.relu_first(x).relu_())
        x = self.norm3(nn.functional.dropout(self.up(x), training=self.training))
        return self.norm4(self.fc(x.mean((2, 3))))


def test_odd_wirings() -> None:
    model = Odd()
    report = normalize(model, "gn+ws", torch.randn(2, 4, 8, 8))
    assert isinstance(model.shared, NormalizedConv2d)
    assert isinstance(model.up, NormalizedConvTranspose2d)
    assert isinstance(model.fc, NormalizedLinear)
    assert type(model.relu_first) is nn.Conv2d, "an in-place activation stands between"
    assert type(model.unused) is nn.Conv2d
    assert "unused: note: the example does not reach it" in report.notes
    assert "relu_first" in str(report)


def test_degenerate_cells_are_reported() -> None:
    class Pooled(nn.Sequential):
        pass

    model = Pooled(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    for spec, words in [("in", "affine map only"), ("bn", "running statistics"), ("gn", "affine map only")]:
        report = normalize(copy.deepcopy(model), spec, torch.zeros(1, 3, 8, 8))
        assert any(words in note for note in report.notes), spec
    assert not normalize(copy.deepcopy(model), "gn4", torch.zeros(1, 3, 8, 8)).notes


def test_include_and_exclude() -> None:
    report = normalize(resnet18(), "gn+ws", IMAGE, include=["fc"], exclude=["layer4.*", "bn1"])
    assert "fc" in report.weight_normalized
    assert not any(n.startswith("layer4") for n in (*report.weight_normalized, *report.activations))
    assert "bn1" in report.kept
    with pytest.raises(PatternError, match="'layer9"):
        normalize(resnet18(), "gn+ws", IMAGE, exclude=["layer9.*"])


def test_nothing_changes_when_something_raises() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, groups=8, bias=False), nn.BatchNorm2d(8)
    )
    before = repr(model)
    with pytest.raises(FanInError, match=r"layer '2'.*exclude=\['2'\]"):
        normalize(model, "gn+ws")
    assert repr(model) == before
    assert normalize(model, "gn+ws", exclude=["2"]).weight_normalized == ("0",)


def test_turning_over_again_and_back() -> None:
    torch.manual_seed(0)
    model = resnet18()
    for p in model.parameters():
        p.data.normal_(std=0.05)
    original = copy.deepcopy(model).eval()
    x = torch.randn(2, 3, 64, 64)
    for spec in ("gn+ws", "sn+wn", "none+ws-af", "in", "ln+ws@timm", "bn"):
        report = normalize(model, spec, x)
        assert len(report.activations) == 20
        assert len(report.weight_normalized) == (20 if "+" in spec else 0)
    assert list(model.state_dict()) == list(original.state_dict())
    fresh = copy.deepcopy(original)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model.eval()(x))


def test_affine_parameters_statistics_mode_and_dtype_are_kept() -> None:
    model = resnet18(zero_init_residual=True).double().eval()
    model.bn1.running_mean.fill_(3)
    model.bn1.momentum, model.bn1.eps = 0.0003, 1e-3
    model.layer1[0].bn1.weight.requires_grad_(False)
    bn = copy.deepcopy(model)
    normalize(bn, "bn+ws", IMAGE.double())
    assert isinstance(bn.bn1, BatchNorm)
    assert (bn.bn1.momentum, bn.bn1.eps, float(bn.bn1.running_mean[0])) == (0.0003, 1e-3, 3.0)
    normalize(model, "gn", IMAGE.double())
    assert isinstance(model.layer1[0].bn2, GroupNorm)
    assert not model.layer1[0].bn2.weight.any(), "a zero-initialized gamma stays zero"
    assert not model.layer1[0].bn1.weight.requires_grad
    assert model.bn1.weight.dtype == torch.double
    assert not model.bn1.training


def test_the_example_changes_no_mode_and_no_statistic() -> None:
    model = resnet18().train()
    model.layer1.eval()
    state = copy.deepcopy(model.state_dict())
    normalize(model, "bn", torch.randn(2, 3, 64, 64))
    assert model.training
    assert not model.layer1[0].bn1.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model.conv1._forward_hooks


def test_batch_norm_without_affine_stays_without() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False))
    normalize(model, "bn+ws")
    assert [n for n, _ in model.named_parameters()] == ["0.weight"]
    assert model(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_what_changes_besides_the_kind_is_noted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 8), nn.BatchNorm2d(24, eps=1e-3))
    (note,) = normalize(model, "gn24", torch.zeros(1, 3, 8, 8)).notes
    assert "eps 0.001 becomes 1e-05" in note
    assert "one value a statistic" in note


def test_a_registered_method_is_all_it_takes() -> None:
    """CONTRIBUTING.md's example: converted to, and from again."""

    class RMSNorm(nn.Module):
        """Root mean square."""

        def __init__(self, num_features: int) -> None:
            super().__init__()
            self.num_features = num_features
            self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))

        @classmethod
        def from_channels(cls, channels: int, groups: int | None) -> "RMSNorm":
            return cls(channels)

        def values_per_statistic(self, shape: torch.Size) -> int:
            return shape[1:].numel()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.square().mean((1, 2, 3), keepdim=True) + 1e-5) * self.weight.view(1, -1, 1, 1)

    ACTIVATIONS.add("somerms", ActivationMethod(RMSNorm, "root mean square"))
    try:
        model = resnet18()
        assert len(normalize(model, "somerms+ws", IMAGE).activations) == 20
        assert isinstance(model.bn1, RMSNorm)
        report = normalize(model, "gn+ws", IMAGE)
        assert (len(report.activations), len(report.weight_normalized), report.kept) == (20, 20, ())
    finally:
        ACTIVATIONS.remove("somerms")


def test_frozen_batch_norm() -> None:
    model = get_model("resnet18", norm_layer=__import__("torchvision").ops.FrozenBatchNorm2d)
    report = normalize(model, "sn", IMAGE)
    assert isinstance(model.bn1, SwitchNorm)
    assert len(report.activations) == 20


def test_unknown_subclasses_are_left_and_named() -> None:
    class MyConv(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    class MyNorm(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    class Renamed(nn.BatchNorm2d):
        pass

    assert normalize(nn.Sequential(nn.Conv2d(3, 8, 3), Renamed(8)), "gn").activations == ("1",)
    model = nn.Sequential(MyConv(3, 8, 3), MyNorm(8))
    report = normalize(model, "gn+ws", torch.zeros(1, 3, 8, 8))
    assert (report.weight_normalized, report.activations) == ((), ())
    assert len(report.notes) == 2


def test_a_converted_model_is_an_ordinary_module() -> None:
    model = resnet18()
    normalize(model, "in+ws", IMAGE)
    assert isinstance(model.bn1, InstanceNorm)
    twin = pickle.loads(pickle.dumps(model))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(twin(x), model(x))


def test_a_layer_itself_is_refused() -> None:
    with pytest.raises(TypeError, match="wrap it"):
        normalize(nn.Conv2d(3, 8, 3, bias=False), "gn+ws")


def test_logits_are_an_independent_standardization_of_torchvisions() -> None:
    """R50 GN+WS: standardize the weights of a plain GN ResNet-50 by torch.std; same logits."""
    torch.manual_seed(0)
    plain = resnet50(norm_layer=lambda c: nn.GroupNorm(32, c)).double()
    model = copy.deepcopy(plain)
    normalize(model, "gn+ws", IMAGE.double())
    with torch.no_grad():
        for conv in (m for m in plain.modules() if isinstance(m, nn.Conv2d)):
            w = conv.weight
            conv.weight.copy_(
                (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), correction=0, keepdim=True) + 1e-5)
            )
    x = torch.randn(1, 3, 64, 64, dtype=torch.double)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-10, atol=1e-10)
