"""Networks of other packages: they are those packages' own, converted, trained by the command line, and diagnosed."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from tests import tiny
from wsbench.__main__ import main
from wsbench.models.by_name import LastFeatures, Pyramid, classifier, colours, example
from wsbench.norms import normalize
from wsbench.records import read_record
from wsbench.tasks import COCODetection, ImageNetClassification, SomethingClassification, VOCSegmentation
from wsbench.tasks.errors import TaskOptionError


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("timm:resnet18", lambda: timm.create_model("resnet18", num_classes=7)),
        ("torchvision:mobilenet_v3_small", lambda: torchvision.models.mobilenet_v3_small(num_classes=7)),
        ("torchvision.models:resnet18", lambda: torchvision.models.resnet18(num_classes=7)),
    ],
)
def test_a_classifier_is_the_packages_own(name: str, theirs: Any) -> None:
    ours, expected = classifier(name, 7).eval(), theirs().eval()
    ours.load_state_dict(expected.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), expected(x))
    assert classifier(name, None)(x).shape == (2, 1000), "without a number it has its own classes"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:none", "cannot build 'timm:none': Unknown model"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19'; it has resnet101, "),
        ("no_such_module:build", "cannot import 'no_such_module'.*is it on PYTHONPATH"),
        ("json:loads", "cannot build 'json:loads': loads"),
        ("torch:zeros_like", "cannot build 'torch:zeros_like'"),
        (":x", "is not of the form timm:NAME"),
    ],
)
def test_what_is_no_network_is_refused(name: str, message: str) -> None:
    with pytest.raises(TaskOptionError, match=message):
        ImageNetClassification(norm="gn", network=name, num_classes=3)


def test_auxiliary_heads_are_left_out() -> None:
    network = classifier("torchvision:googlenet", 5).train()
    assert isinstance(network(torch.randn(2, 3, 96, 96)), torch.Tensor)


def test_what_the_package_says_of_its_images() -> None:
    network = classifier("timm:inception_v3", 5)
    assert example(network).shape == (1, 3, 299, 299)
    assert colours(network) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert colours(classifier("torchvision:resnet18", 5)) is None
    task = ImageNetClassification(norm="bn", network="timm:inception_v3", num_classes=5)
    white = {"image": torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)}
    torch.testing.assert_close(task.inputs(white), torch.ones(1, 3, 4, 4))


def test_pretrained_weights_are_those_of_the_networks_own_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name; under another normalization only if that is said, too. Nothing is downloaded here."""
    asked = []
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append(pretrained)
        network = real(name, pretrained=False, **options)
        torch.nn.init.constant_(network.conv1.weight, 0.5)
        return network

    monkeypatch.setattr(timm, "create_model", create)
    kept = ImageNetClassification(norm="bn", network="timm:resnet18", num_classes=3, init_from="pretrained")
    with pytest.raises(TaskOptionError, match=r"own normalization, not under 'gn\+ws'; add --model.init_from_any_norm"):
        ImageNetClassification(norm="gn+ws", network="timm:resnet18", num_classes=3, init_from="pretrained")
    moved = ImageNetClassification(
        norm="gn+ws", network="timm:resnet18", num_classes=3, init_from="pretrained", init_from_any_norm=True
    )
    assert asked == [True] * 3
    for task in (kept, moved):
        assert bool((task.network.conv1.weight == 0.5).all())  # type: ignore[union-attr, operator]
    with pytest.raises(TaskOptionError, match="has no weights of its own"):
        ImageNetClassification(norm="bn", network="torchvision.models:resnet18", init_from="pretrained")


def test_pretrained_backbones_are_and_networks_without_weights_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append(pretrained)
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create)
    named: dict[str, Any] = {"norm": "bn", "num_classes": 3, "init_from": "pretrained"}
    VOCSegmentation(network="deeplabv3_timm:resnet18", **named)
    SomethingClassification(network="tsm_timm:resnet18", **named)
    COCODetection(network="faster_rcnn_timm:resnet18", trainable_layers=5, width=32, head_convs=1, fc_width=32, **named)
    assert asked == [True] * 3
    for task, network in ((ImageNetClassification, "resnet_mini"), (VOCSegmentation, "deeplabv3_resnet_mini")):
        with pytest.raises(
            TaskOptionError, match=f"'{network}' has no weights of its own; that is for networks by name"
        ):
            task(network=network, init_from_any_norm=True, **named)


def test_a_network_of_one_size_says_so(tiny_roots: dict[str, Path]) -> None:
    with pytest.raises(TaskOptionError, match=r"has no layer that 'gn' applies to \(25 normalization layers"):
        ImageNetClassification(norm="gn", network="timm:vit_tiny_patch16_224", num_classes=10)
    task = ImageNetClassification(norm="none", network="timm:vit_tiny_patch16_224", num_classes=10)
    with pytest.raises(
        TaskOptionError, match=r"takes images of 224 x 224 only, the data's are cropped to 32; set --data.c"
    ):
        tiny.trainer(max_steps=1).fit(task, tiny.data("imagenet", tiny_roots["imagenet"]))


# -- backbones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride"), [("timm:resnet18", 16), ("torchvision:resnet50", 8), ("timm:resnet18", None)]
)
def test_last_features(name: str, stride: int | None) -> None:
    body = LastFeatures(name, stride).eval()
    out = body(torch.randn(1, 3, 64, 96))
    assert out.shape == (1, body.out_channels, 64 // (stride or 32), 96 // (stride or 32))
    if name.startswith("torchvision"):
        theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
        body.body.load_state_dict(theirs.state_dict(), strict=False)
        x = torch.randn(1, 3, 64, 64)
        whole = torch.nn.Sequential(*list(theirs.children())[:-2])
        assert torch.equal(body(x), whole(x))


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_a_pyramid_has_five_levels(name: str) -> None:
    maps = Pyramid(name, 32, torch.nn.BatchNorm2d).eval()(torch.randn(1, 3, 128, 128))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(32, s, s) for s in (32, 16, 8, 4, 2)]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (VOCSegmentation, {"network": "deeplabv3_torchvision:resnet18"}, "cannot have output stride 16"),
        (VOCSegmentation, {"network": "deeplabv3_timm:vit_tiny_patch16_224"}, "cannot be a backbone"),
        (VOCSegmentation, {"network": "deeplabv3_torchvision:convnext_tiny"}, "cannot be a backbone; choose timm:NAME"),
        (SomethingClassification, {"network": "tsm_timm:convnext_atto"}, "shift is for ResNets"),
        (COCODetection, {"network": "mask_rcnn_timm:resnet18"}, "nothing can be frozen; set trainable_layers to 5"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(task: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskOptionError, match=message):
        task(norm="gn", num_classes=3, **options)


# -- the command line -----------------------------------------------------------------------------------------------

RUNS = {
    "imagenet": ("my_networks:build", "--data.crop 32 --data.resize 32"),
    "something": ("tsm_timm:resnet18", "--data.crop 32 --data.resize 32 --data.effective_batch 2"),
    "voc": ("deeplabv3_timm:resnet18", "--data.crop 33 --model.aspp_width 32 --data.effective_batch 2"),
    "coco": ("faster_rcnn_torchvision:resnet18", "--model.min_size 64 --model.max_size 96 --model.head_convs 1"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("task", RUNS)
def test_fit_evaluate_and_predict(
    task: str, tiny_roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torchvision.models import resnet18\ndef build(num_classes): return resnet18(num_classes=num_classes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    network, sizes = RUNS[task]
    common = ["--trainer.max_epochs", "1", "--data.min_steps_per_epoch", "1", "--data.num_workers", "0"]
    line = ["fit", "--task", task, "--recipe", "small", "--data.root", str(tiny_roots[task])]
    line += ["--model.network", network, "--trainer.accelerator", "cpu", *common, *sizes.split()]
    assert main(line) == 0
    (folder,) = Path("runs", task).iterdir()
    record = read_record(folder / "result.json")
    assert record.network == network
    assert record.converted["weight"] >= 20
    validate = ["validate", "--ckpt_path", str(folder / "last.ckpt")]
    if task == "imagenet":  # a function of the user's: a run's configuration may name it, and only the user allows it
        assert main(validate) == 2
        validate += ["--model.network", network]
    assert main(validate) == 0


def test_the_doctor_takes_the_same_names(capsys: pytest.CaptureFixture[str]) -> None:
    """The example is its own; checks that were not made are counted, not passed over."""
    status = main(["analyze", "diagnose", "timm:resnet18", "--norm", "gn+ws", "--micro_batch", "1"])
    out = capsys.readouterr().out
    assert status == 0
    assert "checks were not made, see above" in out
    assert "0 findings;" in out
    assert "example" not in out, "none is asked for"


def test_conversion_is_normalizes(tiny_roots: dict[str, Path]) -> None:
    network = classifier("torchvision:resnet18", 10)
    report = normalize(network, "gn+ws", example(network))
    task = ImageNetClassification(norm="gn+ws", network="torchvision:resnet18", num_classes=10)
    assert task.norm_report.counts() == report.counts()
    assert set(tiny.TASKS) >= set(RUNS)
