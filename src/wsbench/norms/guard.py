"""The checkpoint guard: ``gn`` and ``gn+ws`` have the same keys and shapes, only the stored spec tells them apart."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from wsbench.errors import UserError
from wsbench.norms.spec import NormSpec

KEY = "norm_spec"


class NormMismatchError(UserError, RuntimeError):
    """Weights trained under one normalization, about to be used under another."""


def stamp_spec(checkpoint: MutableMapping[str, Any], spec: str | NormSpec) -> None:
    """Store ``spec`` in a checkpoint, beside (never inside) its state dict."""
    checkpoint[KEY] = str(NormSpec.parse(spec))


def require_spec(checkpoint: Mapping[str, Any], spec: str | NormSpec, source: str = "the checkpoint") -> None:
    """Refuse a checkpoint of another normalization, or of an unknown one.

    Args:
        checkpoint: as loaded; :func:`stamp_spec` wrote its spec.
        spec: what the model was converted to.
        source: where the checkpoint came from, for the message.

    Raises:
        NormMismatchError: naming both specs, or saying that the checkpoint names none.
    """
    wanted = str(NormSpec.parse(spec))
    stamped = checkpoint.get(KEY)
    if stamped is None:
        raise NormMismatchError(
            f"{source} does not say which normalization it was trained with (no {KEY!r} in it), and the model is "
            f"'{wanted}'; weights cannot tell 'gn' from 'gn+ws'. If you know that it is '{wanted}', say "
            f"{wanted}=CHECKPOINT, or save it as {{'state_dict': ..., {KEY!r}: '{wanted}'}}"
        )
    if str(NormSpec.parse(stamped)) != wanted:
        raise NormMismatchError(
            f"{source} was trained with '{stamped}', the model is '{wanted}'; the weights would load and the numbers "
            f"would be wrong. Use --norm {stamped}, or a checkpoint of '{wanted}'"
        )
