"""What is taken from the configuration of a run, which somebody else may have made. docs/security.md says why.

``config.yaml`` in a run's folder is data. What describes the run is taken from it, field by field; what would be
imported, run, or written to is not. One's own ``--config`` is read by the parser as a whole.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wsbench.errors import UserError
from wsbench.plugins import OPTION, requested
from wsbench.registry import TASKS
from wsbench.run.identity import FLOAT32, TRAINER

#: bytes of a configuration, at most
LARGEST = 1 << 20
#: values in a list, at most
_LONGEST = 10_000
#: fields of the data that say what this machine does, not what the data is
_DATA_ASIDE = ("pictures", "num_workers", "recursive")
#: fields of the Trainer that change a run's numbers and are plain values
_TRAINER = tuple(name for name in TRAINER if name not in ("callbacks", "plugins"))


class ConfigurationError(UserError, ValueError):
    """A file that is no configuration, or one that asks for what only a command line may; the message names it."""


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A mapping in a YAML file.

    Args:
        path: the file.
        what: it is called in messages.

    Raises:
        ConfigurationError: it cannot be read, is too large, or is no mapping.
    """
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {what} '{path}': {error.strerror}") from error
    if len(text) > LARGEST:
        raise ConfigurationError(f"{what} '{path}' has more than {LARGEST >> 20} MiB; it is no configuration")
    try:
        content = yaml.safe_load(text.decode("utf-8"))
    except RecursionError as error:
        raise ConfigurationError(f"{what} '{path}' is nested too deeply; it is no configuration") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, a date that is none
        raise ConfigurationError(f"{what} '{path}' is not YAML: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{what} '{path}' holds no settings")
    return content


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or str(error).splitlines()[0]}{where}"


def taken_from_run(
    content: Mapping[str, Any],
    path: Path,
    training: bool,
    task: object = None,
    own_network: bool = False,
    remedy: str | None = None,
) -> dict[str, Any]:
    """What is taken of the configuration beside a checkpoint, from wherever both are.

    Args:
        content: of the file.
        path: the file, for messages.
        training: whether the run is to resume, so that the Trainer's fields that change its numbers are taken, too.
        task: that its network would be of; None: the one that it names.
        own_network: the user has named another network, so that of the file is of no account.
        remedy: how one who trusts the file says so; None: by options of the command line.

    Raises:
        ConfigurationError: it asks for what only a command line may, or a field has a value that is none.
    """
    require_no_imports(content, remedy and f"{remedy}, and add the module")
    if not own_network:
        _require_harmless_network(content, path, task or content.get("task"), remedy)
    return _described(content, path, training)


def require_no_imports(layer: Mapping[str, Any], remedy: str | None = None) -> None:
    """Nothing is imported because a file says so: whoever starts a run names the modules.

    Args:
        layer: a configuration.
        remedy: how one who trusts it says so; None: by the option.

    Raises:
        ConfigurationError: it names a module that was not asked for.
    """
    names = layer.get(OPTION.removeprefix("--")) or []
    for name in names if isinstance(names, list) else [names]:
        if name not in requested():
            raise ConfigurationError(
                f"the configuration was made with {OPTION} {name}, a module that would be run; if you trust it, "
                f"{remedy or f'add {OPTION} {name}'}"
            )


def _described(content: Mapping[str, Any], path: Path, training: bool) -> dict[str, Any]:
    """What a run's configuration says of the run.

    Args:
        content: of the file.
        path: the file, for messages.
        training: whether the run is to go on, so that the Trainer's fields that change its numbers are taken, too.

    Raises:
        ConfigurationError: a field that is taken has a value that is none.
    """
    taken = {name: content[name] for name in ("task", "recipe", "norm", "seed_everything", *FLOAT32) if name in content}
    for name, value in taken.items():
        kind = int if name == "seed_everything" else bool if name == "tf32_convolutions" else str
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise ConfigurationError(f"'{path}': '{name}' must be {_KINDS[kind]}")
    trainer = _TRAINER if training else ("precision", "sync_batchnorm")
    for room in ("data", "model", "trainer"):
        fields = content.get(room)
        if fields is None:
            continue
        if not isinstance(fields, dict):
            raise ConfigurationError(f"'{path}': '{room}' must hold fields")
        taken[room] = {}
        for name, value in fields.items():
            if (room == "trainer" and name not in trainer) or (room == "data" and name in _DATA_ASIDE):
                continue
            if not isinstance(name, str) or not name.isidentifier() or not _is_plain(value):
                raise ConfigurationError(
                    f"'{path}': '{room}.{name}' is no plain value; in the configuration of a run nothing else is "
                    "taken. If you trust the file, name it with --config"
                )
            taken[room][name] = value
    return taken


_KINDS = {int: "a number", bool: "true or false", str: "text"}


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_plain(value: object) -> bool:
    """A value, or a list of values, of two levels at most."""
    if not isinstance(value, list):
        return _is_scalar(value)
    inner = [one for part in value[:_LONGEST] for one in (part[:_LONGEST] if isinstance(part, list) else [part])]
    return len(value) <= _LONGEST and all(map(_is_scalar, inner))


def _require_harmless_network(content: Mapping[str, Any], path: Path, task: object, remedy: str | None) -> None:
    """Refuse a configuration whose network is a function or file that would be run.

    Args:
        content: of the file.
        path: the file.
        task: that the network would be of.
        remedy: how one who trusts it says so; None: by the option.

    Raises:
        ConfigurationError: it is.
    """
    model = content.get("model")
    network = model.get("network") if isinstance(model, dict) else None
    entry = TASKS.get(str(task))
    harmless = None if entry is None else entry.harmless_network
    if isinstance(network, str) and ":" in network and not (harmless and harmless.match(network)):
        raise ConfigurationError(
            f"'{path}' asks for the network '{network}', code that would be run; if you trust it, "
            f"{remedy or f'say --model.network {network}'}"
        )
