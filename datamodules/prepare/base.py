"""What ``wsbench data`` can do for a dataset beyond verifying it: build what is missing, know its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsbench.datamodules.prepare.checks import Finding


@dataclass(frozen=True)
class Asked:
    """Options of ``wsbench data`` that belong to one dataset; each is refused for the others."""

    download: bool = False
    rebuild: bool = False
    train_masks: str | None = None
    train_set: str | None = None
    class_names: str | None = None

    def given(self) -> list[str]:
        """Those that were given."""
        return [name for name, value in vars(self).items() if value]


class Preparation:
    """Of a dataset that needs nothing; :class:`~wsbench.registry.TaskEntry` names the subclass of one that does."""

    #: fields of :class:`Asked` that it has a use for
    takes: tuple[str, ...] = ()

    def build(self, root: Path, asked: Asked) -> str | None:
        """Build what can be built of what lies under ``root``; says what was done.

        Raises:
            DatasetError: something there is not what it should be.
        """
        return None

    def options(self, root: Path, asked: Asked) -> dict[str, Any]:
        """Options of the data that this copy needs: for verifying it, and in the command to train."""
        return {}

    def command_options(self, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """Of :meth:`options` those that the command to train has to name.

        Args:
            options: of the data.
            defaults: the recipe's.
        """
        return {name: value for name, value in options.items() if defaults.get(name) != value}

    def model_options(self, options: dict[str, Any], network: str) -> dict[str, Any]:
        """Options of the model in the command to train.

        Args:
            options: of the data.
            network: the recipe's.
        """
        return {}

    def lacks_val(self, root: Path) -> bool:
        """Whether there are samples under ``root`` and no val of them, which :meth:`split` can make."""
        return False

    def split(self, root: Path, out: Path) -> Path | None:
        """Hold out a fifth of the samples under ``root`` as val; ``root`` is not touched.

        Args:
            root: the user's folder.
            out: where a folder of links in the official layout is made; it is called by what it holds.

        Returns:
            The folder; None where ``root`` is not such data.

        Raises:
            DatasetError: a class has one sample only, or links cannot be made.
        """
        return None

    def check_official(self, root: Path, asked: Asked) -> list[Finding]:
        """What the paper's recipe needs beyond what every dataset is checked for."""
        return []
