"""``python -m wsbench data TASK``: verify a dataset, fetch what may be fetched, build what the recipe needs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from wsbench.choose import recipe_content
from wsbench.datamodules import COCO, DATA_CLASSES
from wsbench.datamodules.annotations import BoxesOnlyError
from wsbench.datamodules.clouds import stored_points
from wsbench.datamodules.modelnet40 import hdf5_files, hdf5_folder
from wsbench.datamodules.prepare import imagenet, voc
from wsbench.datamodules.prepare.checks import Finding
from wsbench.datamodules.prepare.verify import verify
from wsbench.datamodules.voc import list_file, place
from wsbench.errors import UserError
from wsbench.options import UsageError
from wsbench.run.report import console

#: of a cloud, in the paper's recipe
POINTS = 1024


def _build(args: argparse.Namespace, root: Path) -> str | None:
    """Build what can be built of what lies there; says what was done."""
    if args.task == "imagenet":
        return imagenet.build(root)
    if args.task == "voc":
        if args.download:
            voc.download(root)
        return voc.build(root, args.train_masks, args.rebuild)
    return None


def _has_boxes_only(root: Path) -> bool:
    """Whether the objects of a detection dataset have no masks."""
    try:
        COCO(root=str(root), num_workers=0).setup("validate")
    except BoxesOnlyError:
        return True
    except UserError:  # which is found again, where all faults are
        return False
    return False


def _options(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Options of the data that the findings and the command to train must have."""
    if args.task == "modelnet40":
        folder = hdf5_folder(root)
        try:
            stored = None if folder is None else stored_points(hdf5_files(folder, "train")[0])
        except UserError:  # which is found again, where all faults are
            stored = None
        return {"points": min(stored or POINTS, POINTS)}
    if args.task == "coco":
        return {"masks": False} if _has_boxes_only(root) else {}
    if args.task != "voc":
        return {}
    devkit = place(root)
    default = devkit is None or list_file(devkit, "trainaug").is_file()
    options = {"train_set": args.train_set or ("trainaug" if default else "train")}
    return options | ({"class_names": args.class_names} if args.class_names else {})


def _command(task: str, root: Path, official: bool, options: dict[str, Any]) -> str:
    """The command that trains on the dataset."""
    recipe = "paper" if official else "small"
    defaults = recipe_content(task, recipe)["data"]
    needed = {name: value for name, value in options.items() if defaults.get(name) != value}
    if needed.get("points", 0) > defaults.get("points", 0):  # there are more than the recipe takes
        del needed["points"]
    further = ""
    if needed.pop("masks", None) is False:
        network = recipe_content(task, recipe)["model"]["network"].replace("mask_rcnn", "faster_rcnn")
        further = f" --model.network {network}"
    further += "".join(f" --data.{name} {value}" for name, value in needed.items())
    recipe = "" if official else " --recipe small"
    return f"python -m wsbench fit --task {task} --norm gn+ws{recipe} --data.root {root}{further}"


def _printable(text: str) -> str:
    """With what is no character (of a file's name that is not UTF-8, say) written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _say(text: str) -> None:
    """A line of its own, not broken, so that a path can be copied."""
    console().print(_printable(text), soft_wrap=True, markup=False, highlight=False, emoji=False)


def _show(root: Path, findings: Sequence[Finding]) -> None:
    table = Table(title=escape(_printable(str(root))))
    for column in ("", "what", "expected", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        cells = (finding.what, finding.expected, finding.found)
        table.add_row("ok" if finding.ok else "!!", *(escape(_printable(cell)) for cell in cells))
    console().print(table)
    for finding in findings:
        for problem in finding.problems:
            _say(f"{finding.what}: {problem}")


def main(args: argparse.Namespace) -> int:
    """Returns 0 if everything can be read and the official set, if it is that, is complete; 1 if not."""
    only_voc = (args.download, args.rebuild, args.train_masks, args.train_set, args.class_names)
    if args.task != "voc" and any(only_voc):
        raise UsageError("--train-set, --class-names, --download, --rebuild and --train-masks belong to voc")
    kind, out = DATA_CLASSES[args.task], console()
    out.print(f"layout:\n{kind.layout}\n", highlight=False, markup=False)
    if args.root is None:
        out.print("nothing to verify: give --root FOLDER, or set $WSBENCH_DATA")
        return 1
    root = Path(args.root).expanduser()
    built = _build(args, root)
    if built:
        _say(built)
    options = _options(args, root)
    findings, data = verify(kind, root, args.all, **options)
    official = data is not None and data.resembles_official
    if args.task == "voc" and official and args.train_set is None:
        findings += voc.check_trainaug(root)
    _show(root, findings)
    wrong = [f for f in findings if not f.ok]
    step = f"ready: {_command(args.task, root, official, options)}"
    if wrong:
        step = next((f.hint for f in wrong if f.hint), f"repair: {', '.join(f.what for f in wrong)}")
    _say(f"next: {step}")
    return 1 if wrong else 0
