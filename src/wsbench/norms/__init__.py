"""The normalization factory: activation times weight normalizations, named by one :class:`NormSpec`.

>>> from wsbench.norms import NormSpec, normalize, fold
>>> report = normalize(model, "gn+ws", example=images)   # in place; print(report) says what became of each layer
>>> plain = fold(model)                                  # plain layers with the effective weights, for inference
"""

from wsbench.norms.activating import EvoNormB0, EvoNormS0, FilterResponseNorm
from wsbench.norms.activation import BatchNorm, FrozenBatchNorm, GroupNorm, GroupsError, InstanceNorm, LayerNorm, NoNorm
from wsbench.norms.agc import adaptive_clip_grad_
from wsbench.norms.base import ChannelNorm, RunningNorm
from wsbench.norms.batch import (
    BatchChannelNorm,
    BatchRenorm,
    GhostBatchNorm,
    MovingAverageBatchNorm,
    SyncBatchNorm,
)
from wsbench.norms.behind import ActivatingNorm
from wsbench.norms.convert import ConversionError, PatternError, normalize
from wsbench.norms.facts import NormFacts, WeightFacts
from wsbench.norms.fold import fold
from wsbench.norms.guard import NormMismatchError, require_spec, stamp_spec
from wsbench.norms.layer_window import WindowError
from wsbench.norms.layers import (
    FanInError,
    NormalizedConv1d,
    NormalizedConv2d,
    NormalizedConv3d,
    NormalizedConvTranspose1d,
    NormalizedConvTranspose2d,
    NormalizedConvTranspose3d,
    NormalizedLayer,
    NormalizedLinear,
    effective_weight,
    normalized,
)
from wsbench.norms.per_pixel import ChannelLayerNorm, RMSNorm
from wsbench.norms.registry import ACTIVATIONS, WEIGHTS, register_activation, register_weight
from wsbench.norms.report import LayerChange, NormReport
from wsbench.norms.spec import NormSpec, SpecError
from wsbench.norms.switch import SwitchNorm
from wsbench.norms.tap import GradientTap, TapError, substituted
from wsbench.norms.weight import WeightNorm, standardize
from wsbench.norms.window import AccumulationWindow

__all__ = [
    "ACTIVATIONS",
    "WEIGHTS",
    "AccumulationWindow",
    "ActivatingNorm",
    "BatchChannelNorm",
    "BatchNorm",
    "BatchRenorm",
    "ChannelLayerNorm",
    "ChannelNorm",
    "ConversionError",
    "EvoNormB0",
    "EvoNormS0",
    "FanInError",
    "FilterResponseNorm",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "GradientTap",
    "GroupNorm",
    "GroupsError",
    "InstanceNorm",
    "LayerChange",
    "LayerNorm",
    "MovingAverageBatchNorm",
    "NoNorm",
    "NormFacts",
    "NormMismatchError",
    "NormReport",
    "NormSpec",
    "NormalizedConv1d",
    "NormalizedConv2d",
    "NormalizedConv3d",
    "NormalizedConvTranspose1d",
    "NormalizedConvTranspose2d",
    "NormalizedConvTranspose3d",
    "NormalizedLayer",
    "NormalizedLinear",
    "PatternError",
    "RMSNorm",
    "RunningNorm",
    "SpecError",
    "SwitchNorm",
    "SyncBatchNorm",
    "TapError",
    "WeightFacts",
    "WeightNorm",
    "WindowError",
    "adaptive_clip_grad_",
    "effective_weight",
    "fold",
    "normalize",
    "normalized",
    "register_activation",
    "register_weight",
    "require_spec",
    "stamp_spec",
    "standardize",
    "substituted",
]
