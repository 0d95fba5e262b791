"""The command line, in process, on a tiny VOC; each trap of Lightning's CLI has a test."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.running import fit, only_run
from wsbench.__main__ import main
from wsbench.cli.arguments import PARSERS
from wsbench.cli.fit_command import find_dataset
from wsbench.configuration.choice import ChoiceError, choose
from wsbench.datamodules.errors import DatasetNotFoundError
from wsbench.records import read_record
from wsbench.run.lines import read_metrics
from wsbench.run.logger import JSONLLogger

pytestmark = pytest.mark.usefixtures("in_a_folder")


# -- the door -------------------------------------------------------------------------------------------------------


LIGHT = [
    [], ["--help"], ["--version"], ["fit", "--help"], ["fit", "--task", "voc", "--help"], ["fit", "--help", "trainer"],
    ["fit", "--task", "voc", "--nrom", "gn"], ["predict", "--task", "coco", "--recipe", "mini", "--help"],
    ["sweep", "list"], ["sweep", "status"], ["sweep", "nothing"], ["leaderboard", "--fuo"], ["fot"],
    *([*name.split(), "--help"] for name in PARSERS), *([*name.split(), "--typo"] for name in PARSERS),
]  # fmt: skip


def test_help_and_typos_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from wsbench.__main__ import main\n"
        f"for argv in {LIGHT}:\n"
        "    try: main(argv)\n"
        "    except SystemExit: pass\n"
        "    heavy = {'torch', 'lightning', 'numpy', 'sklearn', 'matplotlib', 'jsonargparse'} & set(sys.modules)\n"
        "    assert not heavy, (argv, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    from wsbench.__main__ import COMMANDS

    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert main(["--version"]) == 0
    assert main(["train"]) == 2
    assert "unknown command 'train'; choose from fit" in capsys.readouterr().err


# -- task and recipe ------------------------------------------------------------------------------------------------


def test_choice_of_recipe(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(["--task", "voc"], find_dataset).recipe == "mini"
    found = choose(["--task=voc", f"--data.root={root}"], find_dataset)
    assert (found.recipe, str(root) in found.reason) == ("paper", True)
    with pytest.raises(DatasetNotFoundError, match=f"under '{tmp_path}'"):
        choose(["--task", "voc", "--data.root", str(tmp_path)], find_dataset)
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"task": "voc", "data": {"root": str(tmp_path)}}))
    with pytest.raises(DatasetNotFoundError, match=r"it holds settings\.yaml"):
        choose(["--config", str(settings)], find_dataset)
    monkeypatch.setenv("WSBENCH_DATA", str(tmp_path))
    with pytest.raises(DatasetNotFoundError):
        choose(["--task", "voc"], find_dataset)
    monkeypatch.setenv("WSBENCH_DATA", str(root))
    assert choose(["--task", "voc"], find_dataset).recipe == "paper"
    assert choose(["--task", "voc", "--recipe", "mini"], find_dataset).recipe == "mini"
    wrong = {
        (): "say what to run with --task",
        ("--task", "x"): "choose from imagenet",
        ("--task", "voc", "--recipe", "x"): "paper, small, mini",
        ("--config", "none.yaml"): "none.yaml",
    }
    for argv, message in wrong.items():
        with pytest.raises(ChoiceError, match=message):
            choose(argv, find_dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--norm", "gn+xs"], "unknown weight normalization 'xs'; choose from cwn, spectral, sws, wn, ws"),
        (["--trainer.max_stepz", "3"], "max_stepz"),
        (["--model.lr", "fast"], "fast"),
        (["--data.train_labels", "none"], "SegmentationClassAug"),
        (["--seed_everything", "true"], "seed_everything"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    root: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(root, *options) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--norm", "syncbn", "--trainer.sync_batchnorm", "true"], "sees all devices by itself"),
        (["--model.agc", "-1"], "--model.agc -1"),
        (["--norm", "gn48"], "48 groups do not divide 64 channels"),
        (["--data.effective_batch", "3", "--data.micro_batch", "2"], "3 is no multiple of micro_batch 2"),
        (["--trainer.accumulate_grad_batches", "3"], "contradicts --data.effective_batch 2"),
        (["--data.train_set", "trainaug"], "python -m wsbench data voc"),
        (["--model.network", "unet"], "unknown network 'unet'"),
        (["--ckpt_path", "last"], "no checkpoint to resume"),
        (["--data.micro_batch", "0"], "--data.micro_batch must be at least 1"),
        (["--data.scale", "[0, 1]"], "--data.scale must be two positive numbers"),
        (["--data.flip", "2"], "--data.flip must be between 0 and 1"),
        (["--trainer.max_steps", "-1"], "--trainer.max_steps"),
        (["--model.output_stride", "4"], "output_stride must be 8, 16 or 32"),
        (["--model.init_from", "torchvision", "--norm", "bn"], "no ImageNet V1 weights"),
        (["--model.network", "mmseg:deeplabv3/none"], "mmseg"),
    ],
)
def test_what_only_the_run_can_know_is_one_line_too(
    root: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(root, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("runs").exists(), "nothing half-written stays behind"


# -- fit ------------------------------------------------------------------------------------------------------------


def test_fit_writes_a_record_and_says_what_it_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(root, "--norm", "gn+ws", "--seed_everything", "3") == 0
    out = capsys.readouterr().out
    for part in (
        "deeplabv3_resnet_mini",
        "custom: 6 train (train), 5 val (val)",
        "23 layers weight-normalized, 1 plain",
        "1 per device x 2 micro-steps x 1 device(s) = 2",
        "classes  21: background, aeroplane",
        "steps    4, seed 3",
    ):
        assert part in out, part
    folder = only_run()
    names = {
        "result.json",
        "config.yaml",
        "norms.txt",
        "metrics.jsonl",
        "last.ckpt",
        "previous.ckpt",
        "best.ckpt",
        "hparams.yaml",
    }
    (events,) = folder.glob("events.out.tfevents.*")  # TensorBoard's, as hparams.yaml
    assert {p.name for p in folder.iterdir()} == {*names, events.name}
    assert "no normalization layer consumes its output" in (folder / "norms.txt").read_text()
    assert sys.argv[1:3] == ["fit", "--task"], "Lightning starts the other processes of DDP from it"
    record = read_record(folder / "result.json")
    assert record.id == folder.name
    assert (record.norm, record.seed, record.steps, record.batch.accumulate) == ("gn+ws", 3, 4, 2)
    assert record.metrics["miou"].n_eval == 5
    assert record.converted == {"activation": 23, "weight": 23, "kept": 0, "plain": 1}
    assert {"data.crop", "model.aspp_width", "trainer.max_steps"} <= set(record.overrides)
    assert not {"norm", "seed_everything", "data.root", "data.seed", "model.norm"} & set(record.overrides)
    assert record.best["miou"].value >= record.metrics["miou"].value
    (table,) = (p for p in Path("runs/leaderboards").glob("voc-mini-custom-*.csv") if "wide" not in p.name)
    rows = table.read_text().splitlines()
    assert len(rows) == 3
    assert record.id in rows[1]
    series = read_metrics(folder / "metrics.jsonl")
    assert len(series["val/miou"]) == 2


def test_the_miniature_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--task", "voc", "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "mini (neither --data.root nor $WSBENCH_DATA names a dataset)" in out
    assert "voc-mini-v1: 500 train" in out
    assert not Path("runs").exists(), "fast_dev_run leaves nothing"


@pytest.mark.parametrize("recipe", [[], ["--recipe", "paper"], ["--recipe", "small"]])
def test_a_root_without_the_dataset_is_refused(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--task", "voc", "--data.root", "/nowhere", *recipe, *options]) == 2
    error = capsys.readouterr().err
    assert "was not found under '/nowhere': looked for VOCdevkit/VOC2012/" in error
    assert "there is no such folder. `python -m wsbench data voc` shows the layout" in error
    assert "Traceback" not in error


def test_without_bar_checkpoints_or_with_a_sanity_check(root: Path) -> None:
    options = ("enable_progress_bar", "false"), ("enable_checkpointing", "false"), ("num_sanity_val_steps", "1")
    assert fit(root, *(text for name, value in options for text in (f"--trainer.{name}", value))) == 0
    assert read_record(only_run() / "result.json").best["miou"].step > 0
    assert not (only_run() / "last.ckpt").exists()


def test_help_of_a_command_without_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    assert "--recipe NAME" in capsys.readouterr().out
    assert main(["fit", "--task", "voc", "--help"]) == 0
    assert "--model.aspp_rates" in capsys.readouterr().out


def test_the_same_command_twice(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, first = (run / "result.json").read_bytes(), read_record(run / "result.json")
    assert fit(root) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert (run / "result.json").read_bytes() == before
    assert fit(root, "--overwrite", "true") == 0
    assert (run / "result.json").read_bytes() != before
    assert read_record(run / "result.json").metrics == first.metrics
    assert only_run() == run


def test_identity_is_content(root: Path, tmp_path: Path) -> None:
    """Seed, fields and data change the id; where things lie and who loads them does not."""
    ids = {}
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    for name, options in {
        "plain": [], "moved": ["--data.root", str(moved)], "logged": ["--trainer.log_every_n_steps", "1"],
        "seed": ["--seed_everything", "1"], "lr": ["--model.lr", "0.3"], "norm": ["--norm", "gn"],
        "same norm": ["--norm", "GN+WS"],
    }.items():  # fmt: skip
        assert fit(root, "--runs", name, "--trainer.max_steps", "2", *options) == 0
        ids[name] = next(Path(name, "voc").iterdir()).name
    assert ids["plain"] == ids["moved"] == ids["logged"] == ids["same norm"]
    assert len({ids["plain"], ids["seed"], ids["lr"], ids["norm"]}) == 4
    names = moved / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
    names.write_text("\n".join(names.read_text().split()[:-1]) + "\n")
    assert fit(root, "--runs", "less", "--trainer.max_steps", "2", "--data.root", str(moved)) == 0
    assert next(Path("less/voc").iterdir()).name != ids["plain"]


def test_the_saved_config_runs_the_run_again(run: Path, root: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"], config["norm"], config["ckpt_path"]) == ("voc", "gn+ws", None)
    assert config["data"]["pictures"] is None, "what is unset is written too: it may overrule the recipe"
    assert main(["fit", "--config", str(run / "config.yaml"), "--runs", "again"]) == 0
    (again,) = Path("again/voc").iterdir()
    assert again.name == run.name
    weights = [torch.load(p / "last.ckpt", weights_only=True)["state_dict"] for p in (run, again)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_print_config(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(root, "--model.lr", "0.25", "--print_config")
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["lr"] == 0.25
    assert config["data"]["flip"] == 0.0, "from the recipe"
    assert "norm" not in config["model"], "linked from the top level, so that there is one place"


def test_precedence_command_line_over_config_over_recipe(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("model: {lr: 0.5, weight_decay: 0.5}\n")
    with pytest.raises(SystemExit):
        fit(root, "--config", "mine.yaml", "--model.lr", "0.25", "--print_config")
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert (model["lr"], model["weight_decay"], model["output_stride"]) == (0.25, 0.5, 8)


@pytest.mark.parametrize("norm", ["bn", "in", "sn+wn", "none+ws", "gn16+ws-af@authors"])
def test_other_cells(norm: str, root: Path) -> None:
    rate = ("--model.lr", "1e-6") if norm.startswith("none") else ()  # without a norm the recipe's rate diverges
    assert fit(root, "--norm", norm, "--trainer.max_steps", "2", *rate) == 0
    record = read_record(only_run() / "result.json")
    assert record.norm == norm
    if norm in ("bn", "in"):
        assert "aspp.pooling" in record.definitions["norms"], "the degenerate cell is in the record"


def test_bf16_mixed(root: Path) -> None:
    assert fit(root, "--trainer.precision", "bf16-mixed") == 0
    record = read_record(only_run() / "result.json")
    assert record.provenance.precision == "bf16-mixed"
    assert np.isfinite(list(read_metrics(only_run() / "metrics.jsonl")["val/miou"].values())).all()


def test_log_reader_takes_the_last_of_a_step_and_passes_over_a_torn_line(tmp_path: Path) -> None:
    lines = [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 2, "a": 3.0, "b": "inf"}]
    (tmp_path / "m").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "a')
    assert read_metrics(tmp_path / "m") == {"a": {1: 1.0, 2: 3.0}, "b": {2: float("inf")}}
    torn = tmp_path / "metrics.jsonl"
    torn.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a')
    JSONLLogger(tmp_path).log_metrics({"a": 4.0}, 4)
    assert read_metrics(torn) == {"a": {1: 1.0, 4: 4.0}}


def test_progress_lines_in_a_file(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr("wsbench.run.progress.time.monotonic", lambda: float(next(clock)))
    assert fit(root) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "samples/s" in line and line.startswith("step ")]
    assert lines
    assert all("train/loss" in line and " left" in line for line in lines)
    assert lines[0].startswith("step 1/4")


def test_bar_on_a_terminal(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert fit(root) == 0
    out = capsys.readouterr().out
    assert "from step 2 of 4" in out
    assert "4/4" in out, "two steps of two micro-batches each"
    assert "-2" not in out.split("voc / mini")[0].replace("\x1b", "")


def test_durations() -> None:
    from wsbench.run.report import duration

    assert [duration(s) for s in (5, 65, 3725.4)] == ["0:05", "1:05", "1:02:05"]
