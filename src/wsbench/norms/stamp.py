"""What a weight was: how an accumulation window sees that it has been written since."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from wsbench.norms.tracing import without_autocast


def bits_of(weight: Tensor) -> Tensor:
    """The values as integers: a NaN is equal to itself, 0 is not -0."""
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return weight.detach().view(sizes[weight.element_size()])


#: values of each weight that are looked at in every use on a CPU; each is a cache line to fetch
_SAMPLE = 8


def _is_dense(weight: Tensor) -> bool:
    """Whether the values are those of the storage, from the offset on, in any order."""
    if weight.layout != torch.strided or not weight.numel():
        return False
    span = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return span == weight.numel() and 0 not in weight.stride()


class Stamp:
    """What a weight, or a parameter beside it, was when the effective weight was computed."""

    __slots__ = ("address", "parameter", "probe", "sample", "sums", "version")

    def __init__(self, parameter: nn.Parameter, sums: Tensor | None = None) -> None:
        self.parameter, self.version, self.address = parameter, parameter._version, parameter.data_ptr()
        self.sums = self._sums() if sums is None else sums
        #: an alias of some of the weight's own memory, and what was there; reading it as a list is no kernel
        self.probe: Tensor | None = None
        self.sample: list[int] = []
        if parameter.device.type == "cpu" and _is_dense(parameter):
            bits = bits_of(parameter)
            count = min(_SAMPLE, bits.numel())
            stride = bits.numel() // count
            if stride > 1 and stride % 2 == 0:
                stride -= 1  # a multiple of the kernel's size would look at one input channel only
            self.probe = bits.as_strided((count,), (stride,))
            self.sample = self.probe.tolist()

    def _sums(self) -> Tensor:
        """A sum of all bits for each filter, and the filters' products with fixed weights: two passes over the memory.

        The first sees a single bit, the second sees what leaves sums as they are: values that change places or signs.
        """
        weight = self.parameter.detach()
        bits = bits_of(weight)
        if bits.dim() < 2 or not bits.numel():
            return bits.flatten().to(torch.int64)
        wide = torch.int64 if bits.dtype == torch.int64 else torch.int32
        rows = weight.flatten(1)
        if rows.element_size() < 4:
            rows = rows.float()
        # no weights in a row: they would not see values that are exchanged in patterns
        places = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device).square_().sin_()
        with without_autocast(rows):
            products = rows @ places.add_(1.5)
        return torch.cat((bits.flatten(1).sum(1, dtype=wide), bits_of(products).to(wide)))

    def holds(self, now: Tensor) -> bool:
        """Whether ``now`` is the parameter, unchanged as far as can be seen without a kernel on a GPU."""
        return (
            now is self.parameter
            and now._version == self.version
            and now.data_ptr() == self.address
            and (self.probe is None or self.probe.tolist() == self.sample)
        )

    def moved(self) -> bool:
        """Whether torch has noted a change."""
        return self.parameter._version != self.version or self.parameter.data_ptr() != self.address

    def differs(self) -> Tensor:
        """Whether a sum is another, 0-d; True for a parameter that is elsewhere or of another dtype."""
        now = self._sums()
        if (now.device, now.dtype, now.shape) != (self.sums.device, self.sums.dtype, self.sums.shape):
            return torch.ones((), dtype=torch.bool, device=now.device)
        return (now != self.sums).any()


def row_sums(rows: Tensor, out: Tensor) -> None:
    """As the sums of a :class:`Stamp`, in integers, so that they are the same whatever rows stand beside these.

    Args:
        rows: (O, I).
        out: (2, O) int64, which is written.
    """
    # of float64 the halves: sums wrap around at 64 bits, where two changes of the highest bit would cancel
    bits = rows.detach().contiguous().view(torch.int32) if rows.element_size() == 8 else bits_of(rows)
    torch.sum(bits, 1, out=out[0])
    torch.sum(bits * _odd_numbers(bits.shape[1], bits.device), 1, out=out[1])


@lru_cache(maxsize=256)
def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """Fixed weights of a row's values, int64 (count,); products with bits wrap around, which loses nothing.

    The mixing of SplitMix64 (Steele et al., OOPSLA 2014): weights in a row would not see values that are exchanged in
    patterns.
    """
    mixed = torch.arange(1, count + 1, device=device).mul_(-0x61C8864680B583EB)
    mixed = (mixed ^ (mixed >> 30)).mul_(-0x40A7B892E31B1A47)
    mixed = (mixed ^ (mixed >> 27)).mul_(-0x6B2FB644ECCEEE15)
    return (mixed ^ (mixed >> 31)) | 1


class RowStamp(Stamp):
    """A stamp that was taken together with those of other layers.

    Args:
        parameter: the weight, or a parameter beside it.
        whole: the sums of all of them, int64.
        kinds: the rows of ``whole`` that are this parameter's: two for the weight (:func:`row_sums`), for another
            parameter one, its bits.
        filters: the columns that are this layer's.
        rows: what turns the weight into its rows; None for another parameter.
    """

    __slots__ = ("rows", "whole")

    def __init__(
        self, parameter: nn.Parameter, whole: Tensor, kinds: slice, filters: slice,
        rows: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.whole = rows, whole
        super().__init__(parameter, whole[kinds, filters])

    def _sums(self) -> Tensor:
        if self.rows is None:
            return bits_of(self.parameter).flatten().to(torch.int64)[None]
        rows = self.rows_now()
        sums = torch.empty(2, rows.shape[0], dtype=torch.int64, device=rows.device)
        row_sums(rows, sums)
        return sums

    def rows_now(self) -> Tensor:
        """The weight's rows (O, I) as it is now, in the order that their sums were taken in."""
        assert self.rows is not None
        return self.rows(self.parameter.detach())
