"""Layers of an accumulation window as one matrix: few kernels instead of some for each layer.

At batch 1 a GPU waits for launches, and a layer's weight normalization is ten of them on vectors of O values. Methods
that see one row at a time (:attr:`~wsbench.norms.weight.WeightNorm.rowwise`) do not mind whose rows stand beside it,
so layers of one fan-in are standardized together where a window opens, and handed on together where it ends.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import cast

import torch
from torch import Tensor

from wsbench.norms.layer_window import LayerWindow, autocast_dtype
from wsbench.norms.layers import rows_of, shaped_as_weight, widened
from wsbench.norms.stamp import RowStamp, bits_of, row_sums
from wsbench.norms.tracing import without_autocast

#: of how many rows every layer of a matrix has a multiple: kernels read best from multiples of 16 bytes
_ALIGNED = 8


def can_join(window: LayerWindow) -> bool:
    """Whether the layer can be computed together with others."""
    return bool(vars(type(window.layer.method)).get("rowwise", False)) and not window.layer._remembered


def _groups(windows: Sequence[LayerWindow], needs: Sequence[tuple[bool, ...]]) -> list[list[LayerWindow]]:
    """The windows whose layers can be computed as one matrix, those of one fan-in beside each other."""
    groups: dict[object, list[LayerWindow]] = {}
    for window, need in zip(windows, needs, strict=True):
        layer, weight, rows = window.layer, window.layer.weight, window.layer.filters
        spec = layer.spec
        key = (weight.numel() // rows, weight.dtype, weight.device, type(layer.method), spec.weight, spec.variant,
               spec.weight_semantics, layer._extra, need, rows % _ALIGNED == 0)  # fmt: skip
        groups.setdefault(key, []).append(window)
    return list(groups.values())


def _effective(windows: Sequence[LayerWindow], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The weights' rows (sum of O, I), and the layers' effective weights in ``dtype``, as views of one matrix."""
    layers = [window.layer for window in windows]
    parameters = [window.parameters() for window in windows]
    weight = parameters[0][0]
    with without_autocast(weight):
        parts = [rows_of(layer, own[0]) for layer, own in zip(layers, parameters, strict=True)]
        raw = torch.cat(parts)
        wide = widened(raw)
        extra = {
            name: torch.cat([own[i].flatten() for own in parameters]).to(wide.dtype)
            for i, name in enumerate(layers[0]._extra, 1)
        }
        out = layers[0].method.effective(wide, **extra).to(weight.dtype).to(dtype)
    parts_of_out = torch.split(out, [len(part) for part in parts])
    return raw, [shaped_as_weight(layer, rows) for layer, rows in zip(layers, parts_of_out, strict=True)]


def _sums(windows: Sequence[LayerWindow], raw: Tensor) -> Tensor:
    """What the stamps of the layers hold, (2 + E, sum of O) int64 with E parameters beside the weight."""
    extra = len(windows[0].layer._extra)
    sums = torch.empty(2 + extra, raw.shape[0], dtype=torch.int64, device=raw.device)
    row_sums(raw.detach(), sums[:2])
    for i in range(extra):
        values = [window.parameters()[1 + i].detach().flatten() for window in windows]
        sums[2 + i].copy_(bits_of(torch.cat(values)))
    return sums


def _sums_then(windows: Sequence[LayerWindow]) -> Tensor:
    """What :func:`_sums` was when the layers were opened."""
    stamps = [cast(tuple[RowStamp, ...], window.stamps) for window in windows]
    whole = stamps[0][0].whole
    if all(own[0].whole is whole for own in stamps) and sum(own[0].sums.shape[1] for own in stamps) == whole.shape[1]:
        return whole  # all that were opened together, in the order of then
    kinds = zip(*([stamp.sums for stamp in own] for own in stamps), strict=True)
    return torch.cat([torch.cat(columns, 1) for columns in kinds])


def open_together(windows: Sequence[LayerWindow]) -> None:
    """:meth:`LayerWindow.open` of several, with as few kernels as can be."""
    joining = [window for window in windows if can_join(window)]
    for group in _groups(joining, [tuple(p.requires_grad for p in s.parameters()) for s in joining]):
        with torch.no_grad():
            raw, values = _effective(group, autocast_dtype(group[0].layer.weight))
            sums = _sums(group, raw)
        start = 0
        for window, value in zip(group, values, strict=True):
            layer = window.layer
            end = start + layer.filters
            weight, *others = window.parameters()
            stamps = [
                RowStamp(
                    weight,
                    sums,
                    slice(2),
                    slice(start, end),
                    partial(rows_of, layer, contiguous=weight.is_contiguous()),
                )
            ]
            stamps += [RowStamp(p, sums, slice(i, i + 1), slice(start, end)) for i, p in enumerate(others, 2)]
            window.hold(value, tuple(stamps))
            start = end
    for window in windows:
        if not can_join(window):
            window.open()


def differ_together(windows: Sequence[LayerWindow]) -> tuple[list[Sequence[LayerWindow]], list[Tensor]]:
    """Whether any bit of the layers' weights has changed: groups of layers, and for each group its flags.

    The flags are bool (K, sum of O) with K sums of each row, for a layer by itself 0-d.
    """
    groups: list[Sequence[LayerWindow]] = []
    flags: list[Tensor] = []
    joined = [window for window in windows if isinstance(window.stamps[0], RowStamp)]
    for group in _groups(joined, [()] * len(joined)):
        stamps = [cast(RowStamp, window.stamps[0]) for window in group]
        now = _sums(group, torch.cat([stamp.rows_now() for stamp in stamps]))
        groups.append(group)
        flags.append(now != _sums_then(group))
    for window in windows:
        if not isinstance(window.stamps[0], RowStamp):
            groups.append((window,))
            flags.append(window.differs())
    return groups, flags


def first_differing(groups: Sequence[Sequence[LayerWindow]], flags: Sequence[Tensor]) -> str | None:
    """The name of a layer whose weight has changed; the host waits for the device."""
    for group, flag in zip(groups, flags, strict=True):
        if flag.any():
            columns = flag.view(-1, flag.shape[-1] if flag.dim() else 1)
            sizes = [window.layer.filters for window in group] if flag.dim() else [1]
            parts = torch.split(columns, sizes, 1)
            return next(window.name for window, part in zip(group, parts, strict=True) if part.any())
    return None


def hand_on_together(windows: Sequence[LayerWindow]) -> None:
    """:meth:`LayerWindow.flush` of several, whose weights have been found unchanged."""
    joining = [window for window in windows if can_join(window)]
    for group in _groups(joining, [window.needs for window in joining]):
        gradients = [window.take() for window in group]
        with ExitStack() as stack:
            for window in group:
                stack.enter_context(window.asking(window.needs))
            dtype = group[0].layer.weight.dtype
            with torch.enable_grad():
                _, values = _effective(group, dtype)
            torch.autograd.backward(values, [g.to(dtype) for g in gradients if g is not None])
    for window in windows:
        if not can_join(window):
            window.flush()
