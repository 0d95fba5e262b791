"""What a Trainer runs on: its options, looked at before anything is written, and how a GPU multiplies float32."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry

from wsbench.errors import UserError
from wsbench.options import out_of_range

#: torch's names, from exact to fast
MATMUL = ("highest", "high", "medium")


class TrainerOptionError(UserError, ValueError):
    """Options of Lightning's Trainer that do not exist, do not fit this machine, or contradict each other."""


#: Lightning's names
PROFILERS = ("simple", "advanced", "pytorch")
#: options that are objects with a part in the run, or that would write
_ASIDE = ("callbacks", "logger", "plugins", "profiler", "default_root_dir", "enable_checkpointing", "fast_dev_run")
#: least and most; Lightning takes others and fails later, or does nothing
_SENSIBLE: Mapping[str, tuple[float, float]] = {
    "gradient_clip_val": (0.0, 1e6), "log_every_n_steps": (1, 1e9), "check_val_every_n_epoch": (1, 1e9),
    "num_nodes": (1, 1e5), "max_steps": (-1, 1e12), "max_epochs": (-1, 1e9), "min_steps": (1, 1e12),
    "min_epochs": (1, 1e9), "reload_dataloaders_every_n_epochs": (0, 1e9),
}  # fmt: skip


def require_trainer(options: Mapping[str, Any]) -> None:
    """Make a Trainer of these options and let it go.

    Raises:
        TrainerOptionError: Lightning refuses them, in Lightning's words.
    """
    strategy = str(options.get("strategy"))
    if "spawn" in strategy or "fork" in strategy or "notebook" in strategy:
        raise TrainerOptionError(
            f"--trainer.strategy {strategy}: its processes keep what a run has to know at its end; ddp starts them "
            "another way"
        )
    profiler = options.get("profiler")
    if isinstance(profiler, str) and profiler not in PROFILERS:
        raise TrainerOptionError(f"--trainer.profiler {profiler}: choose from {', '.join(PROFILERS)}")
    wrong = out_of_range(options, _SENSIBLE, "--trainer.")
    if wrong:
        raise TrainerOptionError(wrong)
    interval = options.get("val_check_interval")
    a_part = isinstance(interval, float) and 0 < interval <= 1
    a_count = isinstance(interval, int) and interval >= 1
    if isinstance(interval, int | float) and not (a_part or a_count):
        raise TrainerOptionError(
            f"--trainer.val_check_interval {interval}: a part of an epoch is above 0 and at most 1, a whole number "
            "counts micro-steps"
        )
    chosen = {name: value for name, value in options.items() if name not in _ASIDE and _is_plain(value)}
    try:
        Trainer(**chosen, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
        # Lightning checks its arguments in many places; nothing but them has been given to it
        message = " ".join(str(error).split())
        raise TrainerOptionError(f"--trainer: {message}{_names(chosen, message)}") from error


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list)


def _names(options: Mapping[str, Any], message: str) -> str:
    """Which options the words may be about, where they name none."""
    if any(f"`{name}" in message or f"({name}" in message for name in options):
        return ""
    where = ("accelerator", "strategy", "devices", "num_nodes", "precision")
    return " (" + ", ".join(f"--trainer.{name} {options[name]}" for name in where if options.get(name)) + ")"


def available_devices(accelerator: str) -> int:
    """How many devices ``devices: auto`` means on this machine."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    if accelerator in AcceleratorRegistry:
        return max(1, int(AcceleratorRegistry.get(accelerator).auto_device_count()))
    return 1


def dividing(devices: int, effective_batch: int, micro_batch: int) -> int:
    """The most devices, at most ``devices``, that an effective batch divides among."""
    return next(n for n in range(devices, 0, -1) if n == 1 or effective_batch % (n * micro_batch) == 0)


def multiply_float32(matmul: str, tf32_convolutions: bool) -> None:
    """Set how products of float32 are computed on GPUs that have TF32.

    Args:
        matmul: of :data:`MATMUL`, as ``torch.set_float32_matmul_precision``.
        tf32_convolutions: whether cuDNN may round the factors to TF32; torch's own default.
    """
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = tf32_convolutions


def tf32_hint(device: torch.device, precision: str) -> list[str]:
    """What a user of a GPU with TF32 may want to know, once; Lightning's own hint is not shown."""
    if device.type != "cuda" or not precision.startswith("32") or torch.get_float32_matmul_precision() != "highest":
        return []
    if torch.cuda.get_device_capability(device)[0] < 8:
        return []
    return ["matrix products are in full float32; --matmul_precision high is faster on this GPU, and rounds to TF32"]
