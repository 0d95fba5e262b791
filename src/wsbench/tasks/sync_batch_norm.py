"""Lightning's ``sync_batchnorm`` by wsbench's own layer."""

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from wsbench.norms.batch import SyncBatchNorm


class SyncBatchNorms(TorchSyncBatchNorm):
    """While a strategy runs, every BN of a module is a :class:`~wsbench.norms.batch.SyncBatchNorm`.

    The layers stay the objects that they are and change their class, so what holds them (optimizers, EdgeConv, a
    report) holds them still; Lightning's own plugin puts torch's layers in their place and plain ones back. Works on
    CPUs, and where DGCNN normalizes by moments.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, type[nn.Module]]] = []

    @override
    def apply(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm | nn.SyncBatchNorm):
                self._before.append((module, type(module)))
                module.__class__ = SyncBatchNorm
        return model

    @override
    def revert(self, model: nn.Module) -> nn.Module:
        while self._before:
            module, cls = self._before.pop()
            module.__class__ = cls
        return model
