"""Starting a network from a checkpoint, of another task too, under the same normalization."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from wsbench.errors import UserError
from wsbench.norms import ACTIVATIONS, NormalizedLayer, NormSpec, SpecError, require_spec, stamp_spec
from wsbench.norms.guard import KEY
from wsbench.norms.layers import torch_class
from wsbench.norms.recognize import is_norm
from wsbench.tasks.formats import network_state, read_checkpoint


class MissingCheckpointError(UserError, FileNotFoundError):
    """Weights to start from that are not there."""


CLASSIFIERS = ("fc.", "head.fc.", "classifier.")


def _torchvision(network: nn.Module) -> dict[str, Any]:
    """Torchvision's ImageNet V1 weights (BN) for a ResNet of this size, which the paper's BN rows start from."""
    blocks = [m for name, m in network.named_modules() if name.endswith(("conv2", "conv2.net"))]
    groups = {getattr(m, "groups", 1) for m in blocks}
    names = {(16, 1): "resnet50", (33, 1): "resnet101", (16, 32): "resnext50_32x4d"}
    size = (len(blocks), max(groups, default=1))
    if size not in names:
        raise ValueError(
            f"torchvision has no ImageNet V1 weights for a bottleneck ResNet of {size[0]} blocks in {size[1]} groups"
        )
    weights = get_model_weights(names[size])["IMAGENET1K_V1"]
    checkpoint: dict[str, Any] = {"state_dict": weights.get_state_dict(progress=True, check_hash=True)}
    stamp_spec(checkpoint, "bn")
    return checkpoint


def parse_source(source: str) -> tuple[NormSpec | None, Path]:
    """``PATH`` or ``SPEC=PATH`` as the specification, if it is said, and the file.

    A folder is one that :func:`wsbench.integrations.save_pretrained` wrote: its ``model.safetensors``.
    """
    named, separator, rest = source.partition("=")
    if separator:
        with contextlib.suppress(SpecError):  # else a file whose name holds '='
            return NormSpec.parse(named), _file(Path(rest).expanduser())
    return None, _file(Path(source).expanduser())


def _file(path: Path) -> Path:
    inside = path / "model.safetensors"
    return inside if inside.is_file() else path


def read_source(source: str) -> tuple[dict[str, Any], str]:
    """The checkpoint behind ``PATH`` or ``SPEC=PATH``, with what was stated stamped on it, and its path for messages.

    Raises:
        MissingCheckpointError: there is no such file.
        ValueError: it is no checkpoint, or says another spec itself.
    """
    stated, path = parse_source(source)
    if not path.is_file():
        raise MissingCheckpointError(
            f"--model.init_from '{path}' does not exist; give a checkpoint, SPEC=CHECKPOINT, or 'torchvision'"
        )
    checkpoint = read_checkpoint(path)
    if "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint}
    if stated is not None:
        own = checkpoint.get(KEY)
        if own is not None and NormSpec.parse(own) != stated:
            raise ValueError(f"you say that '{path}' is '{stated}', and it says itself that it is '{own}'")
        stamp_spec(checkpoint, stated)
    return checkpoint, str(path)


def _of_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``backbone.*`` of a segmentation or detection network, ``backbone.body.*`` of the latter; else all of it."""
    for prefix in ("backbone.body.", "backbone."):
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if inner:
            return inner
    return state


def _without_wrappers(key: str) -> str:
    """TSM's shifted convolutions are called ``conv1.net``."""
    return key.replace("conv1.net.", "conv1.")


def _load(network: nn.Module, state: dict[str, Tensor], source: str) -> list[str]:
    """Load; returns the keys of a classifier that kept its own values."""
    own = network.state_dict()
    names = {_without_wrappers(key): key for key in own}
    given = {names.get(_without_wrappers(k), k): v for k, v in state.items()}
    left = []
    for key in dict.fromkeys(k for k in (*own, *given) if k.startswith(CLASSIFIERS)):
        # another task's classifier, or of other classes, is left as it is here
        if key not in own or key not in given or own[key].shape != given[key].shape:
            given.pop(key, None)
            if key in own:
                given[key] = own[key]
                left.append(key)
    wrong = {
        "missing": [k for k in own if k not in given],
        "unexpected": [k for k in given if k not in own],
        "of another shape": [k for k in given if k in own and given[k].shape != own[k].shape],
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(keys)} keys {how} ({', '.join(keys[:3])} ...)" for how, keys in wrong.items() if keys)
        raise ValueError(f"'{source}' does not fit this network: {told}")
    network.load_state_dict(given)
    return left


def load_backbone(backbone: nn.Module, source: str, spec: NormSpec, any_norm: bool) -> list[str]:
    """Load the backbone's weights from ``source``.

    Args:
        backbone: converted to ``spec`` already; a classifier's own last layer is loaded too if it has this shape.
        source: a checkpoint, ``SPEC=CHECKPOINT`` for one that does not say its normalization, or ``torchvision``.
        spec: the model's normalization; ``frozenbn`` and others with BN's state take a ``bn`` checkpoint.
        any_norm: load even if the checkpoint's normalization is another one; statistics, gains and mixing weights that
            the network has no place for are then left out.

    Returns:
        Keys of a last layer of another shape, which kept its initialization.

    Raises:
        MissingCheckpointError: there is no such file.
        NormMismatchError: the checkpoint's normalization is another one.
        ValueError: it is no checkpoint, or keys or shapes do not fit.
    """
    if source == "torchvision":
        checkpoint, path = _torchvision(backbone), source
    else:
        checkpoint, path = read_source(source)
    if not any_norm:
        source_act = ACTIVATIONS[spec.act].facts.starts_from
        trained = spec
        if source_act is not None:  # without what only the other method knows: a number, a definition
            trained = dataclasses.replace(spec, act=source_act, groups=None, semantics=spec.weight_semantics)
        stamped = checkpoint.get(KEY)
        same = stamped is not None and NormSpec.parse(stamped) == spec
        require_spec(checkpoint, spec if same else trained, f"--model.init_from '{path}'")
    state = _of_backbone(network_state(checkpoint))
    loaded = [_without_wrappers(k) for k in state]
    if any_norm:
        own = {_without_wrappers(k): v for k, v in backbone.state_dict().items()}
        of_norms = _of_norms(backbone)
        state = {k: v for k, v in state.items() if k in own or not of_norms(k)}
        state = {k: v for k, v in own.items() if of_norms(k)} | state
    left = _load(backbone, state, path)
    for module in backbone.modules():
        restart: Any = getattr(module, "restart_schedule", None)
        if restart is not None:
            restart()
    if any_norm:
        _renew_gains(backbone, set(loaded))
    return left


def _of_norms(network: nn.Module) -> Callable[[str], bool]:
    """Tells the keys of what a normalization has beside a weight and a bias: statistics, gains, mixing weights."""
    having = {
        _without_wrappers(f"{name}.")
        for name, module in network.named_modules()
        if is_norm(module) or torch_class(type(module)) is not None
    }

    def told(key: str) -> bool:
        place, _, leaf = _without_wrappers(key).rpartition(".")
        return f"{place}." in having and leaf not in ("weight", "bias")

    return told


@torch.no_grad()
def _renew_gains(network: nn.Module, loaded: set[str]) -> None:
    """Where the checkpoint had no gains of a weight normalization, set those that keep the loaded weights' function."""
    for name, module in network.named_modules():
        if isinstance(module, NormalizedLayer):
            for extra, value in (*module.initial_extra_parameters().items(), *module.initial_extra_buffers().items()):
                if f"{_without_wrappers(f'{name}.')}{extra}" not in loaded:
                    getattr(module, extra).copy_(value)
