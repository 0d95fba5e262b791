"""``python -m wsbench data TASK``: verify a dataset, fetch what may be fetched, build what the recipe needs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from wsbench.datamodules import voc_prepare
from wsbench.datamodules.errors import DatasetError
from wsbench.datamodules.voc import MASK_SOURCE, devkit, is_present
from wsbench.run.report import console


def main(argv: Sequence[str]) -> int:
    """Returns 0 if the dataset is complete and official, 1 if not, 2 on an error."""
    parser = argparse.ArgumentParser(prog="wsbench data", description=__doc__)
    parser.add_argument("task", choices=["voc"])
    parser.add_argument(
        "--root", default=os.environ.get("WSBENCH_DATA"), help="dataset folder (default: $WSBENCH_DATA)"
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch VOC 2012 (2 GB) and SBD (1.4 GB), with checksums"
    )
    parser.add_argument("--rebuild", action="store_true", help="build trainaug again")
    parser.add_argument(
        "--train-masks",
        choices=["voc", "sbd"],
        help="masks of VOC's own training pictures in trainaug: VOC's with void borders, or SBD's (default: voc)",
    )
    args = parser.parse_args(argv[1:])
    out = console()
    out.print(f"expected layout:\n{voc_prepare.LAYOUT}\n", highlight=False)
    if args.root is None:
        out.print("nothing to verify: give --root FOLDER, or set $WSBENCH_DATA")
        return 1
    root = Path(args.root).expanduser()
    try:
        if args.download:
            voc_prepare.download(root)
        built = devkit(root) / "ImageSets" / "Segmentation" / "trainaug.txt"
        if is_present(root) and voc_prepare.find_sbd(root) and (args.rebuild or not built.is_file()):
            args.train_masks = args.train_masks or "voc"
            names = voc_prepare.build_trainaug(root, args.train_masks)
            out.print(
                f"built trainaug: {len(names)} pictures, masks of VOC's own training pictures by {args.train_masks}"
            )
        source = devkit(root) / "SegmentationClassAug" / MASK_SOURCE
        built_with = source.read_text().strip() if source.is_file() else None
        if built_with and args.train_masks not in (None, built_with):
            raise DatasetError(f"trainaug was built with {built_with} masks; add --rebuild to change it")
        findings = voc_prepare.verify(root)
    except (DatasetError, OSError, RuntimeError) as error:
        print(f"wsbench: error: {error}", file=sys.stderr)
        return 2
    table = Table(title=str(root))
    for column in ("", "what", "expected", "found"):
        table.add_column(column)
    for finding in findings:
        table.add_row("ok" if finding.ok else "!!", finding.what, finding.expected, finding.found)
    out.print(table)
    out.print(f"next: {voc_prepare.next_step(root, findings)}", soft_wrap=True)
    return 0 if all(finding.ok for finding in findings) else 1
