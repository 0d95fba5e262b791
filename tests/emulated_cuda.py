"""A CUDA device that is none: tensors on the CPU that call themselves ``cuda:0``.

Inside :func:`emulated_cuda` every operation on such tensors passes a dispatch mode, which computes it on the CPU,
raises where devices are mixed as CUDA does, and notes kernels, and what would make the host wait for the device. What a
real device does beside (the rounding of its kernels, streams, memory) is not emulated.
"""

import ctypes
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch._dynamo  # looks at torch.cuda's functions when it is imported
import torch.utils._triton
from torch import Tensor
from torch._dynamo import trace_rules
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_ROOT = str(Path(__file__).parents[1])
aten = torch.ops.aten

#: operations whose result, or whose result's size, the host has to know before it goes on
_WAITING = {
    "_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "equal", "is_nonzero", "nms",
}  # fmt: skip
#: launches of operations that are more than one kernel on CUDA
_LAUNCHES = {"native_group_norm": 2, "native_group_norm_backward": 4, "native_batch_norm": 2, "var_mean": 1}
#: no kernel at all: views, and memory
_NOTHING = {
    "detach", "alias", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "lift_fresh",
    "_unsafe_view", "resize_", "set_", "_reshape_alias", "expand",
}  # fmt: skip


#: what raises on CUDA under ``torch.use_deterministic_algorithms``: torch's own list, and torchvision's
_NONDETERMINISTIC = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward", "max_pool3d_with_indices_backward", "avg_pool3d_backward",
    "upsample_bilinear2d_backward", "upsample_linear1d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "reflection_pad1d_backward", "grid_sampler_2d_backward", "_ctc_loss_backward",
    "_embedding_bag_dense_backward", "histc", "kthvalue", "median", "_roi_align_backward", "_ps_roi_align_backward",
}  # fmt: skip


class EmulatedTensor(Tensor):
    """A tensor of the CPU that says it is on ``cuda:0``."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "EmulatedTensor":
        made: EmulatedTensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=DEVICE,
        )  # fmt: skip
        made.on_host = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        _MODES[-1].wait("tolist")
        return self.on_host.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.on_host.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy.detach(), self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Emulated({self.on_host})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _MODES[-1].__torch_dispatch__(func, types, args, kwargs)  # in a thread of the autograd engine


@dataclass
class Counts:
    """What has happened on the emulated device."""

    kernels: int = 0
    by_operation: Counter[str] = field(default_factory=Counter)
    waits: list[tuple[str, str]] = field(default_factory=list)
    """Where the host waited: operation, and file:line."""

    def clear(self) -> None:
        self.kernels = 0
        self.by_operation.clear()
        self.waits.clear()


_MODES: list["_Mode"] = []


def _where() -> str:
    """The innermost line of wsbench, else of another library than torch."""
    frames = [f for f in traceback.extract_stack() if "emulated_cuda" not in f.filename]
    for frame in reversed(frames):
        if "/wsbench/" in frame.filename or frame.filename.startswith(f"{_ROOT}/datamodules"):
            return f"{frame.filename.removeprefix(_ROOT + '/')}:{frame.lineno}"
    frame = next((f for f in reversed(frames) if "/torch/" not in f.filename), frames[-1])
    return f"{frame.filename.removeprefix(_ROOT + '/')}:{frame.lineno}"


def _on_cuda(value: Any) -> bool:
    return isinstance(value, EmulatedTensor)


def _inner(value: Any) -> Any:
    return value.on_host if _on_cuda(value) else value


def _has_mask(indices: Any) -> bool:
    """Whether an index is a mask, whose True places CUDA has to count first."""
    several = isinstance(indices, list | tuple)
    return several and any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in indices)


class _Mode(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def wait(self, name: str) -> None:
        self.counts.waits.append((name, _where()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        leaves = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        emulated = [t for t in leaves if _on_cuda(t)]
        device = kwargs.get("device")
        target = bool(emulated)
        if device is not None:
            target = torch.device(device).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        if not emulated and not target:
            return func(*args, **kwargs)
        self._look(func, name, args, kwargs, leaves, emulated, target)
        kwargs.pop("pin_memory", None)
        plain_args, plain_kwargs = tree_map(_inner, (args, kwargs))
        if name in ("_softmax", "_log_softmax") and plain_args[2]:  # half to float, which only CUDA has in one kernel
            plain_args = (plain_args[0].float(), plain_args[1], False)
        out = func(*plain_args, **plain_kwargs)
        if name == "_to_copy" and not target:
            return out
        if name == "copy_":
            return args[0]
        if name in ("_to_copy",) and not emulated and any(out is t for t in leaves):
            out = out.clone()
        out = tree_map(lambda t: EmulatedTensor(t) if isinstance(t, Tensor) and not _on_cuda(t) else t, out)
        if not emulated:
            return out
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _look(
        self, func: Any, name: str, args: Any, kwargs: Any, leaves: list[Tensor], emulated: list[Tensor], target: bool
    ) -> None:
        if name in ("_to_copy", "copy_"):
            source, onto = (args[1], args[0]) if name == "copy_" else (args[0], None)
            goes_on = target if onto is None else _on_cuda(onto)
            comes_from = _on_cuda(source)
            free = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            pinned = getattr(source, "emulated_pinned", False)
            if goes_on != comes_from and not (free and (comes_from or pinned)):
                self.wait(f"{'device to host' if comes_from else 'host to device'} copy")
        elif emulated:
            strangers = [t for t in leaves if not _on_cuda(t) and t.dim() > 0]
            if strangers and name not in ("index", "index_put_", "index_put", "_index_put_impl_"):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                    f"({name})"
                )
            if strangers:
                self.wait("host to device copy (indices)")
        if torch.are_deterministic_algorithms_enabled():
            sums = name == "nll_loss2d_forward" and args[3] != 0  # of many pixels, in any order
            if sums or name in _NONDETERMINISTIC:
                raise RuntimeError(f"{name} does not have a deterministic implementation")
        if name in _WAITING:
            self.wait(name)
        if name.startswith("index") and len(args) > 1 and _has_mask(args[1]):
            value = args[2] if len(args) > 2 else None
            if not (isinstance(value, Tensor) and value.numel() == 1 and not _on_cuda(value)):  # which fills
                self.wait(f"{name} (mask)")
        if name == "repeat_interleave" and isinstance(args[0], Tensor) and kwargs.get("output_size") is None:
            self.wait(name)
        if name in _NOTHING or func.is_view:
            return
        launches = _LAUNCHES.get(name, 1)
        self.counts.kernels += launches
        self.counts.by_operation[name] += launches


@ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_byte)
def _has_no_context(hooks: int, index: int) -> bool:
    return False


@contextmanager
def _no_driver_is_asked() -> Iterator[None]:
    """Let autograd's C++ believe that a device is there whose streams need no care.

    torch has a device guard that does nothing, but a backward pass then asks the driver for the device's context. So
    that one method of the CUDA hooks is answered here, by a copy of their table of functions; the headers that come
    with torch say which entry it is.
    """
    torch._C._ensureCUDADeviceGuardSet()
    folder = Path(torch.__file__).parent
    header = (folder / "include/ATen/detail/AcceleratorHooksInterface.h").read_text()
    methods = re.findall(r"virtual [^;{(]*?(~?\w+)\s*\(", re.sub(r"//[^\n]*", "", header))
    assert methods[0].startswith("~")  # a destructor has two entries
    entry = methods.index("hasPrimaryContext") + 1
    get_hooks = ctypes.CDLL(str(folder / "lib/libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype = ctypes.POINTER(ctypes.c_void_p)
    hooks, word = get_hooks(), ctypes.sizeof(ctypes.c_void_p)
    original, about_the_class = cast(int, hooks[0]), 2
    table = (ctypes.c_void_p * 128).from_buffer_copy(ctypes.string_at(original - about_the_class * word, 128 * word))
    table[about_the_class + entry] = ctypes.cast(_has_no_context, ctypes.c_void_p).value
    hooks[0] = ctypes.addressof(table) + about_the_class * word
    try:
        yield
    finally:
        hooks[0] = original


def _pin(self: Tensor, device: Any = None) -> Tensor:
    copy = self.clone()
    copy.emulated_pinned = True  # type: ignore[attr-defined]
    return copy


@contextmanager
def emulated_cuda() -> Iterator[Counts]:
    """A process in which CUDA is available and is emulated."""
    trace_rules.get_torch_obj_rule_map()  # kept once a process; made of what is patched here it would be wrong
    patch = pytest.MonkeyPatch()
    properties = SimpleNamespace(
        name="Emulated GPU", total_memory=8 << 30, major=8, minor=0, multi_processor_count=4, gcnArchName=""
    )
    nothing = lambda *args, **kwargs: None  # noqa: E731
    settings: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "set_device": nothing,
        "get_device_properties": lambda device=None: properties, "get_device_capability": lambda device=None: (8, 0),
        "get_device_name": lambda device=None: properties.name, "is_bf16_supported": lambda *a, **k: True,
        "_lazy_init": nothing, "manual_seed_all": nothing, "manual_seed": nothing, "synchronize": nothing,
        "empty_cache": nothing, "max_memory_allocated": lambda device=None: 123 << 20,
        "memory_stats": lambda device=None: {},
        "reset_peak_memory_stats": nothing, "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": nothing, "get_rng_state_all": lambda: [], "set_rng_state_all": nothing,
        "memory_allocated": lambda device=None: 100 << 20, "is_current_stream_capturing": lambda: False,
    }  # fmt: skip
    for name, value in settings.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.backends.cudnn, "enabled", False)  # its operations have no form for CPUs
    patch.setattr(Tensor, "pin_memory", _pin)
    patch.setattr(torch.accelerator, "is_available", lambda *args, **kwargs: True)
    # asked once a process; torchvision takes its deterministic form only where there is one
    torch.utils._triton.has_triton.cache_clear()
    torch.ones((), requires_grad=True).backward()  # autograd's threads, of which there are none for a device yet
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    counts = Counts()
    mode = _Mode(counts)
    _MODES.append(mode)
    try:
        with _no_driver_is_asked(), mode, torch.autograd.set_multithreading_enabled(False):
            yield counts
    finally:
        _MODES.pop()
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(before)
        patch.undo()
        torch.utils._triton.has_triton.cache_clear()
