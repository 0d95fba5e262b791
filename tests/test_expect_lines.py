"""What the paper's recipes expect is what its tables say: each number of each ``# expect:`` line, by the CSV files."""

import csv
import re
from pathlib import Path

import pytest
import yaml

from wsbench.registry import TASKS

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(ROOT / "conf" / task / "paper.yaml" for task, entry in TASKS.items() if entry.paper is not None)
TABLES = {"imagenet": 1, "coco": 4, "something": 6, "voc": 7, "modelnet40": 8}
METRICS = {
    "top-1 error": ("top1_error",),
    "box/mask AP": ("box_AP", "mask_AP"),
    "top-1/top-5 accuracy": ("top1_acc", "top5_acc"),
    "mIoU": ("miou",),
    "mean class / overall accuracy": ("mean_class_acc", "overall_acc"),
}
NUMBERS = r"\d+(?:\.\d+)?"


def expect_line(recipe: str) -> str:
    """The text behind ``# expect:`` and of the indented comments that go on with it, in one line; none is ''."""
    match = re.search(r"^# expect: (.*(?:\n#  +.*)*)", recipe, re.MULTILINE)
    return "" if match is None else re.sub(r"\n# +", " ", match[1])


def expectations(line: str) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Metrics, and for each spec its numbers, as they are written.

    Raises:
        ValueError: the line has another form, or a number in it would go unread.
    """
    claim, _, source = line.partition(" (")
    if not source.startswith("paper"):
        raise ValueError(f"the line does not say that its numbers are the paper's: {line!r}")
    metric = next((m for m in METRICS if claim.startswith(f"{m} ")), None)
    if metric is None:
        raise ValueError(f"unknown metric in {line!r}")
    found = {}
    for part in claim.removeprefix(f"{metric} ").split(", "):
        match = re.fullmatch(rf"({NUMBERS}(?:/{NUMBERS})*) ([a-z][a-z0-9+@-]*)", part)
        if match is None:
            raise ValueError(f"{part!r} is not NUMBERS SPEC, in {line!r}")
        found[match[2]] = tuple(match[1].split("/"))
    return METRICS[metric], found


def table(number: int) -> dict[tuple[str, str, str], str]:
    """One of the paper's tables: (model, spec, metric) to the value as it is printed."""
    values = {}
    with (ROOT / "leaderboards" / "paper" / f"table{number}.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert not row["variant"], "only Table 2 has variants, and no recipe quotes it"
            act = "gn16" if number == 8 and row["norm"] == "gn" else row["norm"]  # of the authors' DGCNN
            spec = act if row["weight_norm"] == "none" else f"{act}+{row['weight_norm']}"
            values[row["model"], spec, row["metric"]] = row["value"]
    return values


def differences(task: str, recipe: str) -> list[str]:
    """What a recipe expects and its table does not say."""
    metrics, expected = expectations(expect_line(recipe))
    known = table(TABLES[task])
    network = yaml.safe_load(recipe)["model"]["network"]
    (model,) = {model for model, *_ in known if model in network.split("_")}
    return [
        f"{spec} {metric}: {value}, the table has {known.get((model, spec, metric))}"
        for spec, values in expected.items()
        for metric, value in zip(metrics, values, strict=True)
        if known.get((model, spec, metric)) != value
    ]


def test_every_recipe_has_its_line() -> None:
    assert [path.parent.name for path in RECIPES] == sorted(TABLES)
    for path in RECIPES:
        text = path.read_text(encoding="utf-8")
        assert text.count("# expect:") == 1
        _, expected = expectations(expect_line(text))
        assert {spec.removesuffix("+ws") for spec in expected} >= {"gn16" if "gn16" in expected else "gn"}
        assert any("+ws" in spec for spec in expected)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_numbers_are_the_papers(path: Path) -> None:
    assert differences(path.parent.name, path.read_text(encoding="utf-8")) == []


def test_how_many_numbers_are_checked() -> None:
    """4, 4, 8, 4 and 8: none is passed over by the reading of the lines."""
    counts = {}
    for path in RECIPES:
        line = expect_line(path.read_text(encoding="utf-8"))
        _, expected = expectations(line)
        counts[path.parent.name] = sum(len(values) for values in expected.values())
        decimals = re.findall(r"\d+\.\d+", line.partition(" (")[0])
        assert len(decimals) == counts[path.parent.name]
    assert counts == {"coco": 4, "imagenet": 4, "modelnet40": 8, "something": 8, "voc": 4}


def test_wrong_lines_are_noticed() -> None:
    """A wrong number, a spec that the table does not have, a line of another form."""
    coco = "# expect: box/mask AP 41.27/36.50 gn+ws, 39.86/35.80 gn (paper)\nmodel:\n  network: mask_rcnn_resnet50\n"
    assert differences("coco", coco) == [
        "gn+ws box_AP: 41.27, the table has 40.81", "gn+ws mask_AP: 36.50, the table has 36.51"
    ]  # fmt: skip
    other = coco.replace("41.27/36.50 gn+ws", "40.81/36.51 bn")
    assert len(differences("coco", other)) == 2
    wrapped = "# expect: mIoU 77.20 gn+ws, 74.90\n#   gn (paper)\n# Not this\nmodel:\n  network: deeplabv3_resnet101\n"
    assert expect_line(wrapped) == "mIoU 77.20 gn+ws, 74.90 gn (paper)"
    assert differences("voc", wrapped) == []
    for line, message in [
        ("mIoU 77.20 gn+ws (README)", "does not say that its numbers are the paper's"),
        ("AP 77.20 gn+ws (paper)", "unknown metric"),
        ("mIoU 77.20 gn+ws and 74.90 gn (paper)", "is not NUMBERS SPEC"),
        ("", "does not say"),
    ]:
        with pytest.raises(ValueError, match=message):
            expectations(line)
    with pytest.raises(ValueError, match="zip"):
        differences("voc", wrapped.replace("77.20 ", "77.20/3.0 "))
