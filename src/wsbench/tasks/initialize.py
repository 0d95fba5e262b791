"""Starting a network from a checkpoint of another task, under the same normalization."""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from wsbench.norms import NormSpec, require_spec, stamp_spec


def _torchvision(backbone: nn.Module) -> dict[str, Any]:
    """Torchvision's ImageNet V1 weights (BN) for a ResNet of this size, which the paper's BN rows start from."""
    blocks = sum(1 for name, _ in backbone.named_modules() if name.endswith(".conv3"))
    names = {16: "resnet50", 33: "resnet101"}
    if blocks not in names:
        raise ValueError(f"torchvision has no ImageNet weights for a bottleneck ResNet of {blocks} blocks")
    weights = get_model_weights(names[blocks])["IMAGENET1K_V1"]
    checkpoint: dict[str, Any] = {"state_dict": weights.get_state_dict(progress=True, check_hash=True)}
    stamp_spec(checkpoint, "bn")
    return checkpoint


def _backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a state dict: ``network.backbone.*``, or a whole classifier without its ``fc``."""
    plain = {key.removeprefix("module.").removeprefix("network."): value for key, value in state.items()}
    inner = {key.removeprefix("backbone."): value for key, value in plain.items() if key.startswith("backbone.")}
    return inner or {key: value for key, value in plain.items() if not key.startswith("fc.")}


def _load(backbone: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = backbone.state_dict()
    wrong = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [k for k in state if k in own and state[k].shape != own[k].shape],
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(keys)} keys {how} ({', '.join(keys[:3])} ...)" for how, keys in wrong.items() if keys)
        raise ValueError(f"'{source}' does not fit this backbone: {told}")
    backbone.load_state_dict(state)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file's content, without running any code in it; ValueError if it is none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise ValueError(
            f"'{path}' is not a checkpoint: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is not a checkpoint: it holds a {type(content).__name__}")
    return content


def load_backbone(backbone: nn.Module, source: str, spec: NormSpec, any_norm: bool) -> None:
    """Load the backbone's weights from ``source``.

    Args:
        backbone: turned over to ``spec`` already.
        source: a checkpoint of wsbench, or ``torchvision``.
        spec: the model's normalization.
        any_norm: load even if the checkpoint's normalization is another one; BN's statistics are then left out.

    Raises:
        FileNotFoundError: there is no such file.
        NormMismatchError: the checkpoint's normalization is another one.
        ValueError: it is no checkpoint, or keys or shapes do not fit.
    """
    if source == "torchvision":
        checkpoint = _torchvision(backbone)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"--model.init_from '{path}' does not exist; give a checkpoint, or 'torchvision'")
        checkpoint = read_checkpoint(path)
        if "state_dict" not in checkpoint:
            checkpoint = {"state_dict": checkpoint}
    if not any_norm:
        require_spec(checkpoint, spec, f"--model.init_from '{source}'")
    state = _backbone_state(checkpoint["state_dict"])
    if any_norm:
        own = backbone.state_dict()
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        extra = ("weight_gain", "weight_shift", "mean_weight", "var_weight")
        state = {k: v for k, v in state.items() if k in own or not k.endswith((*statistics, *extra))}
        state = {k: v for k, v in own.items() if k.endswith((*statistics, *extra))} | state
    _load(backbone, state, source)
