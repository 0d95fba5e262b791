"""What a datamodule raises when its data is not as it should be."""

from pathlib import Path


class DatasetError(RuntimeError):
    """Data that is missing, incomplete or broken; the message names the file and the way out."""


class DatasetNotFoundError(DatasetError):
    """No dataset where one was looked for."""

    def __init__(self, dataset: str, looked: Path | None, command: str) -> None:
        where = f"under '{looked}'" if looked else "anywhere: neither --data.root nor $WSBENCH_DATA is set"
        super().__init__(
            f"{dataset} was not found {where}. Point --data.root (or $WSBENCH_DATA) to it, "
            f"run `{command}` to see the expected layout and how to get it, or use --recipe mini"
        )
