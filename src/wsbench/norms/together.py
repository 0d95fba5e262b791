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

from wsbench.norms.layers import rows_of, shaped_as_weight, widened
from wsbench.norms.share import Share, autocast_dtype
from wsbench.norms.stamp import RowStamp, bits_of, row_sums
from wsbench.norms.tracing import without_autocast

#: of how many rows every layer of a matrix has a multiple: kernels read best from multiples of 16 bytes
_ALIGNED = 8


def can_join(share: Share) -> bool:
    """Whether the layer can be computed together with others."""
    return bool(vars(type(share.layer.method)).get("rowwise", False)) and not share.layer._remembered


def _groups(shares: Sequence[Share], needs: Sequence[tuple[bool, ...]]) -> list[list[Share]]:
    """The shares whose layers can be computed as one matrix, those of one fan-in beside each other."""
    groups: dict[object, list[Share]] = {}
    for share, need in zip(shares, needs, strict=True):
        layer, weight, rows = share.layer, share.layer.weight, share.layer.filters
        spec = layer.spec
        key = (weight.numel() // rows, weight.dtype, weight.device, type(layer.method), spec.weight, spec.variant,
               spec.weight_semantics, layer._extra, need, rows % _ALIGNED == 0)  # fmt: skip
        groups.setdefault(key, []).append(share)
    return list(groups.values())


def _effective(shares: Sequence[Share], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The weights' rows (sum of O, I), and the layers' effective weights in ``dtype``, as views of one matrix."""
    layers = [share.layer for share in shares]
    parameters = [share.parameters() for share in shares]
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


def _sums(shares: Sequence[Share], raw: Tensor) -> Tensor:
    """What the stamps of the layers hold, (2 + E, sum of O) int64 with E parameters beside the weight."""
    extra = len(shares[0].layer._extra)
    sums = torch.empty(2 + extra, raw.shape[0], dtype=torch.int64, device=raw.device)
    row_sums(raw.detach(), sums[:2])
    for i in range(extra):
        values = [share.parameters()[1 + i].detach().flatten() for share in shares]
        sums[2 + i].copy_(bits_of(torch.cat(values)))
    return sums


def _sums_then(shares: Sequence[Share]) -> Tensor:
    """What :func:`_sums` was when the layers were opened."""
    stamps = [cast(tuple[RowStamp, ...], share.stamps) for share in shares]
    whole = stamps[0][0].whole
    if all(own[0].whole is whole for own in stamps) and sum(own[0].sums.shape[1] for own in stamps) == whole.shape[1]:
        return whole  # all that were opened together, in the order of then
    kinds = zip(*([stamp.sums for stamp in own] for own in stamps), strict=True)
    return torch.cat([torch.cat(columns, 1) for columns in kinds])


def open_together(shares: Sequence[Share]) -> None:
    """:meth:`Share.open` of several, with as few kernels as can be."""
    joining = [share for share in shares if can_join(share)]
    for group in _groups(joining, [tuple(p.requires_grad for p in s.parameters()) for s in joining]):
        with torch.no_grad():
            raw, values = _effective(group, autocast_dtype(group[0].layer.weight))
            sums = _sums(group, raw)
        start = 0
        for share, value in zip(group, values, strict=True):
            layer = share.layer
            end = start + layer.filters
            weight, *others = share.parameters()
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
            share.hold(value, tuple(stamps))
            start = end
    for share in shares:
        if not can_join(share):
            share.open()


def differ_together(shares: Sequence[Share]) -> tuple[list[Sequence[Share]], list[Tensor]]:
    """Whether any bit of the layers' weights has changed: groups of layers, and for each group its flags.

    The flags are bool (K, sum of O) with K sums of each row, for a layer by itself 0-d.
    """
    groups: list[Sequence[Share]] = []
    flags: list[Tensor] = []
    joined = [share for share in shares if isinstance(share.stamps[0], RowStamp)]
    for group in _groups(joined, [()] * len(joined)):
        stamps = [cast(RowStamp, share.stamps[0]) for share in group]
        now = _sums(group, torch.cat([stamp.rows_now() for stamp in stamps]))
        groups.append(group)
        flags.append(now != _sums_then(group))
    for share in shares:
        if not isinstance(share.stamps[0], RowStamp):
            groups.append((share,))
            flags.append(share.differs())
    return groups, flags


def first_differing(groups: Sequence[Sequence[Share]], flags: Sequence[Tensor]) -> str | None:
    """The name of a layer whose weight has changed; the host waits for the device."""
    for group, flag in zip(groups, flags, strict=True):
        if flag.any():
            columns = flag.view(-1, flag.shape[-1] if flag.dim() else 1)
            sizes = [share.layer.filters for share in group] if flag.dim() else [1]
            parts = torch.split(columns, sizes, 1)
            return next(share.name for share, part in zip(group, parts, strict=True) if part.any())
    return None


def hand_on_together(shares: Sequence[Share]) -> None:
    """:meth:`Share.flush` of several, whose weights have been found unchanged."""
    joining = [share for share in shares if can_join(share)]
    for group in _groups(joining, [share.needs for share in joining]):
        gradients = [share.take() for share in group]
        with ExitStack() as stack:
            for share in group:
                stack.enter_context(share.asking(share.needs))
            dtype = group[0].layer.weight.dtype
            with torch.enable_grad():
                _, values = _effective(group, dtype)
            torch.autograd.backward(values, [g.to(dtype) for g in gradients if g is not None])
    for share in shares:
        if not can_join(share):
            share.flush()
