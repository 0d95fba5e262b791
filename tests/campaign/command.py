"""``scripts/campaign``."""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.campaign import bad, kill, security, sweep


def _bad(folder: Path, seed: int, seconds: float) -> tuple[str, list[str]]:
    world = bad.build(folder)
    found = bad.campaign(world, seed, seconds)
    wrong = [outcome for outcome in found if outcome.faults]
    kinds = Counter("too long" if fault.endswith("lines") else fault for o in found for fault in o.faults)
    said = f"{len(found)} of {len(bad.inputs(world))} wrong inputs: " + (
        ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()) or "each refused in three lines at most"
    )
    return said, [f"{', '.join(o.faults)}: {' '.join(o.line)}\n    {_last(o.traceback or o.said)}" for o in wrong]


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def _security(folder: Path, seed: int, seconds: float) -> tuple[str, list[str]]:
    found = security.campaign(bad.build(folder), seed, seconds)
    worked, crashed = [f for f in found if f.worked], [f for f in found if f.traceback and not f.worked]
    said = (f"{len({f.name for f in found})} attacks by {len(found)} command lines: {len(worked)} worked, "
            f"{len(crashed)} ended in a traceback")  # fmt: skip
    return said, [f"{'WORKED' if f.worked else 'traceback'}: {f.name}: {' '.join(f.line)}\n    {_last(f.traceback)}"
                  for f in (*worked, *crashed)]  # fmt: skip


CAMPAIGNS: dict[str, Callable[[Path, int, float], tuple[str, list[str]]]] = {
    "kill": kill.campaign, "sweep": sweep.campaign, "bad": _bad, "security": _security,
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run one; returns 1 if it found something."""
    parser = argparse.ArgumentParser(prog="scripts/campaign", description="Try to break wsbench.")
    parser.add_argument("name", choices=CAMPAIGNS)
    parser.add_argument("--seed", type=int, default=0, help="of the order and the moments (default: 0)")
    parser.add_argument("--minutes", type=float, default=10.0, help="(default: 10)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        said, found = CAMPAIGNS[args.name](Path(folder), args.seed, 60 * args.minutes)
    for line in found:
        print(line)
    print(f"{args.name}, seed {args.seed}: {said}")
    return 1 if found else 0
