"""mmsegmentation's networks as an alternative source."""

import sys

import pytest
import torch

from wsbench.models.mmseg import MissingPartError, MMSegNetwork
from wsbench.norms import normalize


def test_missing_part_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmseg.registry", None)
    with pytest.raises(MissingPartError, match="scripts/install-mmseg"):
        MMSegNetwork("deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512", 21)


CONFIGS = {
    "deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512": ("decode_head.conv_seg",),
    "deeplabv3plus/deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512": ("decode_head.conv_seg",),
    "danet/danet_r50-d8_4xb4-20k_voc12aug-512x512": ("decode_head.pam_conv_seg", "decode_head.conv_seg"),
    "ocrnet/ocrnet_hr18_4xb4-20k_voc12aug-512x512": ("decode_head.0.conv_seg", "decode_head.1.conv_seg"),
}


@pytest.mark.mmseg
@pytest.mark.parametrize("config", CONFIGS)
def test_a_voc_model_turned_over(config: str) -> None:
    pytest.importorskip("mmseg", reason="run scripts/install-mmseg")
    model = MMSegNetwork(config, 21).eval()
    x = torch.randn(1, 3, 64, 64)
    report = normalize(model, "gn+ws", x)
    for classifier in CONFIGS[config]:
        assert f"network.{classifier}" in report.plain
    assert not report.kept
    assert len(report.weight_normalized) > 50
    out = model(x)
    assert out.shape == (1, 21, 64, 64)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.network.backbone.parameters())


@pytest.mark.mmseg
def test_a_model_of_pictures_and_words_is_refused() -> None:
    pytest.importorskip("mmseg", reason="run scripts/install-mmseg")
    with pytest.raises(ValueError, match="no encoder and decoder"):
        MMSegNetwork("san/san-vit-b16_voc12aug-640x640", 21)


@pytest.mark.mmseg
def test_unknown_config_names_the_nearest() -> None:
    pytest.importorskip("mmseg", reason="run scripts/install-mmseg")
    with pytest.raises(ValueError, match="nearest: deeplabv3/deeplabv3_r50"):
        MMSegNetwork("deeplabv3/deeplabv3_r50-d8", 21)
