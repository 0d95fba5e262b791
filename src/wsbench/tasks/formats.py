"""Reading weights as others publish them: torch files old and new, safetensors, Big Transfer's .npz."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from wsbench.norms import stamp_spec
from wsbench.norms.guard import KEY

#: what the readers raise on files that are no checkpoints: a pickle's opcodes may be any bytes
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, struct.error, SafetensorError, zipfile.BadZipFile,
    LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError,
)  # fmt: skip
_BIT_LAYERS = {"a": "1", "b": "2", "c": "3"}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file's content, without running any code in it; ValueError if it is none.

    Files of torch (also of releases before 1.6, such as the authors' ``.pth.tar``), ``.safetensors``, and the ``.npz``
    of Big Transfer, whose weights get the keys of timm's ResNetV2 and the spec ``gn+ws@bit``.
    """
    try:
        if path.suffix == ".npz":
            return _big_transfer(path)
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                spec = (file.metadata() or {}).get(KEY)
            return {"state_dict": load_file(path)} | ({} if spec is None else {KEY: spec})
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if isinstance(error, ValueError | RuntimeError) and str(error) else (
            f"its content cannot be read ({type(error).__name__})"
        )  # fmt: skip
        raise ValueError(f"'{path}' is not a checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is not a checkpoint: it holds a {type(content).__name__}")
    return content


def read_run_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a run of wsbench; ValueError if it is none."""
    content = read_checkpoint(path)
    if "state_dict" not in content:
        raise ValueError(f"'{path}' is not a checkpoint of wsbench: it holds no state_dict")
    return content


def _big_transfer(path: Path) -> dict[str, Any]:
    """Big Transfer's arrays (github.com/google-research/big_transfer): HWIO kernels under ``resnet/``."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    state: dict[str, Tensor] = {}
    for name, array in arrays.items():
        key = _big_transfer_key(name)
        if key is None:
            raise ValueError(f"'{name}' is no array of a Big Transfer ResNet")
        state[key] = torch.from_numpy(array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array)
    if "stem.conv.weight" not in state:
        raise ValueError("it has no 'resnet/root_block/standardized_conv2d/kernel' as Big Transfer's ResNets have")
    checkpoint: dict[str, Any] = {"state_dict": state}
    stamp_spec(checkpoint, "gn+ws@bit")
    return checkpoint


def _big_transfer_key(name: str) -> str | None:
    last = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    match name.split("/"):
        case ["resnet", "root_block", "standardized_conv2d", "kernel"]:
            return "stem.conv.weight"
        case ["resnet", "group_norm", end] if end in last:
            return f"norm.{last[end]}"
        case ["resnet", "head", "conv2d", end] if end in last:
            return f"head.fc.{last[end]}"
        case ["resnet", block, unit, "a", "proj", "standardized_conv2d", "kernel"]:
            return f"{_place(block, unit)}.downsample.conv.weight"
        case ["resnet", block, unit, letter, "standardized_conv2d", "kernel"] if letter in _BIT_LAYERS:
            return f"{_place(block, unit)}.conv{_BIT_LAYERS[letter]}.weight"
        case ["resnet", block, unit, letter, "group_norm", end] if letter in _BIT_LAYERS and end in last:
            return f"{_place(block, unit)}.norm{_BIT_LAYERS[letter]}.{last[end]}"
    return None


def _place(block: str, unit: str) -> str:
    """``block1``, ``unit01`` to ``stages.0.blocks.0``."""
    return f"stages.{int(block.removeprefix('block')) - 1}.blocks.{int(unit.removeprefix('unit')) - 1}"


def network_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's weights in a checkpoint: without DataParallel's ``module.`` and wsbench's ``network.``."""
    state = checkpoint.get("state_dict", checkpoint)
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    return {key.removeprefix("module.").removeprefix("network."): value for key, value in tensors.items()}
