import csv
from pathlib import Path

import pytest

from tests.test_records import make_record
from wsbench.__main__ import main
from wsbench.leaderboard import tuned
from wsbench.leaderboard.derive import derive
from wsbench.leaderboard.logs import find_logs
from wsbench.leaderboard.naming import find_records, table_name
from wsbench.leaderboard.paper import paper_rows, paper_rows_of
from wsbench.leaderboard.published import published_rows
from wsbench.leaderboard.rows import COLUMNS
from wsbench.leaderboard.wide import WIDE
from wsbench.norms import NormSpec
from wsbench.records import DataIdentity, RecordError, SplitIdentity, write_record
from wsbench.registry import TASKS


def test_the_papers_219_numbers() -> None:
    tables = {number: paper_rows(number) for number in range(1, 9)}
    assert [len(rows) for rows in tables.values()] == [17, 12, 8, 108, 54, 8, 4, 8]
    assert {(r.norm, r.value) for r in tables[7]} == {("gn", 74.90), ("gn+ws", 77.20), ("bn", 76.49), ("bn+ws", 77.15)}
    assert {r.norm for r in tables[2]} >= {"gn+wn", "gn+ws-af", "gn+ws-mo", "gn+ws-do"}
    for rows in tables.values():
        assert all(str(NormSpec.parse(row.norm)) == row.norm for row in rows)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def paper_record(**changes: object) -> object:
    split = SplitIdentity(list="val", count=1449, checksum="x")
    data = DataIdentity(name="voc2012", splits={"val": split})
    return make_record(**{"recipe": "paper", "data": data, "id": "b" * 12} | changes)


def test_deterministic_and_in_any_order() -> None:
    records = [make_record(id=f"{i:012d}", seed=i) for i in range(3)]
    assert derive(records) == derive(records[::-1])
    text = derive(records)["voc-mini.csv"]
    assert [r["seed"] for r in rows(text)] == ["0", "1", "2"]
    assert tuple(rows(text)[0]) == COLUMNS


def test_mini_and_paper_never_in_one_table() -> None:
    texts = derive([make_record(), paper_record(), make_record(recipe="paper", id="c" * 12)])  # type: ignore[list-item]
    assert {t for t in texts if t.startswith("voc") and "wide" not in t} == {
        "voc.csv", "voc-mini.csv", "voc-paper-voc-mini-v1.csv",
    }  # fmt: skip
    assert {r["recipe"] for r in rows(texts["voc.csv"]) if r["source"] != "published"} == {"paper"}
    assert {r["data"] for r in rows(texts["voc.csv"])} == {"voc2012"}
    assert {r["recipe"] for r in rows(texts["voc-mini.csv"])} == {"mini"}
    assert [r["source"] for r in rows(texts["voc.csv"])] == ["paper"] * 4 + ["published"] * 2 + ["run"]


def test_paper_rows_stand_without_records() -> None:
    (row, *_) = rows(derive([])["voc.csv"])
    assert (row["norm"], row["metric"], float(row["value"])) == ("gn", "miou", 74.9)
    assert row["network"] == "deeplabv3_resnet101"


def test_all_of_the_papers_numbers_stand_under_names_that_runs_have() -> None:
    texts = derive([])
    assert set(texts) == {f"{task}{kind}.csv" for task in TASKS for kind in ("", ".wide")}
    papers = {task: [r for r in rows(texts[f"{task}.csv"]) if r["source"] == "paper"] for task in TASKS}
    found = [row for each in papers.values() for row in each]
    assert len(found) == 219
    assert {row["citation"] for row in found} == {f"arXiv:1903.10520 Table {n}" for n in range(1, 9)}
    networks = {task: {r["network"] for r in papers[task]} for task in TASKS}
    assert networks["modelnet40"] == {"dgcnn_tf"}
    assert networks["something"] == {"tsm_resnet50"}
    assert "mask_rcnn_resnext101_32x4d" in networks["coco"]
    assert {r["norm"] for r in papers["modelnet40"]} == {"bn", "bn+ws", "gn16", "gn16+ws"}


def test_a_changed_recipe_is_said() -> None:
    record = make_record(overrides={"model.lr": 0.5})
    (row,) = rows(derive([record])["voc-mini.csv"])
    assert row["overrides"] == "model.lr=0.5"
    assert row["best_value"] == "41.0"
    assert table_name(record) == "voc-mini"


def test_find_each_record_once(tmp_path: Path) -> None:
    write_record(make_record(), tmp_path / "runs" / "voc" / "0123456789ab" / "result.json")
    write_record(make_record(), tmp_path / "leaderboards" / "records" / "voc" / "0123456789ab.json")
    assert len(find_records([tmp_path / "leaderboards" / "records", tmp_path / "runs"])) == 1
    assert len(find_records([tmp_path / "leaderboards" / "records"])) == 1
    (tmp_path / "runs" / "voc" / "bad").mkdir()
    (tmp_path / "runs" / "voc" / "bad" / "result.json").write_text("{}")
    with pytest.raises(RecordError, match=r"bad/result\.json"):
        find_records([tmp_path / "runs"])


def test_data_of_one_name_but_other_lists_or_labels_shares_no_table() -> None:
    other = DataIdentity(name="voc-mini-v1", splits={"val": SplitIdentity(list="val", count=3, checksum="y")})
    first = make_record()
    relabelled = {n: s.model_copy(update={"labels": "z"}) for n, s in first.data.splits.items()}
    labels = first.data.model_copy(update={"splits": relabelled})
    records = [first, make_record(id="d" * 12, seed=1, data=other), make_record(id="e" * 12, seed=2, data=labels)]
    tables = {
        name: text for name, text in derive(records).items() if name.startswith("voc-mini") and "wide" not in name
    }
    assert len(tables) == 3
    for name, text in tables.items():
        (checksum,) = {row["data_checksum"] for row in csv.DictReader(text.splitlines())}
        assert name == f"voc-mini-{checksum}.csv"
    assert [name for name in derive([first]) if name.startswith("voc-mini")] == ["voc-mini.csv", "voc-mini.wide.csv"]
    custom = [
        make_record(id=c * 12, data=DataIdentity(name="custom", splits={"val": split.model_copy(update={"count": n})}))
        for n, (c, split) in enumerate((c, other.splits["val"]) for c in "ab")
    ]
    assert len([name for name in derive(custom) if "custom" in name and "wide" not in name]) == 2


def test_a_published_row_names_its_source_and_its_norm() -> None:
    for task in TASKS:
        for row in published_rows(task):
            assert row.citation
            assert 0 < float(row.value) < 100
            assert row.metric in {r.metric for r in paper_rows_of(task)}
            if row.norm.split("+")[0] in ("bn", "gn", "sn", "frozenbn") and not row.norm.endswith("sws"):
                assert str(NormSpec.parse(row.norm)) == row.norm
    values = [r.value for r in published_rows("imagenet") if r.norm == "mabn"]
    assert values == ["23.67"]
    recalled = {"29.8", "24.4", "24.2", "24.0"}  # 1912.11370 Table 4 was not read, so it must not be here
    assert not [r for r in published_rows("imagenet") if "1912.11370" in r.citation and r.value in recalled]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard"]) == 0
    assert "no records" in capsys.readouterr().out
    write_record(make_record(), tmp_path / "runs" / "voc" / "0123456789ab" / "result.json")
    assert main(["leaderboard"]) == 0
    out = capsys.readouterr().out
    assert "gn+ws" in out
    assert "40.00" in out
    first = {p.name: p.read_bytes() for p in (tmp_path / "leaderboards").iterdir()}
    assert "voc-mini.csv" in first
    assert main(["leaderboard"]) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "leaderboards").iterdir()} == first


def test_a_bad_record_is_an_error_not_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text("{}")
    assert main(["leaderboard", "--records", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "result.json" in capsys.readouterr().err


def test_committed_tables_are_the_committed_records() -> None:
    """leaderboards/*.csv say exactly what leaderboards/records hold."""
    folder = Path(__file__).parents[2] / "leaderboards"
    for name, text in derive(find_records([folder / "records"]), find_logs([folder / "records"])).items():
        assert (folder / name).read_text() == text, (
            f"run `python -m wsbench leaderboard --records leaderboards/records`: {name}"
        )


def test_every_column_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "leaderboards.md").read_text()
    for column in {*COLUMNS, *WIDE, *tuned.COLUMNS}:
        assert f"| `{column}` |" in text, f"docs/leaderboards.md lacks `{column}`"


def test_what_runs_changed_is_in_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for each leaderboard; an option that all have is said once; cited tables only where asked for."""
    for seed, lr in ((0, 0.01), (1, 0.03), (2, None)):
        overrides = {"trainer.max_steps": 5} | ({} if lr is None else {"model.lr": lr})
        record = make_record(seed=seed, id=f"r{seed}", overrides=overrides)
        write_record(record, tmp_path / "runs" / record.task / record.id / "result.json")
    out = tmp_path / "out"
    assert main(["leaderboard", "--records", str(tmp_path / "runs"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    header = next(line for line in said.splitlines() if "norm" in line and "seeds" in line)
    assert [cell.strip() for cell in header.split("┃")[1:4]] == ["norm", "lr", "batch"]
    assert "trainer.max_steps=5" in said
    assert "(recipe)" in said
    assert len(list(out.iterdir())) == 2
    assert main(["leaderboard", "--records", str(tmp_path / "runs"), "--out", str(out), "--cited"]) == 0
    assert {f"{task}.csv" for task in TASKS} <= {path.name for path in out.iterdir()}
