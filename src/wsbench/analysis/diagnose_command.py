"""``python -m wsbench analyze diagnose``: why weight standardization may do worse than it should; of a model or run."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from wsbench.analysis.diagnosis import Diagnosis, Subject, diagnose, updates_of
from wsbench.configuration.choice import ChoiceError
from wsbench.configuration.restore import build_task, read_settings
from wsbench.errors import UserError, shortened
from wsbench.models.by_name import classifier, is_named
from wsbench.models.by_name import example as image
from wsbench.norms import GroupsError, normalize, stamp_spec
from wsbench.records import RECORD_NAME, read_record
from wsbench.run.folder import model_options
from wsbench.run.report import console
from wsbench.tasks.formats import network_state, read_checkpoint
from wsbench.tasks.initialize import read_source


def _stated(source: str) -> Mapping[str, Any]:
    """The content of ``CHECKPOINT`` or ``SPEC=CHECKPOINT``, with the spec stamped on it."""
    try:
        return read_source(source)[0]
    except (FileNotFoundError, ValueError) as error:
        raise ChoiceError(str(error)) from error


def _content(path: Path) -> dict[str, Any]:
    path = path.expanduser()
    if not path.is_file():
        raise ChoiceError(f"'{path}' does not exist")
    try:
        content = read_checkpoint(path)
    except ValueError as error:
        raise ChoiceError(str(error)) from error
    return content if "state_dict" in content else {"state_dict": content}


def subject_of_run(checkpoint: Path, config: Path | None = None) -> Subject:
    """What a run's checkpoint and configuration say.

    Raises:
        ChoiceError: they are missing, or the weights do not fit the configuration.
    """
    content, settings = read_settings(checkpoint, config)
    options = model_options(settings)
    task = build_task(settings)
    try:
        task.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ChoiceError(f"'{checkpoint}' does not fit its run's configuration: {error}") from error
    torch.manual_seed(0)
    prefix = "network."
    names, states = content.get("parameter_names"), content.get("optimizer_states")
    updates = None
    if names and states:
        updates = {n.removeprefix(prefix): u for n, u in updates_of(states[0], names).items()}
    initial: Mapping[str, Any] | None = {}
    if options.get("init_from") == "torchvision":
        stamp_spec(initial := {}, "bn")
    elif options.get("init_from"):
        try:
            initial = _stated(options["init_from"])
        except ChoiceError:
            initial = None  # moved since: the check says that it needs the file
    norm_batch: int | None = settings["data"].get("micro_batch")
    if (settings.get("trainer") or {}).get("sync_batchnorm"):  # over as many devices as there were
        record = checkpoint.expanduser().resolve().parent / RECORD_NAME
        norm_batch = read_record(record).batch.norm_batch if record.is_file() else None
    return Subject(
        task.network,
        task.example_input(settings.get("data", {})),
        micro_batch=norm_batch,
        checkpoint=content,
        spec=task.spec,
        initialized_from=initial,
        updates=updates,
        deliberate=[c.name for c in task.norm_report.layers if c.reason.startswith("included by")],
    )


def subject_of_model(args: argparse.Namespace) -> Subject:
    """What ``PACKAGE.MODULE:FUNCTION`` returns, converted and loaded as the options say.

    Raises:
        ChoiceError: there is no such function, it returns no module, or options do not fit it.
    """
    if not is_named(args.target):
        raise ChoiceError(
            f"'{args.target}' is neither a file nor a network: timm:NAME, torchvision:NAME or MODULE:FUNCTION"
        )
    try:
        model = classifier(args.target, None)
    except ValueError as error:
        raise ChoiceError(str(error)) from error
    example: Tensor | None = None
    if args.target.startswith(("timm:", "torchvision:")):
        example = torch.randn(image(model).shape)
    if args.example:
        try:
            example = torch.randn(*(int(size) for size in args.example.split(",")))
        except (ValueError, RuntimeError) as error:
            raise ChoiceError(f"--example {args.example}: expected a shape such as 1,3,224,224") from error
    if args.norm:
        try:
            normalize(model, args.norm, example)
        except GroupsError as error:
            raise ChoiceError(f"--norm {args.norm}: {error}") from error
    checkpoint = None
    if args.ckpt_path:
        checkpoint = _content(args.ckpt_path)
        try:
            model.load_state_dict(network_state(checkpoint))
        except RuntimeError as error:
            raise ChoiceError(f"--ckpt_path '{args.ckpt_path}' does not fit '{args.target}': {error}") from error
    initial = None if args.init_from is None else _stated(args.init_from)
    return Subject(model, example, args.micro_batch, checkpoint, initialized_from=initial)


def _print(diagnosis: Diagnosis) -> None:
    out = console()
    table = Table("", "check", "layer", "what", "remedy")
    for check in diagnosis.checks:
        if check.not_checked:
            table.add_row("--", check.name, "", f"not checked: {escape(check.not_checked)}", "")
        elif not check.findings:
            table.add_row("ok", check.name, "", "", "")
        for finding in check.findings:
            table.add_row("!!", check.name, escape(finding.layer), escape(finding.what), escape(finding.remedy))
    out.print(table)
    count = len(diagnosis.findings)
    skipped = sum(bool(check.not_checked) for check in diagnosis.checks)
    left = f"; {skipped} of {len(diagnosis.checks)} checks were not made, see above" if skipped else ""
    out.print(f"{count} finding{'s' * (count != 1)}{left}")


def main(args: argparse.Namespace) -> int:
    """Returns 0 without findings, 1 with."""
    if args.micro_batch is not None and args.micro_batch < 1:
        raise ChoiceError(f"--micro_batch {args.micro_batch}: at least 1")
    path = Path(args.target).expanduser()
    of_model = (args.norm, args.example, args.ckpt_path, args.init_from, args.micro_batch)
    if path.is_file():
        if any(of_model):
            raise ChoiceError("a run's configuration says these: leave out --norm, --example, --ckpt_path, "
                              "--init_from and --micro_batch")  # fmt: skip
        subject = subject_of_run(path, args.config)
    elif path.suffix in (".ckpt", ".pth", ".pt", ".tar"):
        raise ChoiceError(f"'{path}' does not exist")
    else:
        subject = subject_of_model(args)
    try:
        diagnosis = diagnose(subject)
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, UserError) or not args.example:
            raise
        reason = shortened(str(error))
        raise ChoiceError(f"'{args.target}' does not take an input of shape {args.example}: {reason}") from error
    if args.json:
        print(json.dumps([asdict(check) for check in diagnosis.checks], indent=1))
    else:
        _print(diagnosis)
    return 1 if diagnosis.findings else 0
