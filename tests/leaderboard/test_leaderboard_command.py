"""``leaderboard compare`` as a user sees it."""

from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from tests.leaderboard.test_verdict import BEST, FAR, WORSE, tuned
from wsbench.__main__ import main
from wsbench.records import write_record


def test_compare_says_names_numbers_and_verdicts_whole_on_120_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        *tuned("gn+ws", BEST), *tuned("gn", FAR),
        *tuned("gn+ws", [10.0, 40.0, 20.0, 30.0, 5.0], task="voc", metric="miou"),
        *tuned("gn", WORSE, task="voc", metric="miou"),
    ]  # fmt: skip
    for one in records:
        write_record(one, tmp_path / "records" / one.task / f"{one.id}.json")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["leaderboard", "compare", "gn+ws", "gn", "--records", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert all(len(line) <= 120 for line in lines)
    titles = [line.strip() for line in lines if "minus" in line]
    assert titles == [
        "imagenet-mini-voc-mini-v1-tuned: top1_error, gn+ws minus gn",
        "voc-mini-tuned: miou, gn+ws minus gn",
    ]
    first, second = ([part.strip() for part in line.split("│")[1:-1]] for line in lines if line.startswith("│"))
    low, high = ttest_rel(BEST, FAR).confidence_interval()
    assert first[:3] == ["1 of 8", "5", f"{sum(BEST) / 5 - sum(FAR) / 5:+.2f}"]
    assert first[3] == f"{low:+.2f} to {high:+.2f}"
    assert first[5:] == ["< 0.001", "gn+ws is better"]
    assert second[6] == "not significant"


def test_compare_refuses_norms_that_share_no_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in [*tuned("gn+ws", BEST), *tuned("gn", FAR)]:
        write_record(one, tmp_path / "records" / one.task / f"{one.id}.json")
    assert main(["leaderboard", "compare", "gn+ws", "gn", "--records", str(tmp_path)]) == 0
    assert main(["leaderboard", "compare", "gn+ws", "nothing", "--records", str(tmp_path)]) != 0
    assert "no two groups of runs of gn+ws and nothing share two seeds" in capsys.readouterr().err
