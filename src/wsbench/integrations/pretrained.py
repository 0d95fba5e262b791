"""Weights as a folder that others can load: ``model.safetensors`` with its specification, and ``config.json``.

The layout is that of Hugging Face's Hub. Reading runs no code: safetensors holds tensors and text.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wsbench.errors import UserError
from wsbench.extras import huggingface_hub
from wsbench.norms import NormReport, NormSpec, normalize, require_spec
from wsbench.norms.guard import KEY

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class PretrainedError(UserError, ValueError):
    """A folder or repository that holds no such weights, or weights of another network."""


def save_pretrained(model: nn.Module, folder: str | Path, spec: str | NormSpec, **facts: Any) -> Path:
    """Write a network's weights, and which normalization they were trained under.

    Args:
        model: converted to ``spec``; not folded.
        folder: is made if it is not there; both files are whole or as they were before.
        spec: of ``model``, for instance ``gn+ws``.
        facts: further entries of ``config.json``, such as ``network="resnet50"``, ``classes=[...]``.

    Returns:
        The folder.

    Raises:
        PretrainedError: a fact cannot be written as JSON.
        SpecError: there is no such specification.
    """
    folder, spec = Path(folder).expanduser(), str(NormSpec.parse(spec))
    try:
        text = json.dumps({KEY: spec, **facts}, indent=1) + "\n"
    except TypeError as error:
        raise PretrainedError(f"config.json: {error}; facts are text, numbers and lists of them") from error
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        save_file(state, Path(beside) / WEIGHTS, metadata={"format": "pt", KEY: spec})
        (Path(beside) / CONFIG).write_text(text, encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            os.replace(Path(beside) / name, folder / name)
    return folder


def read_pretrained(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a safetensors file, and the specification that it says it has.

    Raises:
        PretrainedError: it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(KEY)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"'{path}' is not a safetensors file: {error}") from error


def from_pretrained(
    model: nn.Module, source: str | Path, example: Any = None, revision: str | None = None
) -> NormReport:
    """Convert a network to the specification of stored weights, and load them.

    Args:
        model: plain or converted; as :func:`save_pretrained`'s was built.
        source: a folder, or a repository ``USER/NAME`` of Hugging Face's Hub, which is downloaded.
        example: as for :func:`wsbench.norms.normalize`.
        revision: of the repository: a branch, tag or commit.

    Returns:
        What became of every layer.

    Raises:
        PretrainedError: nothing is there, the two files contradict each other, or the weights do not fit.
        MissingPartError: the Hub is needed and ``huggingface_hub`` is not installed.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
            raise PretrainedError(f"'{source}' is no folder, nor a repository of the form USER/NAME")
        downloaded = huggingface_hub().snapshot_download(str(source), revision=revision,
                                                         allow_patterns=[WEIGHTS, CONFIG])  # fmt: skip
        folder = Path(downloaded)
    if not (folder / WEIGHTS).is_file():
        raise PretrainedError(f"'{folder}' has no {WEIGHTS}; expected what save_pretrained writes")
    state, spec = read_pretrained(folder / WEIGHTS)
    if (folder / CONFIG).is_file():
        stated = _said(folder / CONFIG)
        if spec is not None and stated not in (None, spec):
            raise PretrainedError(f"'{folder}': {WEIGHTS} says that it is '{spec}', {CONFIG} that it is '{stated}'")
        spec = spec or stated
    require_spec({} if spec is None else {KEY: spec}, spec or "gn", f"'{folder / WEIGHTS}'")
    assert spec is not None
    report = normalize(model, spec, example)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise PretrainedError(f"the weights in '{folder}' do not fit the network: {error}") from error
    return report


def _said(path: Path) -> str | None:
    """The specification in a ``config.json``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PretrainedError(f"'{path}' is not JSON: {error}") from error
    stated = content.get(KEY) if isinstance(content, dict) else None
    return stated if isinstance(stated, str) else None
