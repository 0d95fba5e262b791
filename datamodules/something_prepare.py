"""Verifying Something-Something V1, and deriving the lists of TRN and TSM from the official files."""

from collections.abc import Sequence
from pathlib import Path

from wsbench.datamodules.checks import Finding, count, readable
from wsbench.datamodules.clips import Clip
from wsbench.datamodules.lists import lines_of
from wsbench.datamodules.pictures import read_picture
from wsbench.datamodules.something import (
    COUNTS,
    CSV,
    FEWEST_FRAMES,
    FRAMES,
    LISTS,
    has_csv,
    has_lists,
    read_classes,
    read_official,
)
from wsbench.records import write_text_atomically

LAYOUT = f"""\
ROOT/{FRAMES}/1/00001.jpg ...     108,499 folders of frames (cat {FRAMES}-?? | tar zx)
ROOT/{CSV["labels"]}              174 labels
ROOT/{CSV["train"]}               86,017 lines: id;label
ROOT/{CSV["validation"]}          11,522 lines
and, built by this command, so that no start has to count frames:
    {", ".join(LISTS.values())}   folder frames class, classes alphabetical, as TRN and TSM have them"""


def build(root: Path) -> str | None:
    """Write the lists of TRN and TSM, if they are not there; says so.

    Raises:
        DatasetError: a clip is missing, or a line of the official files is broken; nothing is written then.
    """
    if has_lists(root) or not has_csv(root) or not (root / FRAMES).is_dir():
        return None
    classes = read_classes(root, "alphabetical")
    texts = {"labels": "".join(f"{name}\n" for name in classes)}
    for split in ("train", "val"):
        clips = read_official(root, split, classes)
        texts[split] = "".join(f"{c.folder.name} {c.frames} {c.label}\n" for c in clips)
    for name, text in texts.items():
        write_text_atomically(root / LISTS[name], text)
    return f"built {', '.join(LISTS.values())}"


def _clips(root: Path, split: str) -> list[Clip]:
    """The clips of a split without looking at their folders."""
    name = CSV["validation" if split == "val" else split]
    return [Clip(root / FRAMES / line.partition(";")[0], 0, 0) for line in lines_of(root / name)]


def _check_clips(clips: Sequence[Clip], split: str, frames: dict[str, int]) -> list[Finding]:
    hint = f"unpack the archive's parts again into '{clips[0].folder.parent}'" if clips else ""
    absent = [c.folder.name for c in clips if not c.folder.is_dir()]
    found = f"{len(clips) - len(absent):,} clips" + (f", missing {', '.join(absent[:3])} ..." if absent else "")
    findings = [Finding(f"{split}: clips", f"{len(clips):,} clips", found, not absent, hint)]
    short = [name for name, number in frames.items() if number < FEWEST_FRAMES]
    findings.append(
        Finding(f"{split}: too short", f"clips below {FEWEST_FRAMES} frames are left out", f"{len(short)} clips", True)
    )
    first = [c.folder / "00001.jpg" for c in clips]
    return [*findings, readable(f"{split}: readable", first, read_picture, hint)]


def verify(root: Path) -> list[Finding]:
    """Lists, clips, and whether some frames can be read."""
    findings = []
    if not (root / FRAMES).is_dir():
        hint = f"unpack the archive: cd {root} && cat {FRAMES}-?? | tar zx"
        findings.append(Finding(FRAMES, "a folder", "missing", False, hint))
    if not has_csv(root):
        absent = [name for name in CSV.values() if not (root / name).is_file()]
        hint = f"lay the official {', '.join(absent)} into '{root}'"
        if not has_lists(root):
            return [*findings, Finding("lists", "the official CSV files", f"missing {', '.join(absent)}", False, hint)]
        findings.append(Finding("lists", "the official CSV files", "lists of TRN and TSM only", True))
    else:
        findings.append(count("labels", 174, len(lines_of(root / CSV["labels"])), "fetch the labels again", "labels"))
        for split, expected in COUNTS.items():
            clips = _clips(root, split)
            findings.append(count(f"{split}: list", expected, len(clips), f"fetch {split}'s list again", "lines"))
            if (root / FRAMES).is_dir():
                findings += _check_clips(clips, split, _frames(root, split))
    built = has_lists(root)
    findings.append(Finding("derived lists", ", ".join(LISTS.values()), "there" if built else "not built", built))
    return findings


def _frames(root: Path, split: str) -> dict[str, int]:
    """Numbers of frames as the derived list states them, if it is there."""
    path = root / LISTS[split]
    if not path.is_file():
        return {}
    rows = (line.rsplit(maxsplit=2) for line in lines_of(path))
    return {row[0]: int(row[1]) for row in rows}
