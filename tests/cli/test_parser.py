"""One parser says what ``fit`` takes: the command's and that of a sweep's resolver do not part."""

from typing import Any

import pytest
from lightning.pytorch.cli import LightningArgumentParser

from tests import tiny
from wsbench.cli.lightning import BenchmarkCLI
from wsbench.cli.parser import find_dataset, fit_parser, plain, recipe_defaults
from wsbench.configuration.choice import choose


class _StopError(Exception):
    """The parser is made; nothing is to be run."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[LightningArgumentParser]:
    """The parsers of the command, which stops before it parses."""
    found: list[LightningArgumentParser] = []

    def stop(cli: Any, *args: Any) -> None:
        found.extend(cli._subcommand_parsers.values())
        raise _StopError

    monkeypatch.setattr(BenchmarkCLI, "parse_arguments", stop)
    return found


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_resolver_takes_what_fit_takes(task: str, made: list[LightningArgumentParser]) -> None:
    choice = choose(["--task", task, "--recipe", "mini"], find_dataset)
    with pytest.raises(_StopError):
        BenchmarkCLI(choice, ["fit", "--task", task])
    (command,), resolver = made, fit_parser(choice, choice.configs)
    assert plain(command.get_defaults()) == plain(resolver.get_defaults())

    def options(parser: LightningArgumentParser) -> dict[str, Any]:
        return {a.dest: getattr(a, "_typehint", a.type) for a in parser._actions if a.dest not in ("help", "config")}

    assert options(command) == options(resolver)
    assert recipe_defaults(choice) == plain(resolver.get_defaults())
