"""Detection datasets whose objects have boxes and no masks."""

from pathlib import Path
from typing import Any

from wsbench.datamodules.annotations import BoxesOnlyError
from wsbench.datamodules.coco import COCO
from wsbench.datamodules.prepare.base import Asked, Preparation
from wsbench.errors import UserError


class COCOPreparation(Preparation):
    """Finds out whether there are masks; a dataset without them trains a Faster R-CNN."""

    def options(self, root: Path, asked: Asked) -> dict[str, Any]:
        """``masks`` is false where there are none."""
        try:
            COCO(root=str(root), num_workers=0).setup("validate")
        except BoxesOnlyError:
            return {"masks": False}
        except UserError:  # which is found again, where all faults are
            pass
        return {}

    def command_options(self, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """Without ``masks``, which follows the network."""
        return {name: value for name, value in super().command_options(options, defaults).items() if name != "masks"}

    def model_options(self, options: dict[str, Any], network: str) -> dict[str, Any]:
        """The network without masks."""
        return {} if options.get("masks", True) else {"network": network.replace("mask_rcnn", "faster_rcnn")}
