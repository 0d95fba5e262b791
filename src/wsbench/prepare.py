"""``python -m wsbench data TASK``: verify a dataset, fetch what may be fetched, build what the recipe needs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from wsbench.choose import TASKS
from wsbench.datamodules import (
    coco_prepare,
    imagenet_prepare,
    modelnet40_prepare,
    something_prepare,
    voc_prepare,
)
from wsbench.datamodules.checks import next_step
from wsbench.datamodules.errors import DatasetError
from wsbench.run.report import console

#: each offers LAYOUT, build(root) and verify(root)
PREPARE = {
    "imagenet": imagenet_prepare,
    "something": something_prepare,
    "voc": voc_prepare,
    "modelnet40": modelnet40_prepare,
    "coco": coco_prepare,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsbench data",
        description="Say a dataset's official layout, verify what is there, build derived lists, name the next step.",
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument(
        "--root", default=os.environ.get("WSBENCH_DATA"), help="dataset folder (default: $WSBENCH_DATA)"
    )
    voc = parser.add_argument_group("voc")
    voc.add_argument("--download", action="store_true", help="fetch VOC 2012 (2 GB) and SBD (1.4 GB), with checksums")
    voc.add_argument("--rebuild", action="store_true", help="build trainaug again")
    voc.add_argument(
        "--train-masks",
        choices=["voc", "sbd"],
        help="masks of VOC's own training pictures in trainaug: VOC's with void borders, or SBD's (default: voc)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 0 if the dataset is complete and official, 1 if not, 2 on an error."""
    args = _parser().parse_args(argv[1:])
    if args.task != "voc" and (args.download or args.rebuild or args.train_masks):
        print("wsbench: error: --download, --rebuild and --train-masks belong to voc", file=sys.stderr)
        return 2
    module, out = PREPARE[args.task], console()
    out.print(f"expected layout:\n{module.LAYOUT}\n", highlight=False, markup=False)
    if args.root is None:
        out.print("nothing to verify: give --root FOLDER, or set $WSBENCH_DATA")
        return 1
    root = Path(args.root).expanduser()
    try:
        if args.task == "voc":
            if args.download:
                voc_prepare.download(root)
            built = voc_prepare.build(root, args.train_masks, args.rebuild)
        else:
            built = module.build(root)
        if built:
            out.print(built)
        findings = module.verify(root)
    except (DatasetError, OSError, RuntimeError) as error:
        print(f"wsbench: error: {error}", file=sys.stderr)
        return 2
    table = Table(title=str(root))
    for column in ("", "what", "expected", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row("ok" if finding.ok else "!!", finding.what, finding.expected, finding.found)
    out.print(table)
    step = voc_prepare.next_step(root, findings) if args.task == "voc" else next_step(args.task, root, findings)
    out.print(f"next: {step}", soft_wrap=True, markup=False)
    return 0 if all(finding.ok for finding in findings) else 1
