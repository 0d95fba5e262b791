"""The door: chooses a subcommand before anything heavy is imported."""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

from wsbench.errors import exit_status

TRAINER = ("fit", "validate", "test", "predict")
HELP = """\
usage: python -m wsbench COMMAND [options]

Which normalization should I train with when only one or two images fit on a GPU?

commands
  fit          train, evaluate, write a result record      fit --task voc --norm gn+ws
  validate     evaluate a checkpoint                       validate --ckpt_path runs/voc/ID/last.ckpt
  test         the same on the test split
  predict      apply a checkpoint to a folder of pictures  predict --ckpt_path X --data.pictures FOLDER
  analyze      why it works: gradients, curvature          analyze --task imagenet; analyze --ckpt_path X
               why it might not: checks of a model         analyze doctor MODEL_OR_CKPT
  export       the network as ONNX, TorchScript or pt2     export --ckpt_path X --format onnx
  data         verify and prepare a dataset                data voc --root FOLDER
  sweep        a grid: on this machine, Slurm or Ray       sweep table2; sweep status table2; sweep list
  leaderboard  result records to CSV                       leaderboard; leaderboard submit RUN
               are they right, is it more than noise?      leaderboard check; leaderboard compare gn+ws gn
  report       leaderboards as one HTML page               report
  norms        every normalization: paper, what it sees, cost
  doctor       versions, devices, optional parts           doctor

options of fit, validate, test and predict (COMMAND --task voc --help shows every field)
  --task NAME         imagenet, something, voc, modelnet40, coco
  --norm SPEC         ACT[GROUPS][+WEIGHT[-VARIANT]][@SEMANTICS]: gn+ws, gn16+ws, bn, ln+wn, gn+ws-mo, gn+ws@authors
  --data.root FOLDER  the dataset (default: $WSBENCH_DATA); it is used or refused. Without one: the miniature
  --recipe NAME       paper (default with a dataset), small (for a dataset of your own), mini (without one)
  --seed_everything N initialization, shuffling and augmentation (default: 0)
  --ckpt_path PATH    a checkpoint; for fit, `last` resumes the interrupted run of the same configuration,
                      and `auto` does so if there is one
  --import MODULE     norms of your own, of every command (docs/plugin.md); installed packages add theirs themselves
  --config FILE       settings, for instance a run's config.yaml; options behind it overrule it
  --print_config      print the resolved configuration and stop
"""


def _trainer(argv: Sequence[str]) -> int:
    from wsbench.cli import main

    return main(argv)


def _export(argv: Sequence[str]) -> int:
    from wsbench.export.command import main

    return main(argv)


def _analyze(argv: Sequence[str]) -> int:
    if argv[1:2] == ["doctor"]:
        from wsbench.analysis.doctor import main as doctor

        return doctor(argv[2:])
    from wsbench.analysis.command import main
    from wsbench.cli import USER_ERRORS, fit

    return main(argv, fit, USER_ERRORS)


def _data(argv: Sequence[str]) -> int:
    from wsbench.prepare import main

    return main(argv)


def _sweep(argv: Sequence[str]) -> int:
    from wsbench.cli import USER_ERRORS
    from wsbench.grid.command import main
    from wsbench.resolve import Resolver

    return main(argv, Resolver, USER_ERRORS)


def _leaderboard(argv: Sequence[str]) -> int:
    from wsbench.leaderboard.command import main

    return main(argv[1:])


def _report(argv: Sequence[str]) -> int:
    from wsbench.leaderboard.page.command import main

    return main(argv)


def _norms(argv: Sequence[str]) -> int:
    from wsbench.catalogue import main

    return main(argv)


def _doctor(argv: Sequence[str]) -> int:
    from wsbench.doctor import main

    return main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    **dict.fromkeys(TRAINER, _trainer),
    "analyze": _analyze,
    "export": _export,
    "data": _data,
    "sweep": _sweep,
    "leaderboard": _leaderboard,
    "report": _report,
    "norms": _norms,
    "doctor": _doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return the exit status.

    An ``argv`` given here also becomes ``sys.argv``: Lightning starts the other processes of DDP from that.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    if argv is None:
        argv = sys.argv[1:]
    else:
        sys.argv[1:] = argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if argv[0] in ("-V", "--version"):
        from wsbench import __version__

        print(f"wsbench {__version__}")
        return 0
    from wsbench import plugins

    try:
        argv = plugins.request(argv)
        sys.argv[1:] = argv  # the processes of DDP have the modules from the environment
    except plugins.PluginError as error:
        print(f"wsbench: error: {error}", file=sys.stderr)
        return 2
    if argv[0] not in COMMANDS:
        print(f"wsbench: error: unknown command '{argv[0]}'; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if argv[0] in TRAINER and {"-h", "--help"} & set(argv) and not any(a.startswith(("--task", "--c")) for a in argv):
        print(HELP, end="")  # which fields there are depends on the task
        return 0
    try:
        status: list[int] = []
        return exit_status(lambda: status.append(COMMANDS[argv[0]](argv))) or status[0]
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
