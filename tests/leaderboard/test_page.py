"""The page in a browser without a network: sorted, filtered, followed, looked at."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.leaderboard.test_verdict import BEST, FAR, LEVEL, WORSE, tuned
from tests.test_records import make_record
from wsbench.__main__ import main
from wsbench.leaderboard.logs import find_logs
from wsbench.leaderboard.naming import find_records
from wsbench.leaderboard.page.answer import answers, of_the_curves, of_the_paper, sentence
from wsbench.leaderboard.page.charts import figures
from wsbench.leaderboard.page.tuned_charts import steps_rows, tuned_figures
from wsbench.leaderboard.verdict import verdicts
from wsbench.leaderboard.wide import groups
from wsbench.records import BatchNumbers, MetricValue, RunRecord, write_record

PUBLISHED = Path(__file__).parents[2] / "leaderboards" / "records"
CLIPPED = """[...document.querySelectorAll('.chart svg')].filter(svg => {
  const edge = svg.getBoundingClientRect().right + 1;
  return [...svg.querySelectorAll('.role-legend')].some(l => l.getBoundingClientRect().right > edge);
}).map(svg => svg.closest('figure').id)"""
EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


def record(norm: str, seed: int, value: float, micro: int = 1, **changes: Any) -> RunRecord:
    batch = BatchNumbers(micro_batch=micro, accumulate=8 // micro, devices=1, effective_batch=8, norm_batch=micro)
    overrides = {} if micro == 1 else {"data.micro_batch": micro}
    fields = {
        "norm": norm,
        "seed": seed,
        "metrics": {"miou": MetricValue(value=value, n_eval=3, step=4)},
        "batch": batch,
    }
    identity = f"{abs(hash((norm, seed, micro))):012x}"[:12]
    return make_record(**({"id": identity, "overrides": overrides} | fields | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of three norms and one that attacks."""
    values = {"bn": 30.0, "gn": 40.0, "gn+ws": 50.0}
    for norm, value in values.items():
        for seed in range(3):
            one = record(norm, seed, value + seed, note=EVIL if (norm, seed) == ("gn", 1) else "")
            write_record(one, tmp_path / "records" / "voc" / f"{one.id}.json")
            log = [
                {"step": s, "train/loss": 2.0 - s / 10, "train/miou": 10.0 * s, "val/miou": 9.0 * s} for s in (1, 2, 4)
            ]
            text = "".join(json.dumps(line) + "\n" for line in log)
            (tmp_path / "records" / "voc" / f"{one.id}.metrics.jsonl").write_text(text)
    return tmp_path / "records"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser: Any, path: Path, **options: Any) -> Any:
    """The page, with what it says and asks for."""
    page = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.resolve().as_uri())
    page.evaluate("document.querySelector('#figures').scrollIntoView()")  # charts are drawn when they come near
    page.wait_for_selector(".chart[data-drawn] svg")
    return page


def column(page: Any, table: str, name: str) -> list[str]:
    """The texts of a column's visible cells."""
    script = """([table, name]) => {
        const element = document.querySelector(`${table} table`);
        const index = [...element.tHead.rows[0].cells].findIndex((cell) => cell.textContent === name);
        const rows = [...element.tBodies[0].rows].filter((row) => !row.hidden);
        return rows.map((row) => row.cells[index].textContent.trim());
    }"""
    found: list[str] = page.evaluate(script, [table, name])
    return found


@pytest.mark.slow
def test_in_a_browser(folder: Path, tmp_path: Path, browser: Any) -> None:
    assert main(["report", "--records", str(folder), "--out", str(tmp_path / "report.html")]) == 0
    page = open_page(browser, tmp_path / "report.html")
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert "gn+ws is best of 3 with 51.0 ± 1.0 (bn 31.0 ± 1.0, gn 41.0 ± 1.0)" in page.inner_text("#answer")

    # sort: up, down; by number
    head = page.locator("#table-voc-mini th", has_text="mean")
    head.click()
    assert column(page, "#table-voc-mini", "mean") == ["31.00", "41.00", "51.00"]
    head.click()
    assert column(page, "#table-voc-mini", "mean") == ["51.00", "41.00", "31.00"]
    page.locator("#table-voc-mini th", has_text="norm").first.click()
    assert column(page, "#table-voc-mini", "norm") == ["bn", "gn", "gn+ws"]

    # filter: every word, over all tables
    page.fill("#filter", "voc-mini gn+ws")
    assert column(page, "#table-voc-mini", "norm") == ["gn+ws"]
    assert page.inner_text("#shown").startswith("1 of ")
    assert not page.is_visible("#table-imagenet")
    page.fill("#filter", "resnet101 mabn")
    assert page.inner_text("#shown").startswith("0 of ")
    page.fill("#filter", "")

    # a number leads to its record
    page.locator("#table-voc-mini tbody tr", has_text="gn+ws").locator("td b a").click()
    page.wait_for_function("location.hash && document.querySelector(location.hash)?.open")
    shown = json.loads(page.inner_text(f"{page.evaluate('location.hash')} pre"))
    assert (shown["norm"], shown["seed"], shown["metrics"]["miou"]["value"]) == ("gn+ws", 0, 50.0)

    # again after it was closed, though the address stays what it is
    page.evaluate("document.querySelector(location.hash).open = false")
    page.locator("#table-voc-mini tbody tr", has_text="gn+ws").locator("td b a").click()
    page.wait_for_function("document.querySelector(location.hash).open")

    # what a record says stays text
    assert page.title().startswith("wsbench")
    assert EVIL in page.evaluate("document.querySelector('#records').textContent")
    assert page.locator("img").count() == 0


@pytest.mark.slow
def test_the_answer_at_own_rates(tmp_path: Path, browser: Any) -> None:
    """The first screen answers; the dots are sorted and the tie group has a colour; what trials scored is no result."""
    runs = [*tuned("gn+ws", BEST), *tuned("sn+ws", LEVEL, 0.03), *tuned("gn", WORSE), *tuned("bn", FAR, 0.03)]
    trial = tuned("ln", [1.0, 2.0], tuning=None, overrides={"model.lr": 0.1, "data.tuning": 0.2})
    for one in (*runs, *trial):
        write_record(one, tmp_path / "records" / "imagenet" / f"{one.id}.json")
    assert main(["report", "--records", str(tmp_path / "records"), "--out", str(tmp_path / "report.html")]) == 0
    page = open_page(browser, tmp_path / "report.html")
    assert page.said == []
    verdict = page.locator(".verdict")
    assert verdict.inner_text() == (
        "At one image per device use gn+ws; not significantly worse: sn+ws; avoid bn, more than 10 points worse."
    )
    assert "ln" not in page.inner_text("#answer .task")
    page.evaluate("document.querySelector('#answer .chart').scrollIntoView()")
    page.wait_for_selector("#answer .chart.low[data-drawn] svg")
    script = "[...document.querySelectorAll('#answer .chart.low svg .role-axis-label text')].map((e) => e.textContent)"
    labels = [text for text in page.evaluate(script) if not text.replace(".", "").isdigit()]
    assert labels == ["gn+ws", "sn+ws", "gn", "bn"]
    specs = json.loads(page.evaluate("document.getElementById('specs').textContent"))
    (name,) = (name for name in specs if name.startswith("dots-"))
    rows = specs[name]["layer"][0]["data"]["values"]
    assert {row["norm"]: row["how"] for row in rows} == {
        "gn+ws": "tied with the best", "sn+ws": "tied with the best", "gn": "significantly worse",
        "bn": "worse by more than 10 points",
    }  # fmt: skip
    phone = open_page(browser, tmp_path / "report.html", viewport={"width": 390, "height": 844})
    assert phone.evaluate("document.documentElement.scrollWidth") == 390


def test_steps_to_a_stated_score() -> None:
    """Of each seed, as far as evaluations tell; a miniature only, whose score is stated (50 % top-1 error)."""
    runs = [*tuned("gn+ws", BEST, steps=300), *tuned("bn", FAR, steps=300)]
    data = runs[0].data.model_copy(update={"name": "imagenet-mini"})
    runs = [one.model_copy(update={"data": data, "recipe": "mini"}) for one in runs]
    logs = {one.id: {"val/top1_error": {100: 70.0, 200: 49.0 if one.norm == "gn+ws" else 60.0}} for one in runs}
    (verdict,) = verdicts(groups(runs))
    rows = steps_rows(verdict, logs)
    assert {(r["norm"], r["steps"], r["reached"]) for r in rows} == {
        ("gn+ws", 200, "reached"), ("bn", 300, "not reached")
    }  # fmt: skip
    assert len(rows) == len(runs)
    names = [figure.name.split("-")[0] for figure in tuned_figures([verdict], logs)[0][1]]
    assert names == ["dots", "rates", "steps"]
    assert steps_rows(verdict, {}) == [], "a log is missing: nothing is said"
    own = [one.model_copy(update={"data": data.model_copy(update={"name": "custom"})}) for one in runs]
    assert steps_rows(verdicts(groups(own))[0], logs) == [], "no score is stated"


@pytest.mark.slow
def test_light_dark_and_a_phone(tmp_path: Path, browser: Any) -> None:
    """On what is published: drawn, readable, nothing wider than the screen."""
    assert main(["report", "--records", str(PUBLISHED), "--out", str(tmp_path / "report.html")]) == 0
    brightness = {}
    for scheme in ("light", "dark"):
        page = open_page(browser, tmp_path / "report.html", color_scheme=scheme)
        page.screenshot(path=tmp_path / f"{scheme}.png")
        brightness[scheme] = np.asarray(Image.open(tmp_path / f"{scheme}.png").convert("L")).mean()
    assert brightness["light"] > 200 > 80 > brightness["dark"]
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    phone = open_page(browser, tmp_path / "report.html", viewport={"width": 390, "height": 844})
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    answers = phone.evaluate("[...document.querySelectorAll('h2[id^=answer-]')].map(h => h.id)")
    assert len(set(answers)) == len(answers) > 5
    assert phone.evaluate("document.documentElement.scrollHeight") < 2_500 * len(answers)
    assert phone.evaluate("document.querySelectorAll('#tables details[open], #noise details[open]').length") == 0
    phone.evaluate("document.querySelectorAll('details').forEach(each => { each.open = each.matches('#figures *'); })")
    for place in phone.query_selector_all(".chart"):
        place.scroll_into_view_if_needed()
        phone.wait_for_function("element => element.querySelector('svg')", arg=place)
    assert phone.said == []
    assert phone.evaluate(CLIPPED) == [], "figures whose legend is wider than the figure"
    places = phone.evaluate("[...document.querySelectorAll('.toc a')].map(a => a.getAttribute('href'))")
    assert len(places) > 10
    assert [p for p in places if not phone.evaluate("id => document.getElementById(id) !== null", p[1:])] == []


def test_png(folder: Path, tmp_path: Path) -> None:
    assert (
        main(["report", "--records", str(folder), "--out", str(tmp_path / "r.html"), "--png", str(tmp_path / "png")])
        == 0
    )
    names = {path.stem for path in (tmp_path / "png").iterdir()}
    assert names == {f"{kind}-voc-mini" for kind in ("bars", "error", "loss", "speed", "memory")}
    for path in (tmp_path / "png").iterdir():
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 600
        assert picture.std() > 10  # something is drawn


def test_no_records_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--records", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "no records" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_the_answer_says_who_is_first_whoever_it_is() -> None:
    assert sentence([("bn", "9.0", "a"), ("gn+ws", "10.0", "b"), ("gn", "11.0", "c")]) == (
        "bn is best of 3 with 9.0; gn+ws is second with 10.0 (gn 11.0)"
    )
    found = groups([record("gn+ws", s, 50.0) for s in range(3)] + [record("bn", s, 60.0) for s in range(3)])
    (answer,) = answers(found)
    assert [norm for norm, _, _ in answer.ranking] == ["bn", "gn+ws"]
    errors = [
        r.model_copy(update={"task": "imagenet", "metrics": {"top1_error": r.metrics["miou"]}})
        for g in found
        for r in g.records
    ]
    assert [norm for norm, _, _ in answers(groups(errors))[0].ranking] == ["gn+ws", "bn"]  # lower is better


def test_the_curve_says_both_ends() -> None:
    found = groups([record("bn", s, 10.0 * micro, micro) for micro in (1, 2, 4) for s in range(2)])
    assert of_the_curves(found) == [
        (
            "voc-mini",
            "at one learning rate for all norms, from 4 to 1 images per device, at 8 per step throughout, miou goes "
            "for bn from 40.0 ± 0.0 to 10.0 ± 0.0",
        )
    ]


def test_the_papers_sentences_are_its_table() -> None:
    (first, second) = of_the_paper()
    assert "gn+ws 23.72 at 1 image a GPU" in first[1]
    assert "bn 24.30 at 64 images a GPU" in first[1]
    assert "bn 22.44 at 32 images a GPU" in second[1]


def test_figures_are_of_the_numbers() -> None:
    """Every mean of the published batch curve stands in its chart; one figure never mixes settings."""
    found = groups(find_records([PUBLISHED]))
    made = {figure.name: figure for figure in figures(found, find_logs([PUBLISHED]))}
    (name,) = (name for name in made if name.startswith("batch-"))
    chart = made[name].chart.to_dict()
    rows = chart["layer"][1]["data"]["values"] if "data" in chart["layer"][1] else chart["data"]["values"]
    values = {(r["norm"], r["batch"]): r["mean"] for r in rows}
    assert len(values) == 24
    for group in found:
        if group.table == "imagenet-mini" and "data.effective_batch" in group.first.overrides:
            over = group.spread("top1_error")
            assert over is not None
            assert values[group.first.norm, group.first.batch.micro_batch] == pytest.approx(over.mean)
    assert {f"{kind}-{task}-mini" for kind in ("bars", "loss") for task in ("imagenet", "voc", "coco")} <= set(made)
