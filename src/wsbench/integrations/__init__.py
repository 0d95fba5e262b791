"""wsbench's layers where other libraries build their networks: by their configs, and by a ``norm_layer``."""

from wsbench.integrations.layers import norm_layer

__all__ = ["norm_layer"]
