"""Clouds that hold fewer points than the paper's recipe takes."""

from pathlib import Path
from typing import Any

from wsbench.datamodules.clouds import stored_points
from wsbench.datamodules.modelnet40 import hdf5_files, hdf5_folder
from wsbench.datamodules.prepare.base import Asked, Preparation
from wsbench.datamodules.prepare.split import meshes_in_classes, split_meshes
from wsbench.errors import UserError

#: of a cloud, in the paper's recipe
POINTS = 1024


class ModelNetPreparation(Preparation):
    """Takes as many points as there are."""

    def lacks_val(self, root: Path) -> bool:
        """Whether meshes lie in the class folders themselves."""
        return bool(meshes_in_classes(root))

    def split(self, root: Path, out: Path) -> Path | None:
        """Class by class, by the samples' names."""
        return split_meshes(root, out)

    def options(self, root: Path, asked: Asked) -> dict[str, Any]:
        """``points``, at most the paper's."""
        folder = hdf5_folder(root)
        try:
            stored = None if folder is None else stored_points(hdf5_files(folder, "train")[0])
        except UserError:  # which is found again, where all faults are
            stored = None
        return {"points": min(stored or POINTS, POINTS)}

    def command_options(self, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """Without ``points`` where there are more than the recipe takes."""
        needed = super().command_options(options, defaults)
        if needed.get("points", 0) > defaults.get("points", 0):
            del needed["points"]
        return needed
