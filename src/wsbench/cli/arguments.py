"""What each command takes, apart from what it does: a --help and a typo are answered before anything heavy is imported.

The options of fit, validate, test and predict are in :mod:`wsbench.configuration.fields`.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsbench.configuration.choice import CASE_STUDY, RECIPES
from wsbench.options import Parser
from wsbench.registry import TASKS

LAUNCHERS = ("local", "slurm", "ray")
FORMATS = ("onnx", "torchscript", "pt2", "safetensors")


def _values(text: str) -> tuple[str, list[Any]]:
    from wsbench.grid.definition import GridError, parse_values

    try:
        return parse_values(text)
    except GridError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form KEY=VALUE")
    return key, value


def launching(parser: Parser) -> None:
    """Add how cells are run: what ``sweep`` and ``recommend`` have in common."""
    how = parser.add_argument_group("how")
    how.add_argument("--launcher", choices=LAUNCHERS, default="local", help="(default: local)")
    how.add_argument("--jobs", type=int, help="cells at a time; default: what the devices allow (slurm: no limit)")
    how.add_argument("--devices", type=int, default=1, help="devices of a cell on one node; more than 1 is DDP")
    how.add_argument("--retries", type=int, default=0, help="further attempts at a failed cell (default: 0)")
    slurm = parser.add_argument_group("slurm")
    slurm.add_argument("--partition", help="Slurm's partition")
    slurm.add_argument("--time", type=int, default=24 * 60, metavar="MINUTES", help="limit of a job (default: a day)")
    slurm.add_argument("--nodes", type=int, default=1, help="nodes of a cell (default: 1)")
    slurm.add_argument("--cpus", type=int, metavar="N", help="CPU cores a device")
    slurm.add_argument("--memory", type=float, metavar="GB", help="memory of a node's part")
    slurm.add_argument("--no-gpus", action="store_true", help="cells train on CPUs")
    slurm.add_argument(
        "--slurm", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="further: account, qos, ..."
    )
    slurm.add_argument("--no-wait", action="store_true", help="submit and return; `sweep status` says how it goes")
    ray = parser.add_argument_group("ray")
    ray.add_argument("--address", help="of a Ray cluster, for instance auto; default: start one here")


def sweep() -> Parser:
    """Of ``sweep``."""
    from wsbench.grid.definition import sweep_names

    parser = Parser(
        prog="wsbench sweep",
        usage="%(prog)s NAME|FILE.yaml [options] [-- options of fit for every cell]\n"
        "       %(prog)s status [NAME|FILE.yaml] [options]\n       %(prog)s list",
        description="Run a grid unattended. A cell is one run, found by its resolved configuration: finished ones are "
        "not run again, changed ones are, interrupted ones are resumed. docs/sweeps.md explains grids and launchers.",
        epilog=f"sweeps: {', '.join(sweep_names())}",
    )
    parser.add_argument(
        "words", nargs="+", metavar="NAME", help="a sweep or a YAML file; or `status [NAME]`; or `list`"
    )
    what = parser.add_argument_group("which cells")
    what.add_argument("--recipe", choices=RECIPES, help="default: paper where its datasets are there, else mini")
    what.add_argument(
        "--axis", type=_values, action="append", default=[], metavar="FIELD=V,V", help="replace or add one"
    )
    what.add_argument(
        "--only", type=_values, action="append", default=[], metavar="FIELD=V,V", help="leave the others out"
    )
    what.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders (default: runs)")
    what.add_argument("--records", type=Path, help="a record in this folder counts as done: leaderboards/records")
    what.add_argument("--rerun-stale", action="store_true", help="run again what another version of wsbench has run")
    what.add_argument("--resolve", action="store_true", help="status: look at configurations and data again")
    what.add_argument("--dry-run", action="store_true", help="print every cell's command and run nothing")
    launching(parser)
    return parser


def recommend() -> Parser:
    """Of ``recommend``."""
    parser = Parser(
        prog="wsbench recommend",
        usage="%(prog)s --task TASK --data.root FOLDER --budget 2h [options] [-- options of fit for every run]",
        description="Which norm, at which learning rate, on your own data: measures a step, shows a plan that fits the "
        "budget, tunes every norm alike, trains fresh seeds, and answers with a sentence, a table, a page and lines "
        "for your own code. The same command resumes where it stopped. docs/recommend.md explains it.",
    )
    what = parser.add_argument_group("what")
    what.add_argument("--task", choices=tuple(TASKS), required=True)
    what.add_argument("--data.root", dest="root", type=Path, required=True, metavar="FOLDER",
                      help="your data (docs/data.md); without a val a fifth is held out")  # fmt: skip
    what.add_argument("--budget", required=True, help="time for all of it, with measuring: 2h, 1h30m")
    what.add_argument("--networks", metavar="NAME,NAME",
                      help="of torchvision, timm:NAME, or as of --model.network (default: the recipe's)")  # fmt: skip
    what.add_argument("--pretrained", action="store_true", help="start from the networks' own weights")
    what.add_argument("--norms", metavar="NORM,NORM",
                      help="(default: bn,gn,gn+ws,bn+ws, the last where there is time)")  # fmt: skip
    what.add_argument("--micro-batch", default="auto", metavar="N",
                      help="samples on a device at a time (default: auto, as many as fit)")  # fmt: skip
    what.add_argument("--out", type=Path, help="folder of the answer (default: recommend/TASK-FOLDER)")
    what.add_argument("--dry-run", action="store_true", help="measure, show the plan, and stop")
    launching(parser)
    return parser


def data() -> Parser:
    """Of ``data``."""
    parser = Parser(
        prog="wsbench data",
        description="Show how a dataset lies on disk, read what training would read of yours, name the command that "
        "trains on it.",
    )
    parser.add_argument("task", choices=tuple(TASKS))
    parser.add_argument(
        "--root", default=os.environ.get("WSBENCH_DATA"), help="dataset folder (default: $WSBENCH_DATA)"
    )
    parser.add_argument("--all", action="store_true", help="read all samples of splits above 20,000, too")
    group = parser.add_argument_group("of one dataset (today: voc)")
    group.add_argument("--train-set", help="the list to train on (default: trainaug where it is, else train)")
    group.add_argument("--class-names", help="a file with the names of the classes, one a line")
    group.add_argument("--download", action="store_true", help="fetch VOC 2012 (2 GB) and SBD (1.4 GB), with checksums")
    group.add_argument("--rebuild", action="store_true", help="build trainaug again")
    group.add_argument(
        "--train-masks",
        choices=["voc", "sbd"],
        help="masks of VOC's own training images in trainaug: VOC's with void borders, or SBD's (default: voc)",
    )
    return parser


def analyze() -> Parser:
    """Of ``analyze``; what it does not know are options of ``fit``."""
    parser = Parser(
        prog="wsbench analyze",
        description="What standardization does to gradients and curvature, on your network: the paper's Section 2.3.",
        epilog="`wsbench analyze diagnose MODEL_OR_CKPT` looks for reasons why it does worse than it should. With "
        "--task further options are those of fit, for instance --trainer.max_steps 200 or --data.root FOLDER.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt_path", nargs="+", type=Path, help="checkpoints of runs, whose folders have config.yaml")
    what.add_argument("--task", choices=tuple(TASKS), help="train one run for each --norm, then analyze them")
    parser.add_argument("--norm", help=f"with --task: specs, separated by commas (default: {CASE_STUDY})")
    parser.add_argument("--seed_everything", type=int, default=0, help="with --task (default: 0)")
    parser.add_argument("--snapshots", type=int, default=6, help="with --task: weights looked at (default: 6)")
    parser.add_argument("--samples", type=int, default=32, help="training samples of the loss (default: 32)")
    parser.add_argument("--probes", type=int, default=8, help="random vectors of the curvature (default: 8)")
    parser.add_argument("--device", help="where to measure (default: cuda where there is one, else cpu)")
    parser.add_argument("--output", type=Path, default=Path("analysis"), help="folder of what is written")
    return parser


def analyze_diagnose() -> Parser:
    """Of ``analyze diagnose``."""
    parser = Parser(
        prog="wsbench analyze diagnose",
        description="Look for reasons why weight standardization does worse than it should; each finding names the "
        "layer and the remedy. The exit status is 1 if there are any.",
    )
    parser.add_argument("target", metavar="MODEL_OR_CKPT", help="a run's checkpoint, or a network: timm:NAME, "
                        "torchvision:NAME, or MODULE:FUNCTION that returns one")  # fmt: skip
    parser.add_argument("--config", type=Path, help="of a checkpoint: the run's configuration, if not beside it")
    parser.add_argument("--norm", help="of a model: convert it to this spec first")
    parser.add_argument("--example", help="of a model: the shape of its input, for instance 1,3,224,224")
    parser.add_argument("--ckpt_path", type=Path, help="of a model: weights to load into it")
    parser.add_argument("--init_from", help="of a model: what training started from, CHECKPOINT or SPEC=CHECKPOINT")
    parser.add_argument("--micro_batch", type=int, help="of a model: samples on a device in a micro-step")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    return parser


def export() -> Parser:
    """Of ``export``."""
    parser = Parser(
        prog="wsbench export",
        description="A run's network with its effective weights baked in, checked against PyTorch; or, as safetensors, "
        "its weights as they were trained, in a folder that from_pretrained and --model.init_from read.",
    )
    parser.add_argument("--ckpt_path", required=True, help="a run's checkpoint, for instance runs/voc/ID/last.ckpt")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", help="the file, or safetensors' folder (default: beside the checkpoint)")
    parser.add_argument("--config", help="the run's configuration (default: config.yaml beside the checkpoint)")
    return parser


def norms() -> Parser:
    """Of ``norms``."""
    parser = Parser(
        prog="wsbench norms",
        description="Every normalization, with its paper, what its statistics see, and what it costs here.",
    )
    parser.add_argument("--no-cost", action="store_true", help="do not measure, which takes some seconds")
    parser.add_argument("--json", action="store_true", help="all fields, as JSON")
    return parser


def completion() -> Parser:
    """Of ``completion``."""
    parser = Parser(
        prog="wsbench completion",
        description="Print what makes a shell complete commands and options of `wsbench`: source it, or put it where "
        "your shell looks for completions.",
    )
    parser.add_argument("shell", choices=["bash", "zsh"])
    return parser


def doctor() -> Parser:
    """Of ``doctor``."""
    return Parser(
        prog="wsbench doctor",
        description="Versions, devices, optional parts, and what installs those that are missing. The exit status is 1 "
        "where something that wsbench needs is missing or does not work.",
    )


def report() -> Parser:
    """Of ``report``."""
    parser = Parser(
        prog="wsbench report",
        description="All results as one HTML file that needs no network: answers, tables, figures, records.",
    )
    _records(parser)
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="(default: report.html)")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="write the figures there, too, for a paper")
    return parser


def _records(parser: Parser) -> None:
    parser.add_argument(
        "--records", type=Path, nargs="+", default=[Path("leaderboards/records"), Path("runs")],
        help="folders to look for records in (default: leaderboards/records runs)",
    )  # fmt: skip


def leaderboard() -> Parser:
    """Of ``leaderboard``."""
    parser = Parser(
        prog="wsbench leaderboard",
        description="Leaderboards from result records: for each task, recipe and dataset a long CSV (a row a metric) "
        "and a wide one (a row for each norm, over its seeds), beside the paper's rows. docs/leaderboards.md explains "
        "every column.",
        epilog="leaderboard check - are the published tables what their records say?   leaderboard submit RUN - "
        "publish a run   leaderboard compare A B - is a difference significant?",
    )
    _records(parser)
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="where the CSV files go")
    parser.add_argument(
        "--cited", action="store_true", help="also tables of cited numbers only, of tasks without a run"
    )
    return parser


def leaderboard_check() -> Parser:
    """Of ``leaderboard check``."""
    parser = Parser(prog="wsbench leaderboard check", description="Are the published tables what their records say?")
    parser.add_argument("--leaderboards", type=Path, default=Path("leaderboards"))
    parser.add_argument("--base", metavar="REVISION", help="of git: no row may be lost since, no mean move unsaid")
    return parser


def leaderboard_submit() -> Parser:
    """Of ``leaderboard submit``."""
    parser = Parser(
        prog="wsbench leaderboard submit", description="Publish the record of a finished run, after checking it."
    )
    parser.add_argument("run", type=Path, nargs="+", help="folder of a run: runs/TASK/ID")
    parser.add_argument("--leaderboards", type=Path, default=Path("leaderboards"))
    parser.add_argument("--note", default="", help="why, where it renews a published record; stands in the record")
    return parser


def leaderboard_compare() -> Parser:
    """Of ``leaderboard compare``."""
    parser = Parser(
        prog="wsbench leaderboard compare",
        description="The paired t-test of two norms over the seeds that both have, in every table and batch size; p is "
        "corrected for the number of lines (Holm), the effect is Hedges' g of the pairs with its 95 % interval.",
    )
    parser.add_argument("first", help="a norm, for instance gn+ws")
    parser.add_argument("second", help="another")
    parser.add_argument("--records", type=Path, nargs="+", default=[Path("leaderboards/records")])
    return parser


#: of each command its parser; of one that has commands of its own, those first
PARSERS: Mapping[str, Callable[[], Parser]] = {
    "sweep": sweep, "recommend": recommend, "data": data,
    "analyze": analyze, "analyze diagnose": analyze_diagnose, "export": export,
    "norms": norms, "doctor": doctor, "report": report, "leaderboard": leaderboard,
    "leaderboard check": leaderboard_check, "leaderboard submit": leaderboard_submit,
    "leaderboard compare": leaderboard_compare, "completion": completion,
}  # fmt: skip
