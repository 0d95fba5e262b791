"""Networks of other packages by name: ``timm:resnet18``, ``torchvision:convnext_tiny``, ``my_module:build``.

As classifiers any of them; as backbones timm's (by its feature extraction) and torchvision's ResNets.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from wsbench.extras import timm
from wsbench.plugins import search_here

#: side of the images on which a network is looked at, where it does not say its own
SIDE = 224


def is_named(network: str) -> bool:
    """Whether a network's name is ``PACKAGE:NAME``."""
    return ":" in network


def split_name(network: str) -> tuple[str, str]:
    """``PACKAGE:NAME`` as its parts; ValueError if one is missing."""
    package, _, name = network.partition(":")
    if not package or not name:
        raise ValueError(f"'{network}' is not of the form timm:NAME, torchvision:NAME or MODULE:FUNCTION")
    return package, name


def classifier(network: str, num_classes: int | None, pretrained: bool = False) -> nn.Module:
    """An image classifier, images (N, 3, H, W) to logits (N, num_classes).

    Args:
        network: ``timm:NAME``, ``torchvision:NAME``, or ``MODULE:FUNCTION``: a function of yours that returns a network
            and takes ``num_classes``.
        num_classes: classes; None: as many as it has by itself.
        pretrained: with its package's own weights, the last layer aside where it has other classes.

    Raises:
        ValueError: there is no such network, or it cannot be built.
        MissingPartError: timm is not installed.
    """
    package, name = split_name(network)
    try:
        if package == "timm":
            options = {} if num_classes is None else {"num_classes": num_classes}
            return timm().create_model(name, pretrained=pretrained, **options)  # type: ignore[no-any-return]
        if package == "torchvision":
            return _of_torchvision(name, num_classes, pretrained)
        if pretrained:
            raise ValueError(f"'{network}' has no weights of its own that are known here; load them in your function")
        return _of_function(package, name, num_classes)
    except (RuntimeError, KeyError, TypeError, AttributeError, OSError) as error:
        # a name, weights or an argument that the library does not have; the user's function may raise any of them
        raise ValueError(f"cannot build '{network}': {(str(error) or type(error).__name__).splitlines()[0]}") from error


def _of_torchvision(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    if name not in zoo.list_models(module=zoo):
        similar = [n for n in zoo.list_models(module=zoo) if n[:3] == name[:3]] or ["resnet18", "convnext_tiny"]
        raise ValueError(f"torchvision has no classifier '{name}'; it has {', '.join(similar[:6])} ...")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    builder = zoo.get_model_builder(name)
    if (
        "aux_logits" in inspect.signature(_constructor(name)).parameters
    ):  # GoogLeNet and Inception: the main output only
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = builder(**options)
    if pretrained:
        state = zoo.get_model_weights(name)["DEFAULT"].get_state_dict(progress=True, check_hash=True)
        own = network.state_dict()
        network.load_state_dict({**own, **{k: v for k, v in state.items() if k in own and v.shape == own[k].shape}})
    return network


def _constructor(name: str) -> Callable[..., nn.Module]:
    classes = {"googlenet": zoo.GoogLeNet, "inception_v3": zoo.Inception3}
    builder: Callable[..., nn.Module] = classes.get(name, zoo.get_model_builder(name))
    return builder


def _of_function(module: str, name: str, num_classes: int | None) -> nn.Module:
    search_here()
    try:
        function = getattr(import_module(module), name)
    except ImportError as error:
        raise ValueError(f"cannot import '{module}': {error}; is it on PYTHONPATH?") from error
    network = function() if num_classes is None else function(num_classes=num_classes)
    if not isinstance(network, nn.Module):
        raise ValueError(f"'{module}:{name}' returned a {type(network).__name__}, expected a torch.nn.Module")
    return network


def example(network: nn.Module) -> Tensor:
    """An image that the network takes, (1, 3, side, side)."""
    side = getattr(network, "default_cfg", {}).get("input_size", (3, SIDE, SIDE))[-1]
    return torch.zeros(1, 3, side, side)


def colours(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of RGB in [0, 1] that a network of timm was made for; None if it does not say."""
    facts = getattr(network, "default_cfg", {})
    return (tuple(facts["mean"]), tuple(facts["std"])) if "mean" in facts and "std" in facts else None


class LastFeatures(nn.Module):
    """A backbone's last feature map; its state-dict keys.

    Args:
        network: ``timm:NAME`` or ``torchvision:NAME``.
        output_stride: of the map; None: as it is.
        pretrained: with its package's own weights.
    """

    def __init__(self, network: str, output_stride: int | None = None, pretrained: bool = False) -> None:
        super().__init__()
        self.body, channels = _body(network, output_stride, True, pretrained)
        self.out_channels = channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, out_channels, H / stride, W / stride)."""
        features = self.body(x)
        last: Tensor = list(features.values())[-1] if isinstance(features, dict) else features[-1]
        return last


class Pyramid(nn.Module):
    """A backbone's feature maps of stride 4 to 32, and an FPN on them.

    Args:
        network: ``timm:NAME`` or ``torchvision:NAME``.
        width: channels of the FPN.
        norm_layer: behind its convolutions.
        pretrained: the backbone with its package's own weights.
    """

    def __init__(
        self, network: str, width: int, norm_layer: Callable[..., nn.Module] | None, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.body, channels = _body(network, None, False, pretrained)
        self.fpn = FeaturePyramidNetwork(channels, width, LastLevelMaxPool(), norm_layer)
        self.out_channels = width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to the maps of the FPN."""
        features = self.body(x)
        maps = features if isinstance(features, dict) else {str(i): f for i, f in enumerate(features)}
        pyramid: dict[str, Tensor] = self.fpn(maps)
        return pyramid


def _body(network: str, output_stride: int | None, last: bool, pretrained: bool) -> tuple[nn.Module, list[int]]:
    package, name = split_name(network)
    if package == "timm":
        options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
        try:
            options |= {"out_indices": (-1,) if last else (-4, -3, -2, -1), "pretrained": pretrained}
            body = timm().create_model(name, features_only=True, **options)
        except (RuntimeError, TypeError, AttributeError, ValueError, KeyError, OSError) as error:
            # each network of timm refuses features_only or a stride in its own way; OSError: weights out of reach
            raise ValueError(f"timm's '{name}' cannot be a backbone: {str(error).splitlines()[0]}") from error
        strides = body.feature_info.reduction()
        if not last and strides != [4, 8, 16, 32]:
            raise ValueError(f"timm's '{name}' has feature maps of strides {strides}, an FPN needs 4, 8, 16, 32")
        if output_stride is not None and strides[-1] != output_stride:
            raise ValueError(f"timm's '{name}' has output stride {strides[-1]}, not {output_stride}")
        return body, list(body.feature_info.channels())
    if package == "torchvision" and name.startswith(("resnet", "resnext", "wide_resnet")):
        dilate = {None: None, 32: None, 16: [False, False, True], 8: [False, True, True]}
        if output_stride not in dilate:
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        weights = "DEFAULT" if pretrained else None
        try:
            whole = zoo.get_model(name, weights=weights, replace_stride_with_dilation=dilate[output_stride])
        except (NotImplementedError, ValueError, KeyError) as error:  # BasicBlock is not dilated; no such weights
            raise ValueError(f"torchvision's '{name}' cannot have output stride {output_stride}: {error}") from error
        layers = {"layer4": "0"} if last else {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}
        body = IntermediateLayerGetter(whole, layers)
        channels = [_channels(whole, layer) for layer in layers]
        return body, channels
    raise ValueError(f"'{network}' cannot be a backbone; choose timm:NAME, or a ResNet as torchvision:NAME")


def _channels(network: nn.Module, layer: str) -> int:
    block = getattr(network, layer)[-1]
    return int((block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels)
