"""Groups of runs to HTML; every string of a record goes through Jinja's escaping."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Protocol

import wsbench
from wsbench.extras import jinja2, vl_convert
from wsbench.leaderboard import tuned
from wsbench.leaderboard.compare import comparisons
from wsbench.leaderboard.logs import Logs
from wsbench.leaderboard.naming import by_table, short
from wsbench.leaderboard.page.answer import answers, of_the_curves, of_the_paper
from wsbench.leaderboard.page.charts import Figure, figures
from wsbench.leaderboard.page.columns import columns
from wsbench.leaderboard.page.tuned_charts import tuned_figures
from wsbench.leaderboard.rows import Row, cited_rows
from wsbench.leaderboard.verdict import overall, verdicts
from wsbench.leaderboard.wide import Group, changes, value_of, wide_rows
from wsbench.records import lower_is_better
from wsbench.registry import TASKS
from wsbench.run.identity import LR

#: which of two norms is asked about: what weight standardization does to each, and the paper's method against BN
PAIRS = [(f"{act}+ws", act) for act in ("bn", "gn", "ln", "in", "sn")] + [("gn+ws", "bn")]

#: options that differ and are columns, at most; all stand in the column of changes
_MOST_COLUMNS = 4


def _tables(grouped: Sequence[Group], logs: Logs) -> list[dict[str, Any]]:
    """Every table's wide rows, runs before numbers that are cited."""
    records = [record for group in grouped for record in group.records]
    made = []
    for name, runs in by_table(records).items():
        task = runs[0].task if runs else name
        rows: list[Row] = wide_rows(task, runs, cited_rows(name) if name in TASKS else [], logs)
        rows.sort(key=lambda row: row["source"] != "run")
        metric = TASKS[task].headline
        rows = [dict.fromkeys(tuned.COLUMNS, "") | row for row in rows]
        of_table = [group for group in grouped if group.table == name]
        differ = changes(of_table)[0] if of_table else []
        differ = [] if len(differ) > _MOST_COLUMNS else [name for name in differ if name != LR or not runs[0].tuning]
        changed = {group.first.id: {name: value_of(group, name) for name in differ} for group in of_table}
        shown = [{**row, "changed": changed.get(row["records"].split(" ")[0], {})} for row in rows]
        made.append(
            {
                "name": name,
                "task": task,
                "rows": shown,
                "columns": columns(shown, differ),
                "results": any(not group.is_trial for group in of_table),
                "runs": len(runs),
                "metric": metric,
                "lower": lower_is_better(metric),
            }
        )
    return sorted(made, key=lambda t: (not any(r["source"] == "run" for r in t["rows"]), t["name"]))


def _records(grouped: Sequence[Group]) -> list[Mapping[str, Any]]:
    return [
        {"table": group.table, "record": record, "json": json.dumps(json.loads(record.model_dump_json()), indent=1)}
        for group in grouped
        for record in group.records
    ]


class GivenAnswer(Protocol):
    """An answer that is given beforehand: of ``recommend``."""

    @property
    def title(self) -> str:
        """The heading: what to use."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """What it rests on."""

    @property
    def code(self) -> str:
        """Lines that put it into the user's own code."""


def render(grouped: Sequence[Group], logs: Logs, advice: GivenAnswer | None = None) -> str:
    """The page.

    Args:
        grouped: groups of runs.
        logs: their logs of metrics.
        advice: the answer, of a page for one question; None: what all the runs say together.
    """
    engine = jinja2()
    environment = engine.Environment(
        loader=engine.FunctionLoader(_asset), autoescape=True, undefined=engine.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    reported = [group for group in grouped if not group.is_trial]
    told = verdicts(grouped)
    one_rate = [group for group in reported if group.first.tuning is None]
    own_rate = tuned_figures(told, logs)
    drawn = figures(reported, logs) if advice is None else []
    tables = [table for table in _tables(grouped, logs) if advice is None or table["runs"]]
    by_name: dict[str, list[Figure]] = {}
    at_one_rate = {group.table for group in one_rate}
    for figure in sorted(drawn, key=lambda figure: figure.table in at_one_rate):
        by_name.setdefault(figure.table, []).append(figure)
    every = [*drawn, *(figure for _, each in own_rate for figure in each)]
    text: str = environment.get_template("page.html.j2").render(
        version=wsbench.__version__,
        advice=advice,
        overall=overall(told),
        tuned=own_rate,
        answers=answers(one_rate),
        paper=of_the_paper(),
        curves=of_the_curves(reported),
        tables=tables,
        comparisons=comparisons(reported, PAIRS),
        figures=by_name,
        at_one_rate=at_one_rate,
        specs={figure.name: figure.chart.to_dict() for figure in every},
        records=_records(grouped),
        short=short,
        style=_asset("page.css"),
        script=_asset("page.js"),
        vega=vl_convert().javascript_bundle().replace("</script", "<\\/script"),
    )
    return text


def _asset(name: str) -> str:
    return (files("wsbench.leaderboard.page") / name).read_text(encoding="utf-8")
