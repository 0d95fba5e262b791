"""``leaderboard compare`` as a user sees it."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from tests.leaderboard.test_verdict import BEST, FAR, WORSE, tuned
from wsbench.__main__ import main
from wsbench.records import BatchNumbers, RunRecord, write_record


def written(folder: Path, records: Sequence[RunRecord]) -> Path:
    for one in records:
        write_record(one, folder / "records" / one.task / f"{one.id}.json")
    return folder


def at(micro_batch: int) -> BatchNumbers:
    return BatchNumbers(
        micro_batch=micro_batch, accumulate=32 // micro_batch, devices=1, effective_batch=32, norm_batch=micro_batch
    )


def test_compare_says_names_numbers_and_verdicts_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        *tuned("gn+ws", BEST), *tuned("gn", FAR),
        *tuned("gn+ws", [10.0, 40.0, 20.0, 30.0, 5.0], task="voc", metric="miou"),
        *tuned("gn", WORSE, task="voc", metric="miou"),
    ]  # fmt: skip
    assert main(["leaderboard", "compare", "gn+ws", "gn", "--records", str(written(tmp_path, records))]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line.strip() for line in lines if "minus" in line]
    assert titles == [
        "imagenet-mini-voc-mini-v1-tuned: top1_error, gn+ws minus gn",
        "voc-mini-tuned: miou, gn+ws minus gn",
    ]
    # two lines: no cell of any is broken into a second
    first, second = ([part.strip() for part in line.split("│")[1:-1]] for line in lines if line.startswith("│"))
    low, high = ttest_rel(BEST, FAR).confidence_interval()
    assert first[:3] == ["1 of 8", "5", f"{sum(BEST) / 5 - sum(FAR) / 5:+.2f}"]
    assert first[3] == f"{low:+.2f} to {high:+.2f}"
    assert first[5:] == ["< 0.001", "gn+ws is better"]
    assert second[6] == "not significant"
    assert "for all lines above: 2 at own rates" in " ".join(lines)


def test_lines_of_a_table_are_in_the_order_of_batch_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        one.model_copy(update={"id": f"{one.id}{micro_batch}"})
        for micro_batch in (16, 2, 1)
        for norm, values in (("gn+ws", BEST), ("gn", FAR))
        for one in tuned(norm, values, batch=at(micro_batch))
    ]
    assert main(["leaderboard", "compare", "gn+ws", "gn", "--records", str(written(tmp_path, records))]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["1 of 32", "2 of 32", "16 of 32"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("gn+ws", "gn", r"no two groups of runs of gn\+ws and gn share two seeds"),
        ("gn+ws", "nothing", r"there are no runs of nothing below '.*'; there are those of gn, gn\+ws"),
        ("gn", "gn", "gn is compared with itself"),
    ],
)
def test_what_cannot_be_compared(
    first: str, second: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = [one.model_copy(update={"seed": one.seed + 10}) for one in tuned("gn", FAR)]
    written(tmp_path, [*tuned("gn+ws", BEST), *later])
    assert main(["leaderboard", "compare", first, second, "--records", str(tmp_path)]) == 2
    assert re.search(expected, capsys.readouterr().err)


def test_a_folder_without_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "compare", "gn", "bn", "--records", str(tmp_path / "none")]) == 2
    assert "there are no records below" in capsys.readouterr().err
