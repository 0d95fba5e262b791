"""Verifying any dataset: what training would read is read; official counts are asked of the official set only."""

from pathlib import Path
from typing import Any

from wsbench.datamodules.base import BenchmarkData
from wsbench.datamodules.errors import DatasetError, DatasetNotFoundError, contents
from wsbench.datamodules.prepare.checks import Finding, broken, counted
from wsbench.extras import MissingPartError

#: samples of a split up to which all are read, and how many are of a larger one unless all are asked for
ALL_OF, SOME_OF = 20_000, 2_000
#: classes and broken samples that are named
_CLASSES, _LISTED = 5, 50
_MEND = "mend what is named above, and run this again"


def verify(kind: type[BenchmarkData], root: Path, everything: bool, **options: Any) -> tuple[list[Finding], Any]:
    """Look at a dataset as ``fit`` would, and read its samples.

    Args:
        kind: of data.
        root: as --data.root.
        everything: read all samples of large splits, too.
        options: of the data.

    Returns:
        What was found, and the data; None if it could not be set up.
    """
    try:
        data = kind(root=str(root), num_workers=0, **options)
        data.setup("fit")
        identity = data.identity()
    except DatasetNotFoundError:
        what = f"looked for {kind.looked_for}; {contents(root)}"
        hint = f"lay it out as above under '{root}'"
        return [Finding("dataset", kind.looked_for, contents(root), False, hint, (what,))], None
    except (DatasetError, MissingPartError) as error:
        return [Finding("dataset", "what fit reads at its start", "a fault", False, _MEND, (str(error),))], None
    names = ", ".join(data.classes[:_CLASSES]) + (" ..." if len(data.classes) > _CLASSES else "")
    official = data.resembles_official
    expected = "the official ones" if official else "any"
    findings = [Finding("classes", expected, f"{len(data.classes)}: {names}", True)]
    for name, samples in (("train", data.train_data), ("val", data.val_data)):
        part = identity.splits[name]
        if official:
            findings.append(counted(f"{name}: samples", data.official_counts[name], len(samples), data.remedy(name),
                                    "samples"))  # fmt: skip
        else:
            findings.append(Finding(f"{name}: samples", "any", f"{len(samples):,} ({part.list})", True))
        if part.dropped:
            dropped = tuple(data.describe()[name].dropped[:_LISTED])
            findings.append(Finding(f"{name}: left out", "few", f"{part.dropped:,} samples", True, problems=dropped))
        findings.append(_read(name, samples, everything))
    findings += [
        Finding("worth", "results that mean something", "a doubt", False, _MEND, (text,)) for text in data.doubts
    ]
    return findings, data


def _read(name: str, samples: Any, everything: bool) -> Finding:
    every = 1 if everything or len(samples) <= ALL_OF else max(1, len(samples) // SOME_OF)
    indices = range(0, len(samples), every)
    problems = sorted(broken(samples, indices))
    tried = f"all {len(samples):,}" if every == 1 else f"{len(indices):,} of {len(samples):,} (--all: all)"
    if not problems:
        return Finding(f"{name}: read", f"{tried} readable", tried, True)
    texts = [text for _, text in problems[:_LISTED]]
    if len(problems) > _LISTED:
        texts.append(f"and {len(problems) - _LISTED:,} more")
    outcome = f"{len(problems):,} broken"
    return Finding(f"{name}: read", f"{tried} readable", outcome, False, _MEND, tuple(texts))
