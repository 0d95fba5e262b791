"""Which checkpoint a norm with another one's state starts from."""

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from wsbench.norms import NormMismatchError, NormSpec, normalize, stamp_spec
from wsbench.tasks.initialize import load_backbone

IMAGE = torch.randn(2, 3, 32, 32)


def network(spec: str) -> torch.nn.Module:
    model = resnet18(num_classes=3)
    normalize(model, spec, IMAGE)
    return model


def checkpoint(spec: str, path: Path) -> str:
    model = network(spec)
    model.bn1.running_mean.fill_(3)
    model.bn1.num_batches_tracked.fill_(70_000)
    content = {"state_dict": {f"network.{k}": v for k, v in model.state_dict().items()}}
    stamp_spec(content, spec)
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("spec", ["gbn4", "gbn4+ws", "gbn", "brn", "syncbn+ws", "frozenbn"])
def test_from_bn_and_from_itself(spec: str, tmp_path: Path) -> None:
    weight = spec.partition("+")[1:]
    for source in ("bn" + "".join(weight), spec):
        model = network(spec)
        load_backbone(model, checkpoint(source, tmp_path / "x.ckpt"), NormSpec.parse(spec), False)
        assert bool((model.bn1.running_mean == 3).all())
        if spec == "brn":  # whose schedule begins with the run
            assert int(model.bn1.num_batches_tracked) == 0
    with pytest.raises(NormMismatchError):
        load_backbone(network(spec), checkpoint("bn+wn", tmp_path / "x.ckpt"), NormSpec.parse(spec), False)


@pytest.mark.parametrize("spec", ["evos", "frn+sws", "evob", "bcn", "mabn8", "cln+spectral", "gn+cwn"])
def test_from_any_norm_everything_but_what_only_the_norm_has(spec: str, tmp_path: Path) -> None:
    path = checkpoint("bn", tmp_path / "x.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    model = network(spec)
    own = {k: v.clone() for k, v in model.state_dict().items()}
    load_backbone(model, path, NormSpec.parse(spec), True)
    for name, value in model.state_dict().items():
        expected = state.get(f"network.{name}", own[name])
        if name.endswith(("weight_gain", "weight_u")):
            continue  # those that keep the function of the loaded weights
        if expected.shape == value.shape:
            assert torch.equal(value, expected) or name.endswith("num_batches_tracked"), name
