"""Optional parts: what is missing, and the command that installs it.

Lightning's ``RequirementCache`` answers whether a part is there; here the core asks, which does without Lightning, and
the answer has to name the extra.
"""

import importlib
from typing import Any

from wsbench.errors import UserError

#: system libraries that open3d's wheel links to, and Debian's packages with them
OPEN3D_LIBRARIES = {
    "libusb-1.0.so.0": "libusb-1.0-0", "libEGL.so.1": "libegl1", "libGL.so.1": "libgl1", "libX11.so.6": "libx11-6",
    "libudev.so.1": "libudev1", "libidn2.so.0": "libidn2-0", "libgomp.so.1": "libgomp1",
}  # fmt: skip


class MissingPartError(UserError, ImportError):
    """An optional part that is not installed; the message has the command that installs it."""


def open3d() -> Any:
    """The module open3d; MissingPartError if it or a system library is not there."""
    try:
        import open3d as module
    except ModuleNotFoundError as error:
        raise MissingPartError(
            "meshes are read with open3d, which is not installed: pip install 'wsbench[modelnet40]'"
        ) from error
    except (ImportError, OSError) as error:
        packages = " ".join(OPEN3D_LIBRARIES.values())
        raise MissingPartError(
            f"open3d cannot be loaded ({error}); install its system libraries: apt-get install {packages}"
        ) from error
    return module


def trimesh() -> Any:
    """The module trimesh; MissingPartError if it is not there."""
    return _extra("trimesh", "meshes other than OFF are read with trimesh", "modelnet40")


def timm() -> Any:
    """The module timm; MissingPartError if it is not there."""
    return _extra("timm", "networks called timm:NAME need timm", "timm")


def onnx_modules() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime; MissingPartError if they or onnxscript are not there."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ModuleNotFoundError as error:
        raise MissingPartError(
            f"ONNX needs {error.name}, which is not installed: pip install 'wsbench[export]'"
        ) from error
    return onnx, onnxruntime


def matplotlib() -> Any:
    """The module matplotlib.pyplot, drawing into files; MissingPartError if it is not there."""
    try:
        import matplotlib as module
    except ModuleNotFoundError as error:
        raise MissingPartError(
            "figures are drawn with matplotlib, which is not installed: pip install 'wsbench[analysis]'"
        ) from error
    module.use("Agg")
    import matplotlib.pyplot as pyplot

    return pyplot


def submitit() -> Any:
    """The module submitit; MissingPartError if it is not there."""
    return _extra("submitit", "Slurm's jobs are submitted with submitit", "slurm")


def ray() -> Any:
    """The module ray; MissingPartError if it is not there."""
    return _extra("ray", "--launcher ray needs ray", "ray")


def wandb() -> Any:
    """The module wandb; MissingPartError if it is not there."""
    return _extra("wandb", "--wandb true needs wandb", "wandb")


def huggingface_hub() -> Any:
    """The module huggingface_hub; MissingPartError if it is not there."""
    return _extra("huggingface_hub", "repositories of Hugging Face's Hub need huggingface_hub", "hub")


def mlflow() -> Any:
    """The module mlflow; MissingPartError if it is not there."""
    return _extra("mlflow", "--mlflow true needs mlflow", "mlflow")


def _of_report(name: str, package: str) -> Any:
    return _extra(name, f"the report needs {package}", "report")


def _extra(module: str, purpose: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise MissingPartError(f"{purpose}, which is not installed: pip install 'wsbench[{extra}]'") from error


def altair() -> Any:
    """The module altair; MissingPartError if it is not there."""
    return _of_report("altair", "altair")


def vl_convert() -> Any:
    """The module vl_convert; MissingPartError if it is not there."""
    return _of_report("vl_convert", "vl-convert-python")


def jinja2() -> Any:
    """The module jinja2; MissingPartError if it is not there."""
    return _of_report("jinja2", "Jinja2")


def plotly() -> Any:
    """The module plotly.graph_objects; MissingPartError if it is not there."""
    try:
        import plotly.graph_objects as module
    except ModuleNotFoundError as error:
        raise MissingPartError(
            "images of clouds are drawn with plotly, which is not installed: pip install 'wsbench[modelnet40]'"
        ) from error
    return module
