"""README's figure: norms at their own learning rates beside their learning-rate curves, from the published records.

python scripts/tuned_figure.py          # writes docs/tuned.png (extra report)
"""

import sys
from pathlib import Path

from wsbench.extras import altair, vl_convert
from wsbench.leaderboard.naming import find_records
from wsbench.leaderboard.page.tuned_charts import dots, rate_curves
from wsbench.leaderboard.verdict import Verdict, verdicts
from wsbench.leaderboard.wide import groups
from wsbench.records import write_atomically

RECORDS, OUT = Path("leaderboards/records"), Path("docs/tuned.png")
#: of a panel, pixels
WIDTH, HEIGHT, SCALE = 330, 250, 2
#: real data: panels beside one another, and the width of each
ACROSS, NARROW = 3, 205


def _name(found: Verdict) -> str:
    name = found.best.group.table.removesuffix("-tuned")
    return name.replace("-mini", " miniature").replace("-small-", ", real: ").replace("_", " ")


def main() -> int:
    """Draw what was tuned at one image per device: miniatures, then real data."""
    alt = altair()
    found = [v for v in verdicts(groups(find_records([RECORDS]))) if v.best.group.first.recipe != "paper"]
    found = [v for v in found if v.images == min(v.images for v in found)]
    found.sort(key=lambda v: len(v.standings))
    found = [*{v.table: v for v in found}.values()]  # of a table's settings the one with the most norms
    found.sort(key=lambda v: (v.best.group.first.recipe, v.table))
    if not found:
        print("no tuned records", file=sys.stderr)
        return 1
    rows = []
    for one in (v for v in found if v.best.group.first.recipe == "mini"):
        left = dots(one, WIDTH).properties(title=f"{_name(one)}, each norm at its own learning rate")
        right = rate_curves(one, WIDTH).properties(title="score by learning rate, on held-out training data")
        row = alt.hconcat(left, right.properties(height=HEIGHT), spacing=30)
        rows.append(row.resolve_scale(color="independent", strokeDash="independent"))
    real = [v for v in found if v.best.group.first.recipe == "small"]
    for start in range(0, len(real), ACROSS):
        panels = [dots(v, NARROW).properties(title=_name(v)) for v in real[start : start + ACROSS]]
        rows.append(alt.hconcat(*panels, spacing=26).resolve_scale(color="independent"))
    chart = alt.vconcat(*rows, spacing=24).resolve_scale(color="independent", strokeDash="independent")
    chart = chart.configure_view(stroke="#d8dde3").configure(background="white", font="sans-serif")
    write_atomically(OUT, vl_convert().vegalite_to_png(chart.to_dict(), scale=SCALE))
    print(f"wrote {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
