"""What is wrong with a task's options, its checkpoint, or its numbers."""

from wsbench.errors import UserError


class TaskOptionError(UserError, ValueError):
    """An option of a task that does not exist or does not fit the others."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that does not belong to the network or the training that it is to be loaded into."""


class NotFiniteError(UserError, FloatingPointError):
    """A loss or an output that is NaN or infinite."""
