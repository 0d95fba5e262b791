"""``python -m wsbench completion bash|zsh``: completion of commands and options, by shtab."""

import argparse

import shtab

from wsbench.cli import arguments
from wsbench.configuration import fields
from wsbench.configuration.choice import RECIPES
from wsbench.registry import TASKS


def script(shell: str, trainer: tuple[str, ...]) -> str:
    """The shell's script.

    Args:
        shell: ``bash`` or ``zsh``.
        trainer: the commands that have the fields of tasks, data and Trainer.
    """
    parser = argparse.ArgumentParser(prog="wsbench", add_help=False)
    below = parser.add_subparsers()
    for name in trainer:
        one = below.add_parser(name, add_help=False, help=name)
        for option in fields.names():
            choices = {"--task": tuple(TASKS), "--recipe": RECIPES}.get(option)
            action = one.add_argument(option, choices=choices)
            if option in ("--config", "--ckpt_path"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif option in ("--data.root", "--data.pictures", "--runs", "--output"):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for name, make in arguments.PARSERS.items():
        first, _, second = name.partition(" ")
        if not second:
            own = below.add_parser(first, parents=[make()], add_help=False, help=name)
            if any(other.startswith(f"{first} ") for other in arguments.PARSERS):
                groups[first] = own.add_subparsers()
        else:
            groups[first].add_parser(second, parents=[make()], add_help=False, help=second)
    return str(shtab.complete(parser, shell=shell))
