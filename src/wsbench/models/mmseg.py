"""Segmentation networks of mmsegmentation, as plain modules (extra ``mmseg``; see scripts/install-mmseg)."""

import torch.nn.functional as F
from torch import Tensor, nn

from wsbench.extras import MissingPartError

INSTALL = "build it with scripts/install-mmseg (mmsegmentation needs mmcv with compiled ops)"


class MMSegNetwork(nn.Module):
    """One of mmsegmentation's EncoderDecoders as images to logits.

    Its auxiliary head, losses, data preprocessor and pretrained weights are left out; SyncBN becomes BN, which
    :func:`wsbench.norms.normalize` then converts like any other.

    Args:
        config: a config of mmsegmentation by path below its ``configs``, without ``.py``, for instance
            ``deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512``.
        num_classes: classes of the decode head.

    Raises:
        MissingPartError: if mmsegmentation is not installed.
        ValueError: for a config that it does not ship, with the nearest names.
    """

    def __init__(self, config: str, num_classes: int) -> None:
        super().__init__()
        try:
            from mmengine.config import Config
            from mmseg.registry import MODELS
            from mmseg.utils import register_all_modules
        except ImportError as error:
            raise MissingPartError(f"network 'mmseg:{config}' needs mmsegmentation ({error}); {INSTALL}") from error
        register_all_modules(init_default_scope=True)
        model = Config.fromfile(_config_file(config)).model
        if "backbone" not in model:
            raise ValueError(f"'mmseg:{config}' is no encoder and decoder of images ({model.type}); choose another")
        _replace_sync_bn(model)
        model.backbone.init_cfg = model.pretrained = None
        model.auxiliary_head = model.data_preprocessor = None
        heads = model.decode_head if isinstance(model.decode_head, list) else [model.decode_head]
        for head in heads:
            head.num_classes = num_classes
        network = MODELS.build(model)
        network.init_weights()
        self.network = network
        self.cascade = isinstance(network.decode_head, nn.ModuleList)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes, H, W)."""
        features = self.network.extract_feat(x)
        if self.cascade:
            logits = self.network.decode_head[0](features)
            for head in self.network.decode_head[1:]:
                logits = head(features, logits)
        else:
            logits = self.network.decode_head(features)
        if isinstance(logits, tuple):  # heads with outputs for auxiliary losses behind the logits (DANet, EncNet)
            logits = logits[0]
        corners = self.network.align_corners
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=corners)


def _config_file(config: str) -> str:
    from difflib import get_close_matches
    from importlib.resources import files

    folder = files("mmseg") / ".mim" / "configs"
    path = folder / f"{config}.py"
    if path.is_file():
        return str(path)
    names = [
        f"{family.name}/{file.name.removesuffix('.py')}"
        for family in folder.iterdir()
        if family.is_dir() and not family.name.startswith("_")
        for file in family.iterdir()
        if file.name.endswith(".py")
    ]
    near = get_close_matches(config, names, n=3, cutoff=0.3)
    raise ValueError(f"mmsegmentation ships no config '{config}'; nearest: {', '.join(near)}")


def _replace_sync_bn(node: object) -> None:
    """SyncBN needs a GPU and a process group; the benchmark chooses the normalization itself."""
    if isinstance(node, dict):
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        for value in node.values():
            _replace_sync_bn(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _replace_sync_bn(value)
