"""Draw the figures of docs/analysis.md from docs/analysis.json, what ``analyze`` wrote of the five runs in it."""

import json
from pathlib import Path

from wsbench.analysis import figures

DOCS = Path(__file__).parent.parent / "docs"
CASE_STUDY = ("gn", "gn+ws-mo", "gn+ws-do", "gn+ws")


def main() -> None:
    """The paper's case study, and bn, gn and gn+ws on one picture."""
    runs = {run["norm"]: run for run in json.loads((DOCS / "analysis.json").read_text())["runs"]}
    study, three = [runs[norm] for norm in CASE_STUDY], [runs[norm] for norm in ("bn", "gn", "gn+ws")]
    for name, figure in (
        ("fig4", figures.figure4(study)),
        ("curvature", figures.curvature_figure(study)),
        ("smoothness", figures.smoothness_figure(three)),
    ):
        figure.savefig(DOCS / f"analysis-{name}.png", dpi=110)


if __name__ == "__main__":
    main()
