"""Which process of a run this is, and how the nodes of a run that nobody else starts find each other."""

import datetime
import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from wsbench.errors import UserError

#: seconds that nodes wait for each other when a run starts
PATIENCE = "WSBENCH_START_TIMEOUT"
DEFAULT_PATIENCE = 300.0


class NodeError(UserError, RuntimeError):
    """Processes of one run that do not find each other, or of which one has gone."""

    exit_status = 75  # EX_TEMPFAIL: the same command may well go on later


def process_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's global rank if a launcher says it, else a number that is 0 in the first process of the first node.

    In the order that Lightning believes them: ``RANK`` (torchrun), then ``LOCAL_RANK`` with ``NODE_RANK`` or
    ``GROUP_RANK`` (Lightning's own processes, or started by hand), then ``SLURM_PROCID``. A node that was started by
    hand with ``NODE_RANK=1`` has no ``LOCAL_RANK`` yet, and is not the first process all the same.
    """
    if "RANK" in environment:
        return _number(environment, "RANK")
    if "LOCAL_RANK" not in environment and "SLURM_PROCID" in environment and "NODE_RANK" not in environment:
        return _number(environment, "SLURM_PROCID")
    node = _number(environment, "NODE_RANK" if "NODE_RANK" in environment else "GROUP_RANK")
    return node + _number(environment, "LOCAL_RANK")


def _number(environment: Mapping[str, str], name: str, default: float = 0) -> int:
    """A variable of the environment that is to be a whole number; NodeError if it is none."""
    text = environment.get(name, str(int(default)))
    if not text.isdecimal():
        raise NodeError(f"{name}={text} in the environment: expected a number, 0 or more")
    return int(text)


#: the store of a run's nodes, which lives as long as the process
_STORES: list[Any] = []


def meet(num_nodes: int) -> None:
    """Wait until all nodes of a run have started; nothing where a launcher (torchrun, Slurm) sees to that.

    The first process of the first node serves the store at ``MASTER_ADDR:MASTER_PORT`` that torch.distributed uses
    then, too, so there is one port to open.

    Raises:
        NodeError: MASTER_ADDR, MASTER_PORT or NODE_RANK is missing or wrong, or a node does not come in time.
    """
    if num_nodes < 2 or _STORES or _number(os.environ, "LOCAL_RANK") != 0:
        return
    if TorchElasticEnvironment.detect() or SLURMEnvironment.detect():
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not os.environ.get(name)]
    if missing:
        raise NodeError(
            f"--trainer.num_nodes {num_nodes} without a launcher needs {', '.join(missing)} in the environment: the "
            "name of the first node, a free port there, and 0, 1, ... for this node; or use torchrun "
            "(deploy/torchrun.sh) or Slurm"
        )
    address, port, node = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["NODE_RANK"]
    if not port.isdecimal() or not node.isdecimal() or int(node) >= num_nodes:
        raise NodeError(f"MASTER_PORT={port} NODE_RANK={node}: expected a port, and a node from 0 to {num_nodes - 1}")
    seconds = _number(os.environ, PATIENCE, DEFAULT_PATIENCE)
    patience = datetime.timedelta(seconds=seconds)
    try:
        store = TCPStore(address, int(port), is_master=node == "0", timeout=patience, wait_for_workers=False)
        store.set(f"wsbench/node/{node}", "here")
        store.wait([f"wsbench/node/{other}" for other in range(num_nodes)], patience)
    except RuntimeError as error:  # of which the errors of torch.distributed are kinds
        raise NodeError(
            f"not all {num_nodes} nodes met at {address}:{port} within {seconds} s (this is node {node}): "
            f"start the same command with NODE_RANK=0 to {num_nodes - 1} on each, and look whether the first can be "
            f"reached and the port is free; {PATIENCE} sets the seconds"
        ) from error
    _STORES.append(store)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # torch.distributed joins this store instead of making one


def leave() -> None:
    """Let go of the other processes of a run that has ended well.

    Lightning does so for NCCL only. Gloo's threads that still run when the interpreter ends now and then abort it,
    after everything has been written.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


#: what gloo, NCCL and the store say when a process on the other side has gone
_GONE = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe", "Socket Timeout",
         "wait timeout", "NCCL communicator was aborted", "remote process exited", "recvValue failed", "Socket closed",
         "Connection refused")  # fmt: skip


def has_lost_a_process(error: BaseException) -> bool:
    """Whether an error is what a process gets when another one of the run has ended."""
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _GONE)
