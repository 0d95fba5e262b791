"""wsbench's layers where other libraries build their networks: by their configs, and by a ``norm_layer``."""

from wsbench.integrations.layers import norm_layer
from wsbench.integrations.pretrained import PretrainedError, from_pretrained, save_pretrained

__all__ = ["PretrainedError", "from_pretrained", "norm_layer", "save_pretrained"]
