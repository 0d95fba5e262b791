"""Norms of other packages: the entry point group ``wsbench.norms``, and modules that the command line imports.

An entry point ``NAME = "module:Class"`` adds the class as NAME, unless importing the module has registered it; one that
names a module leaves registering to it. Modules of ``--import`` register what they define. Torch-free.
"""

import hashlib
import importlib
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsbench.errors import UserError

GROUP = "wsbench.norms"
#: modules of --import, so that the processes that this one starts know them, too
VARIABLE = "WSBENCH_IMPORT"
OPTION = "--import"

#: entry points that could not be loaded, and why; a name that is not known has them in its message
broken: dict[str, str] = {}


class PluginError(UserError, ImportError):
    """A module that cannot be imported, or that adds a norm which cannot be one; the message names it."""


def requested() -> list[str]:
    """The modules that were asked for."""
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def options() -> list[str]:
    """The modules that were asked for, as options of a command line."""
    return [word for name in requested() for word in (OPTION, name)]


def request(argv: Sequence[str]) -> list[str]:
    """Take ``--import MODULE`` out of a command line, for this process and those that it starts.

    Args:
        argv: the arguments.

    Returns:
        The others.

    Raises:
        PluginError: an option without a module, or one that is no name of a module.
    """
    rest: list[str] = []
    modules = requested()
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != OPTION:
            rest.append(argument)
            continue
        if not equals:
            value = next(arguments, "")
        if not value or not all(part.isidentifier() for part in value.split(".")):
            raise PluginError(f"{OPTION} {value}".rstrip() + ": expected the name of a module, such as my_norms")
        modules.append(value)
    if modules:
        os.environ[VARIABLE] = ",".join(dict.fromkeys(modules))
        search_here()  # a configuration may name classes of these modules
    return rest


def search_here() -> None:
    """Look for modules in the current folder, too, behind everything that is installed: the user has named one."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def load(add: Callable[[str, Any], None]) -> None:
    """Load all entry points and requested modules.

    Args:
        add: adds the object behind an entry point under its name, unless there is one of that name now.

    Raises:
        PluginError: a requested module cannot be imported. An entry point that cannot be loaded is in :data:`broken`:
            it may have nothing to do with what is wanted.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            loaded = point.load()
            if not inspect.ismodule(loaded):
                add(point.name, loaded)
        except Exception as error:  # noqa: BLE001  # whatever somebody's module raises
            package = point.dist.name if point.dist is not None else "a package"
            broken[point.name] = f"{package} ({point.value}): {type(error).__name__}: {error}"
    names = requested()
    if names:
        search_here()
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise PluginError(f"{OPTION} {name}: the module cannot be imported from '{os.getcwd()}' or the installed "
                              f"packages: {told}") from error  # fmt: skip


def source(factory: object) -> dict[str, str] | None:
    """Where a class or function comes from; None for wsbench's own.

    Returns:
        Package, version, and SHA-256 of the source files of the module or package that it lies in. A module that
        belongs to no installed package is its own package, without a version.
    """
    top = str(getattr(factory, "__module__", "")).partition(".")[0]
    if top == __name__.partition(".")[0]:
        return None
    packages = importlib.metadata.packages_distributions().get(top, [])
    origin = (
        {"package": packages[0], "version": importlib.metadata.version(packages[0])} if packages else {"package": top}
    )
    file = getattr(sys.modules.get(top), "__file__", None)
    if file is not None:
        path = Path(file)
        files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
        digest = hashlib.sha256()
        for each in files:
            digest.update(f"{each.relative_to(path.parent).as_posix()}\n".encode() + each.read_bytes())
        origin["sha256"] = digest.hexdigest()
    return origin
