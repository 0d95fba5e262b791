"""The Weight Standardization benchmark: which normalization to train with when one or two images fit on a GPU."""

__version__ = "0.1.0"
