"""``fit``, ``validate``, ``test`` and ``predict``: quietly, and with others' errors as ours where a user can help."""

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_only

from wsbench.cli.ending import derive_tables
from wsbench.cli.lightning import BenchmarkCLI
from wsbench.cli.parser import find_dataset
from wsbench.cli.session import FinishedError
from wsbench.configuration.choice import choose
from wsbench.errors import UserError
from wsbench.options import UsageError
from wsbench.run import folder as run_folder
from wsbench.run import lock, nodes, report
from wsbench.run.loggers import finish
from wsbench.run.stopping import Interrupted


def _quiet() -> None:
    """Leave out what Lightning says about itself; its warnings about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # which process has ended, before the others are ended with it
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    for message in (
        ".*LeafSpec.*",
        ".*exists and is not empty.*",  # config.yaml is there before the first checkpoint
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",  # the task logs by itself, see BenchmarkTask
        ".*callbacks used to create the checkpoint.*",  # evaluating needs none of them
        ".*dirpath has changed.*",
        ".*The `srun` command is available on your system but is not used.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # the stream resumes where it was
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # its report is a message of its logger
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")


def fit(argv: Sequence[str]) -> Path:
    """Run ``fit`` with these options, or find it finished; returns the run's folder.

    Raises:
        UserError: something is wrong that the user can mend.
    """
    _quiet()
    line = ["fit", *argv]
    sys.argv[1:] = line  # Lightning starts the other processes of DDP from that
    try:
        return cast(Path, _run(line))
    except FinishedError as finished:
        return finished.folder


def _run(argv: Sequence[str]) -> Path | None:
    """Run a subcommand; returns the folder of a run that was fitted, which this process lets go of."""
    cast(Any, rank_zero_only).rank = nodes.process_rank()  # Lightning's own guess does not know NODE_RANK
    choice = choose(argv[1:], find_dataset, argv[0])
    try:
        session = BenchmarkCLI(choice, argv).session
    except BaseException as error:
        if not isinstance(error, Interrupted | KeyboardInterrupt):
            lock.discard(run_folder.STARTED)
        message = _for_the_user(error)
        if message is None:
            raise
        raise message from error
    finally:
        finish()
        lock.release()
    return None if session is None else session.folder


def _for_the_user(error: BaseException) -> BaseException | None:
    """What is to be raised for an error of torch or Lightning that a user can do something about; None: itself."""
    if isinstance(error, argparse.ArgumentTypeError):  # a value in a configuration, which the parser has as a default
        return UsageError(str(error))
    if isinstance(error, Interrupted) and nodes.process_rank():  # the first process says it
        return SystemExit(error.exit_status)
    if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes 1 of it
        return Interrupted("stopped by SIGINT", 128 + signal.SIGINT)
    if not isinstance(error, RuntimeError) or isinstance(error, UserError):
        return None
    first = (str(error).splitlines() or [""])[0]
    if nodes.has_lost_a_process(error):
        return nodes.NodeError(
            f"another process of this run has ended or cannot be reached ({first}); its own output says why; "
            "--ckpt_path auto resumes from the last checkpoint"
        )
    if first.startswith("DataLoader worker"):
        return UsageError(
            f"a process that loads data has died ({first}); is there enough memory (also shared: /dev/shm)? "
            "--data.num_workers 0 loads in this process and shows what is wrong"
        )
    return None


def main(argv: Sequence[str]) -> int:
    """Run fit, validate, test or predict; returns the exit status."""
    _quiet()
    try:
        _run(argv)
    except FinishedError as finished:
        report.console().print(f"this run is finished: {finished.folder}; --overwrite true runs it again")
        derive_tables(finished.folder)
    nodes.leave()
    return 0
