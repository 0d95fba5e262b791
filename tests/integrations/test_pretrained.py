"""Weights as a folder: written, read back by anybody, refused where they do not belong."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from tests.running import fit, only_run
from wsbench.__main__ import main
from wsbench.integrations import PretrainedError, from_pretrained, save_pretrained
from wsbench.norms import NormMismatchError, SpecError, normalize

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(0)
    model = resnet18(num_classes=4)
    normalize(model, "gn+ws", example=IMAGES)
    return model.eval(), save_pretrained(model, tmp_path / "mine", "gn+ws", network="resnet18", classes=["a", "b"])


def test_what_is_saved_is_what_is_loaded(saved: tuple[torch.nn.Module, Path]) -> None:
    model, folder = saved
    other = resnet18(num_classes=4)
    report = from_pretrained(other, folder, example=IMAGES)
    assert len(report.weight_normalized) == 20
    assert torch.equal(other.eval()(IMAGES), model(IMAGES))
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert json.loads((folder / "config.json").read_text())["network"] == "resnet18"
    plain = load_file(folder / "model.safetensors")  # without wsbench
    assert plain.keys() == resnet18(norm_layer=lambda c: torch.nn.GroupNorm(32, c), num_classes=4).state_dict().keys()


def test_from_the_hub(saved: tuple[torch.nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = saved
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setattr("wsbench.integrations.pretrained.huggingface_hub", lambda: hub)
    other = resnet18(num_classes=4)
    from_pretrained(other, "somebody/mine", example=IMAGES, revision="v1")
    assert torch.equal(other.eval()(IMAGES), model(IMAGES))
    assert (asked["name"], asked["revision"]) == ("somebody/mine", "v1")
    assert asked["allow_patterns"] == ["model.safetensors", "config.json"]  # nothing else is fetched


def test_what_is_refused(saved: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    _, folder = saved
    with pytest.raises(PretrainedError, match="is no folder, nor a repository"):
        from_pretrained(resnet18(), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PretrainedError, match=r"has no model\.safetensors"):
        from_pretrained(resnet18(), tmp_path / "empty")
    with pytest.raises(PretrainedError, match="do not fit the network"):
        from_pretrained(resnet18(num_classes=7), folder, example=IMAGES)
    with pytest.raises(PretrainedError, match=r"config\.json"):
        save_pretrained(resnet18(), tmp_path / "x", "bn", what=object())
    with pytest.raises(SpecError):
        save_pretrained(resnet18(), tmp_path / "x", "gn+wz")
    assert not (tmp_path / "x").exists()
    (folder / "config.json").write_text('{"norm_spec": "gn"}')
    with pytest.raises(PretrainedError, match=r"says that it is 'gn\+ws', config\.json that it is 'gn'"):
        from_pretrained(resnet18(num_classes=4), folder, example=IMAGES)
    (folder / "config.json").write_text("{")
    with pytest.raises(PretrainedError, match="is not JSON"):
        from_pretrained(resnet18(num_classes=4), folder, example=IMAGES)
    (folder / "config.json").unlink()
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")  # says no specification
    with pytest.raises(NormMismatchError, match="does not say which normalization"):
        from_pretrained(resnet18(num_classes=4), folder, example=IMAGES)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(PretrainedError, match="is not a safetensors file"):
        from_pretrained(resnet18(num_classes=4), folder, example=IMAGES)


def test_a_run_is_exported_and_another_starts_from_it(
    tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tiny_roots["voc"]
    assert fit(root, "--trainer.max_steps", "1", "--norm", "gn+ws") == 0
    run = only_run()
    assert main(["export", "--ckpt_path", str(run / "last.ckpt"), "--format", "safetensors", "--output", "w"]) == 0
    assert "wrote w/model.safetensors and w/config.json" in capsys.readouterr().out
    trained = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    stored = load_file("w/model.safetensors")
    assert {f"network.{name}" for name in stored} == trained.keys()
    assert all(torch.equal(value, trained[f"network.{name}"]) for name, value in stored.items())
    assert fit(root, "--trainer.max_steps", "1", "--norm", "gn", "--model.init_from", "w") == 2
    assert "was trained with 'gn+ws', the model is 'gn'" in capsys.readouterr().err
    assert fit(root, "--trainer.max_steps", "1", "--norm", "gn+ws", "--model.init_from", "w") == 0
