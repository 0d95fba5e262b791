import hashlib
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from wsbench.records import (
    BatchNumbers,
    Cost,
    DataIdentity,
    MetricValue,
    Provenance,
    RecordError,
    RunRecord,
    SplitIdentity,
    checksum,
    read_record,
    write_record,
    write_text_atomically,
)

DOCS = Path(__file__).parents[1] / "docs" / "records.md"


def make_record(**changes: object) -> RunRecord:
    split = SplitIdentity(list="train", count=3, checksum=checksum("abc"))
    values: dict[str, object] = {
        "schema_version": 3,  # from 4 on the id must be the hash of what the record holds
        "id": "0123456789ab", "task": "voc", "recipe": "mini", "overrides": {}, "norm": "gn+ws", "seed": 0,
        "network": "deeplabv3_resnet_mini", "steps": 4, "definitions": {}, "converted": {"activation": 1},
        "batch": BatchNumbers(micro_batch=1, accumulate=8, devices=1, effective_batch=8, norm_batch=1),
        "data": DataIdentity(name="voc-mini-v1", splits={"train": split, "val": split}),
        "metrics": {"miou": MetricValue(value=40.0, n_eval=3, step=4)},
        "best": {"miou": MetricValue(value=41.0, n_eval=3, step=2)},
        "cost": Cost(train_seconds=1, total_seconds=2, samples_per_second=3, peak_memory_mib=4, parameters=5),
        "provenance": Provenance(
            wsbench="0", python="3", torch="2", torchvision="0", lightning="2", commit=None, dirty=None, command="c",
            hardware="h", precision="32-true", finished="2026-01-01T00:00:00+00:00",
        ),
    }  # fmt: skip
    return RunRecord.model_validate(values | changes)


def test_round_trip(tmp_path: Path) -> None:
    record = make_record()
    write_record(record, tmp_path / "runs" / "result.json")
    assert read_record(tmp_path / "runs" / "result.json") == record
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["result.json"]


def test_checksum_depends_on_order() -> None:
    assert checksum(["a", "b"]) != checksum(["b", "a"]) != checksum(["ab"])
    assert checksum(iter(["a", "b"])) == hashlib.sha256(b"a\nb\n").hexdigest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", 8),
        ("metrics", {"miou": {"value": float("nan"), "n_eval": 1, "step": 1}}),
        ("surprise", 1),
        ("seed", "x"),
    ],
)
def test_what_the_schema_refuses(field: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        make_record(**{field: value})
    content = json.loads(make_record().model_dump_json()) | {field: "x" if field == "metrics" else value}
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=rf"result.json' is not a record of schema version 1 to 7: {field}"):
        read_record(tmp_path / "result.json")


def test_records_of_version_1_are_read(tmp_path: Path) -> None:
    content = json.loads(make_record().model_dump_json()) | {"schema_version": 1}
    del content["analysis"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert read_record(tmp_path / "result.json").analysis == ()


def test_not_json(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(RecordError, match="is not JSON"):
        read_record(tmp_path / "result.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_text_atomically(path, "old")

    def fail(*args: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_every_field_is_documented() -> None:
    """docs/records.md has a row for each field, with the description that the schema gives."""
    schema = RunRecord.model_json_schema()
    text = DOCS.read_text()
    for part in (schema, *schema["$defs"].values()):
        for name, field in part["properties"].items():
            row = re.search(rf"^\| `{name}` \|.*$", text, re.M)
            assert row, f"docs/records.md lacks `{name}`"
            if "description" in field:
                assert field["description"] in text, f"docs/records.md says something else about `{name}`"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": "../../x"}, "none of imagenet"), ({"id": "../x"}, "id"), ({"recipe": "a/b"}, "recipe"),
        ({"norm": "\x1b[31mgn"}, r"x1b\[31mgn' has characters"), ({"network": "a\nb"}, "no text"),
        ({"note": "\u202egn"}, "no text"), ({"metrics": {}}, "no metrics"),
    ],
)  # fmt: skip
def test_a_strangers_record(change: dict[str, object], named: str, tmp_path: Path) -> None:
    content = json.loads(make_record().model_dump_json()) | change
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=named):
        read_record(tmp_path / "result.json")


def test_a_record_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("[" * 200_000)
    with pytest.raises(RecordError, match="is not JSON"):
        read_record(tmp_path / "result.json")
