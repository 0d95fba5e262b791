"""The door: chooses a subcommand before anything heavy is imported."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # `python -m` looks there first: a file in a stranger's folder may be called as a module is

import difflib
import io
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from wsbench import plugins
from wsbench.cli import arguments
from wsbench.configuration import fields
from wsbench.errors import exit_status
from wsbench.options import UsageError
from wsbench.registry import TASKS

if TYPE_CHECKING:
    from wsbench.grid.plan import Resolve

_PROCESS = os.getpid()
TRAINER = ("fit", "validate", "test", "predict")
HELP = """\
usage: python -m wsbench COMMAND [options]

Which normalization should I train with when only one or two images fit on a GPU?

commands
  fit          train, evaluate, write a result record      fit --task voc --norm gn+ws
  validate     evaluate a checkpoint                       validate --ckpt_path runs/voc/ID/last.ckpt
  test         the same on the test split
  predict      apply a checkpoint to a folder of images    predict --ckpt_path X --data.pictures FOLDER
  analyze      why it works: gradients, curvature          analyze --task imagenet; analyze --ckpt_path X
               why it might not: checks of a model         analyze diagnose MODEL_OR_CKPT
  export       the network as ONNX, TorchScript or pt2     export --ckpt_path X --format onnx
  data         verify and prepare a dataset                data voc --root FOLDER
  recommend    which norm on your own data, in a budget    recommend --task voc --data.root FOLDER --budget 2h
  sweep        a grid: on this machine, Slurm or Ray       sweep table2; sweep status table2; sweep list
  leaderboard  result records to CSV                       leaderboard; leaderboard submit RUN
               are they right, is it significant?          leaderboard check; leaderboard compare gn+ws gn
  report       leaderboards as one HTML page               report
  norms        every normalization: paper, what it sees, cost
  doctor       versions, devices, optional parts           doctor
  completion   of commands and options, for a shell        source <(python -m wsbench completion bash)

options of fit, validate, test and predict (COMMAND --task voc --help shows every field,
COMMAND --help trainer those of Lightning's Trainer)
  --task NAME         {tasks}
  --norm SPEC         ACT[GROUPS][+WEIGHT[-VARIANT]][@SEMANTICS]: gn+ws, gn16+ws, bn, ln+wn, gn+ws-mo, gn+ws@authors
  --data.root FOLDER  the dataset (default: $WSBENCH_DATA); it is used or rejected. Without one: the miniature
  --recipe NAME       paper (default with a dataset), small (for a dataset of your own), mini (without one)
  --seed_everything N initialization, shuffling and augmentation (default: 0)
  --ckpt_path PATH    a checkpoint; for fit, `last` resumes the interrupted run of the same configuration,
                      and `auto` does so if there is one
  --import MODULE     norms of your own, of every command (docs/plugin.md); installed packages add theirs themselves
  --config FILE       settings, for instance a run's config.yaml; options after it override it
  --print_config      print the resolved configuration and stop
""".replace("{tasks}", ", ".join(TASKS))


def _trainer(argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        of_task = "trainer" in argv or any(word.startswith("--task") for word in argv)
        print(fields.help_text(argv) if of_task else HELP, end="")  # which fields there are depends on the task
        return 0
    fields.require_known(argv[1:])
    from wsbench.cli.fit_command import main

    return main(argv)


def _export(argv: Sequence[str]) -> int:
    args = arguments.export().parse_args(argv[1:])
    from wsbench.export.export_command import main

    return main(args)


def _analyze(argv: Sequence[str]) -> int:
    if argv[1:2] in (["diagnose"], ["doctor"]):  # "doctor": its name in 0.1
        if argv[1] == "doctor":
            print("wsbench: note: `analyze doctor` is called `analyze diagnose` now", file=sys.stderr)
        subject = arguments.analyze_diagnose().parse_args(argv[2:])
        from wsbench.analysis.diagnose_command import main as diagnose

        return diagnose(subject)
    args, rest = arguments.analyze().parse_known_args(argv[1:])
    from wsbench.analysis.analyze_command import main
    from wsbench.cli.fit_command import fit

    return main(args, rest, fit)


def _data(argv: Sequence[str]) -> int:
    args = arguments.data().parse_args(argv[1:])
    from wsbench.cli.data import main

    return main(args)


def _divided(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own options, and those of ``fit`` behind ``--``."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[1:at]), list(argv[at + 1 :])


def _recommend(argv: Sequence[str]) -> int:
    line, further = _divided(argv)
    args = arguments.recommend().parse_args(line)
    fields.require_known(further)
    from wsbench.recommend.recommend_command import main

    return main(args, further)


def _sweep(argv: Sequence[str]) -> int:
    line, further = _divided(argv)
    args = arguments.sweep().parse_args(line)
    from wsbench.grid.sweep_command import main

    return main(args, further, _resolver)


def _resolver() -> "Resolve":
    from wsbench.cli.resolver import Resolver

    return Resolver()


def _leaderboard(argv: Sequence[str]) -> int:
    command, rest = "leaderboard", argv[1:]
    if f"leaderboard {' '.join(rest[:1])}" in arguments.PARSERS:
        command, rest = f"leaderboard {rest[0]}", rest[1:]
    args = arguments.PARSERS[command]().parse_args(rest)
    from wsbench.leaderboard.leaderboard_command import main

    return main(command, args)


def _report(argv: Sequence[str]) -> int:
    args = arguments.report().parse_args(argv[1:])
    from wsbench.leaderboard.page.report_command import main

    return main(args)


def _norms(argv: Sequence[str]) -> int:
    args = arguments.norms().parse_args(argv[1:])
    from wsbench.cli.norms import main

    return main(args)


def _doctor(argv: Sequence[str]) -> int:
    arguments.doctor().parse_args(argv[1:])
    from wsbench.cli.doctor import main

    return main()


def _completion(argv: Sequence[str]) -> int:
    args = arguments.completion().parse_args(argv[1:])
    from wsbench.cli.completion import script

    print(script(args.shell, TRAINER))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    **dict.fromkeys(TRAINER, _trainer),
    "analyze": _analyze,
    "export": _export,
    "data": _data,
    "recommend": _recommend,
    "sweep": _sweep,
    "leaderboard": _leaderboard,
    "report": _report,
    "norms": _norms,
    "doctor": _doctor,
    "completion": _completion,
}


def _command(argv: Sequence[str]) -> int:
    """Run the command that the line names.

    Raises:
        UserError: whatever is wrong.
    """
    broken = next((word for word in argv if "\0" in word), None)
    if broken is not None:
        raise UsageError(f"an argument holds a null byte: {broken!r}")
    argv = plugins.request(argv)
    sys.argv[1:] = argv  # the processes of DDP have the modules from the environment
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}? There are" if near else "choose from"
        raise UsageError(f"unknown command '{argv[0]}'; {hint} {', '.join(COMMANDS)}")
    return COMMANDS[argv[0]](argv)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Say what ended the process: while it trains, sweeps or waits, others listen (run/stopping.py, grid/local.py)."""
    if os.getpid() != _PROCESS:  # a worker of a DataLoader, which was forked with this handler
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    print("wsbench: stopped by SIGTERM", file=sys.stderr)
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return the exit status.

    An ``argv`` given here also becomes ``sys.argv``: Lightning starts the other processes of DDP from that.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    if argv is None:
        argv = sys.argv[1:]
        signal.signal(signal.SIGTERM, _terminated)
        os.environ["PYTHONSAFEPATH"] = "1"  # the processes that this one starts do not look there either
    else:
        sys.argv[1:] = argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if argv[0] in ("-V", "--version"):
        from wsbench import __version__

        print(f"wsbench {__version__}")
        return 0
    try:
        return exit_status(lambda: _command(argv))
    except KeyboardInterrupt:
        if os.environ.get("WSBENCH_DEBUG"):
            raise
        print("wsbench: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes there
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
