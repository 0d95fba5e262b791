"""Whether a compiler or an exporter is looking."""

import torch


def traced() -> bool:
    """True under torch.compile, torch.export and torch.jit.trace: they want plain operations, which they fuse or name.

    Functions with a backward of their own stand for themselves everywhere else.
    """
    return bool(torch.compiler.is_compiling()) or bool(torch._C._get_tracing_state())
