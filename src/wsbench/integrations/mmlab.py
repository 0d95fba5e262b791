"""OpenMMLab: convolutions and norms for the configs of mmdetection, mmsegmentation and mmpretrain.

In a config::

    custom_imports = dict(imports=["wsbench.integrations.mmlab"])
    conv_cfg = dict(type="WS")
    norm_cfg = dict(type="wsbench", spec="gn+ws")

``conv_cfg`` standardizes every convolution that the config's modules build with it; those are mostly the ones that a
norm follows. :func:`wsbench.norms.normalize` on the built network decides by what follows each layer, and converts
layers that a config does not reach. State-dict keys are those of the same network with ``norm_cfg=dict(type="BN")``.

Importing this module needs mmengine (which mmcv brings).
"""

from typing import Any

from mmengine.registry import MODELS
from torch import nn

from wsbench.integrations.layers import EPS, activation_norm
from wsbench.norms import NormSpec, SpecError, normalized

_CONVOLUTIONS: dict[str, type[nn.Module]] = {"WS1d": nn.Conv1d, "WS": nn.Conv2d, "WS2d": nn.Conv2d, "WS3d": nn.Conv3d}


def _convolution(plain: type[nn.Module]) -> type:
    class WS:
        """A convolution with a weight normalization.

        Args:
            args: of the plain convolution.
            spec: whose weight normalization it has.
            kwargs: of the plain convolution.
        """

        def __new__(cls, *args: Any, spec: str = "none+ws", **kwargs: Any) -> nn.Module:  # type: ignore[misc]
            if NormSpec.parse(spec).weight is None:
                raise SpecError(f"conv_cfg of type WS with spec '{spec}': it has no weight normalization; leave it out")
            return normalized(plain(*args, **kwargs), spec)

    return WS


class WsbenchNorm:
    """An activation normalization.

    Args:
        num_features: channels.
        spec: of which it is the activation's part; ``conv_cfg`` has the weights'.
        eps: 1e-5.
    """

    #: so that the modules' attributes, and with them state-dict keys, are called as with BN
    _abbr_ = "bn"

    def __new__(cls, num_features: int, spec: str, eps: float = EPS) -> nn.Module:  # type: ignore[misc]
        """The layer itself: mmcv's builders need a class."""
        return activation_norm(num_features, spec, eps)


for _name, _plain in _CONVOLUTIONS.items():
    MODELS.register_module(name=_name, module=_convolution(_plain), force=True)
MODELS.register_module(name="wsbench", module=WsbenchNorm, force=True)
