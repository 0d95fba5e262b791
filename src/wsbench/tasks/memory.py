"""Which memory format a network trains in: contiguous (NCHW) or channels_last (NHWC)."""

from typing import Literal

import torch

from wsbench.norms import ACTIVATIONS, NormSpec

MemoryFormat = Literal["auto", "contiguous", "channels_last"]


def memory_format_for(
    wanted: MemoryFormat, device: torch.device, spec: NormSpec, micro_batch: int
) -> tuple[torch.memory_format, str]:
    """The format, and the reason as text, for the record.

    ``auto`` rests on ResNet-50's training step at 224 pixels on two cores, channels_last by contiguous, in two runs
    (`python -m benchmarks.activations`): at one image 1.00 and 0.98 for bn, 1.04 and 1.11 for gn, 1.01 and 1.03 for
    ln, 1.33 and 1.34 for in; at eight 0.83 and 0.88, 0.95 and 0.98, 0.94 and 0.91, 1.25 and 1.33. Within 5 % is noise.
    On accelerators it has not been measured, so nothing is changed there.
    """
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    if wanted != "auto":
        return formats[wanted], f"{wanted}, as asked for"
    if device.type != "cpu":
        return torch.contiguous_format, f"contiguous; not measured on {device.type}"
    start = ACTIVATIONS[spec.act].facts.channels_last_from
    if start is not None and micro_batch >= start:
        return torch.channels_last, f"channels_last, faster on a CPU for {spec.act} from {start} pictures"
    return torch.contiguous_format, f"contiguous, not slower on a CPU for {spec.act} at {micro_batch} per device"
