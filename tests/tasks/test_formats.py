"""Published checkpoints, written here in their formats, loaded into the semantics they were trained with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50

from wsbench.models.resnet import ResNetClassifier
from wsbench.norms import NormMismatchError
from wsbench.tasks.errors import TaskOptionError
from wsbench.tasks.formats import read_checkpoint
from wsbench.tasks.imagenet import ImageNetClassification

ConvWS2d = pytest.importorskip("mmcv.cnn.bricks.conv_ws").ConvWS2d

PICTURE = torch.randn(1, 3, 64, 64)


def authors_resnet50() -> nn.Module:
    """torchvision's ResNet-50 with GroupNorm(32) and the authors' weight standardization (mmcv's is theirs)."""
    network = resnet50(norm_layer=lambda c: nn.GroupNorm(32, c), num_classes=7)
    for module in list(network.modules()):
        for name, conv in list(module.named_children()):
            if isinstance(conv, nn.Conv2d):
                sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
                new = ConvWS2d(*sizes, bias=False)
                new.weight = conv.weight
                setattr(module, name, new)
    return network.eval()


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """Their ``.pth.tar``: written by an old torch, DataParallel's prefix, the optimizer's state; and its logits."""
    torch.manual_seed(0)
    network = authors_resnet50()
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9).state_dict()
    content = {"epoch": 90, "state_dict": state, "acc": 76.28, "best_acc": 76.3, "optimizer": optimizer}
    path = tmp_path_factory.mktemp("authors") / "R-50-GN-WS.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path, network(PICTURE).detach()


def imagenet(norm: str, source: str | Path, **options: Any) -> ImageNetClassification:
    options = {"network": "resnet50", "num_classes": 7} | options
    return ImageNetClassification(norm=norm, init_from=str(source), **options).eval()


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return float((ours - theirs).detach().abs().max() / theirs.std()) < tolerance


def test_the_authors_checkpoints(authors_file: tuple[Path, Tensor]) -> None:
    path, logits = authors_file
    task = imagenet("gn+ws@authors", f"gn+ws@authors={path}")
    assert close(task(PICTURE), logits, 1e-4)
    other = imagenet("gn+ws@timm", f"gn+ws@timm={path}")
    assert not close(other(PICTURE), logits, 1e-4), "the semantics matter"


def test_a_file_that_does_not_say_its_norm_is_refused(authors_file: tuple[Path, Tensor]) -> None:
    path, _ = authors_file
    with pytest.raises(NormMismatchError, match=r"does not say which normalization.*say gn\+ws@authors=CHECKPOINT"):
        imagenet("gn+ws@authors", path)
    with pytest.raises(NormMismatchError, match=r"trained with 'gn\+ws@authors', the model is 'gn\+ws'"):
        imagenet("gn+ws", f"gn+ws@authors={path}")


def test_another_number_of_classes_keeps_its_own_classifier(authors_file: tuple[Path, Tensor]) -> None:
    task = imagenet("gn+ws@authors", f"gn+ws@authors={authors_file[0]}", num_classes=5)
    assert isinstance(task.network, ResNetClassifier)
    assert task.network.fc.out_features == 5


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("name", "norm"), [("resnet50", "bn"), ("resnet50_gn", "gn")])
def test_timms_resnets(name: str, norm: str, suffix: str, tmp_path: Path) -> None:
    theirs = timm.create_model(name, num_classes=7).eval()
    path = tmp_path / f"{name}{suffix}"
    save_file(theirs.state_dict(), path) if suffix == ".safetensors" else torch.save(theirs.state_dict(), path)
    assert close(imagenet(norm, f"{norm}={path}")(PICTURE), theirs(PICTURE), 1e-4)


def test_timms_standardized_resnet(tmp_path: Path) -> None:
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=7).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "x.pth")
    task = imagenet("gn+ws@timm", f"gn+ws@timm={tmp_path / 'x.pth'}", network="resnetv2_50x1")
    assert close(task(PICTURE), theirs(PICTURE), 1e-2)


def big_transfer_arrays() -> dict[str, np.ndarray]:
    """BiT-M-R50x1 in its own names and its own order of dimensions, random."""
    rng = np.random.default_rng(0)

    def kernel(height: int, width: int, inputs: int, outputs: int) -> np.ndarray:
        return rng.normal(0, 0.3, (height, width, inputs, outputs)).astype(np.float32)

    def norm(channels: int, prefix: str) -> dict[str, np.ndarray]:
        return {f"{prefix}/{n}": rng.normal(n == "gamma", 0.1, channels).astype(np.float32) for n in ("gamma", "beta")}

    arrays = {"resnet/root_block/standardized_conv2d/kernel": kernel(7, 7, 3, 64)}
    inputs = 64
    for block, units in enumerate((3, 4, 6, 3), start=1):
        outputs = 128 * 2**block
        middle = outputs // 4
        for unit in range(1, units + 1):
            place = f"resnet/block{block}/unit{unit:02d}"
            sizes = {"a": (1, 1, inputs, middle), "b": (3, 3, middle, middle), "c": (1, 1, middle, outputs)}
            for letter, size in sizes.items():
                arrays[f"{place}/{letter}/standardized_conv2d/kernel"] = kernel(*size)
                arrays |= norm(size[2], f"{place}/{letter}/group_norm")
            if unit == 1:
                arrays[f"{place}/a/proj/standardized_conv2d/kernel"] = kernel(1, 1, inputs, outputs)
            inputs = outputs
    arrays |= norm(2048, "resnet/group_norm")
    arrays["resnet/head/conv2d/kernel"] = kernel(1, 1, 2048, 7)
    arrays["resnet/head/conv2d/bias"] = rng.normal(size=7).astype(np.float32)
    return arrays


def test_big_transfers_npz_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "BiT-M-R50x1.npz"
    np.savez(path, **big_transfer_arrays())
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=7).eval()
    theirs.load_pretrained(str(path))
    task = imagenet("gn+ws@bit", path, network="resnetv2_50x1")  # its spec is known
    state, expected = task.network.state_dict(), theirs.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert close(task(PICTURE), theirs(PICTURE), 1e-3)
    with pytest.raises(NormMismatchError, match=r"trained with 'gn\+ws@bit'"):
        imagenet("gn+ws", path, network="resnetv2_50x1")


def test_files_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "half.npz", **{"resnet/group_norm/gamma": np.zeros(3)})
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    (tmp_path / "broken.pth.tar").write_bytes(b"no")
    for name, message in (("other.npz", "'weights' is no array of a Big Transfer ResNet"),
                          ("half.npz", "it has no 'resnet/root_block"), ("broken.npz", "is not a checkpoint"),
                          ("broken.safetensors", "is not a checkpoint"),
                          ("broken.pth.tar", "is not a checkpoint")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / name)
        with pytest.raises(TaskOptionError, match=r"--model.init_from"):
            imagenet("gn+ws@bit", tmp_path / name, network="resnetv2_50x1")
    with pytest.raises(FileNotFoundError, match="give a checkpoint, SPEC=CHECKPOINT, or 'torchvision'"):
        imagenet("gn", "gn=nowhere.pth")
    torch.save({"state_dict": {}, "norm_spec": "bn"}, tmp_path / "bn.pth")
    with pytest.raises(TaskOptionError, match=r"you say that .* is 'gn', and it says itself that it is 'bn'"):
        imagenet("gn", f"gn={tmp_path / 'bn.pth'}")
