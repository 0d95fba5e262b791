"""``python -m wsbench analyze``: Section 2 of the paper on runs of yours, as images and data."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import wsbench
from wsbench import extras
from wsbench.analysis import figures, findings
from wsbench.analysis.curvature import NETWORK
from wsbench.analysis.shares import PARTS
from wsbench.configuration.choice import CASE_STUDY, ChoiceError, choose
from wsbench.datamodules import data_class
from wsbench.errors import shortened
from wsbench.norms import NormSpec
from wsbench.options import UsageError
from wsbench.records import RECORD_NAME, write_text_atomically
from wsbench.run.folder import ANALYSIS, CONFIG, snapshots
from wsbench.run.provenance import commit_of_tree
from wsbench.run.report import console

DATA = "analysis.json"

Fit = Callable[[Sequence[str]], Path]


def _specs(text: str) -> list[str]:
    specs = [str(NormSpec.parse(part)) for part in text.split(",")]
    wn = [spec for spec in specs if NormSpec.parse(spec).weight not in (None, "ws")]
    if wn:
        raise ChoiceError(f"--norm {wn[0]}: what is analyzed is weight standardization and its absence; leave it out")
    return list(dict.fromkeys(specs))


def _train(args: argparse.Namespace, rest: Sequence[str], fit: Fit) -> list[dict[str, Any]]:
    specs = _specs(args.norm or CASE_STUDY)
    line = ["--task", args.task, *rest]
    choice = choose(line, lambda task, root: data_class(task).find(root))
    finer = files("wsbench.conf") / "analysis" / f"{args.task}.yaml"
    if choice.recipe == "mini" and finer.is_file():
        with as_file(finer) as path:
            line = ["--config", str(path), *line]
    if torch.cuda.device_count() > 1 and not any(option.startswith("--trainer.devices") for option in rest):
        line = [*line, "--trainer.devices", "1"]  # one process cannot be the first of several DDP runs, one by one
    runs = []
    for spec in specs:
        standardized = NormSpec.parse(spec).weight is not None
        folder = fit([
            *line, "--norm", spec, "--seed_everything", str(args.seed_everything), "--snapshots", str(args.snapshots),
            "--analysis", "true" if standardized else "false",
        ])  # fmt: skip
        if not (folder / RECORD_NAME).is_file():
            raise ChoiceError(f"run '{folder}' was interrupted; finish it: python -m wsbench fit --config "
                              f"{folder / CONFIG} --ckpt_path last, and say the same again")  # fmt: skip
        kept = snapshots(folder)
        if not kept or (standardized and not (folder / ANALYSIS).is_file()):
            raise ChoiceError(
                f"run '{folder}' was trained before, without what analyze needs; train it again with --overwrite true, "
                "or into another folder with --runs FOLDER"
            )
        runs.append(_measure(folder, folder / CONFIG, kept, args))
    return runs


def _measure(folder: Path, config: Path, checkpoints: Sequence[Path], args: argparse.Namespace) -> dict[str, Any]:
    start = time.monotonic()
    measured = findings.of_run(folder, config, checkpoints, args.samples, args.probes, args.device)
    console().print(f"{measured['norm']}: measured at {len(checkpoints)} checkpoint(s) of '{folder}' in "
                    f"{time.monotonic() - start:.0f} s", markup=False, soft_wrap=True)  # fmt: skip
    return measured


def _rounded(value: Any) -> Any:
    """Floats to seven significant digits, all that float32 has."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="at the last checkpoint; A, B, R of the last epoch's first step, in % (mean of ratios)")
    for column in ("norm", runs[0]["monitor"], *PARTS, "error", "||H||² left by Eq. 5", "beta", "Lipschitz"):
        table.add_column(column, justify="left" if column == "norm" else "right")
    for run in runs:
        last = run["checkpoints"][-1]
        curve = run["curves"].get(f"val/{run['monitor']}")
        line = run["shares"][-1] if run["shares"] else last.get("shares")
        shares = ["-"] * 4
        if line is not None:
            network = line["network"]
            shares = [f"{100 * network['mean_of_ratios'][part]:.2f}" for part in PARTS] + [f"{network['error']:.0e}"]
        ratio = next((c["ratio"] for c in last.get("curvature", ()) if c["name"] == NETWORK), None)
        table.add_row(
            run["norm"],
            f"{curve[-1][1]:.2f}" if curve else "-",
            *shares,
            "-" if ratio is None else f"{ratio['mean']:.3f} ± {ratio['standard_error']:.3f}",
            f"{last['smoothness']['beta']:.3g}",
            f"{last['smoothness']['lipschitz']:.3g}",
        )
    return table


def _run(args: argparse.Namespace, rest: Sequence[str], fit: Fit) -> None:
    extras.matplotlib()  # not after an hour of training
    commit = commit_of_tree()[0]
    if args.task is not None:
        runs = _train(args, rest, fit)
    else:
        if rest or args.norm:
            raise ChoiceError(f"with --ckpt_path there is nothing to configure: {' '.join(rest) or '--norm'}")
        runs = [
            _measure(path.expanduser().resolve().parent, path.expanduser().resolve().parent / CONFIG, [path], args)
            for path in args.ckpt_path
        ]
    args.output.mkdir(parents=True, exist_ok=True)
    content = {
        "wsbench": wsbench.__version__, "torch": torch.__version__, "commit": commit,
        "samples": args.samples, "probes": args.probes, "runs": runs,
    }  # fmt: skip
    write_text_atomically(args.output / DATA, json.dumps(_rounded(content), separators=(",", ":")) + "\n")
    written = [args.output / DATA, *figures.draw(runs, args.output)]
    out = console()
    out.print(_table(runs))
    for run in runs:
        for reason in {c["no_curvature"] for c in run["checkpoints"] if "no_curvature" in c}:
            out.print(f"{run['norm']}: no curvature: {reason}", markup=False, soft_wrap=True)
    for path in written:
        out.print(f"wrote {path}", soft_wrap=True, markup=False)


def _require_options(args: argparse.Namespace) -> None:
    """Refuse at once what would fail after an hour of training."""
    for name in ("samples", "probes", "snapshots"):
        least = 2 if name == "snapshots" else 1
        if getattr(args, name) < least:
            raise UsageError(f"--{name} {getattr(args, name)}: at least {least}")
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {args.device}: {shortened(str(error))}") from error
    if args.norm is not None:
        specs = [part for part in args.norm.split(",") if part]
        if not specs or len(set(specs)) < len(specs):
            raise UsageError(f"--norm '{args.norm}': expected specs, each once, separated by commas")
    made = [folder for folder in (args.output, *args.output.parents) if not folder.exists()]
    args.output.mkdir(parents=True, exist_ok=True)
    for folder in made:  # it was only to see whether that can be done
        folder.rmdir()


def main(args: argparse.Namespace, rest: Sequence[str], fit: Fit) -> int:
    """Train where that is asked for, measure, draw; returns 0.

    Args:
        args: the command line.
        rest: options of ``fit``.
        fit: trains a run from options of ``fit`` and returns its folder.
    """
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _require_options(args)
    _run(args, rest, fit)
    return 0
