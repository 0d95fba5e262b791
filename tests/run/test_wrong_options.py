"""A wrong option is one sentence that names it."""

from pathlib import Path

import pytest

from wsbench.__main__ import main
from wsbench.run.wrong_options import sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nrom", "gn"], "there is no option --nrom; did you mean --norm?"),
        (["--trainer.max_step", "5"], "there is no option --trainer.max_step; did you mean --trainer.max_steps?"),
        (["--zzzzqqqq", "5"], "there is no option --zzzzqqqq; --help lists them"),
        (["--data.micro_batch", "x"], "--data.micro_batch x: expected int"),
        (["--data.steps_per_epoch", "x"], "--data.steps_per_epoch x: expected int or null"),
        (["--model.lr", "fast"], "--model.lr fast: expected float"),
        (["--norm", "gn+wz"], "argument --norm: unknown weight normalization 'wz'"),
    ],
)
def test_one_sentence(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--task", "imagenet", "--recipe", "mini", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("option", ["--model.lr=-1", "--model.lr=nan", "--model.momentum=2", "--model.lr=1e30",
                                    "--model.milestones=[-1]"])  # fmt: skip
def test_what_cannot_be_meant(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--task", "imagenet", "--recipe", "mini", option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_message_that_nobody_has_put_into_words() -> None:
    assert sentence("something\n  else", []) == "something else"
    assert len(sentence("x" * 1000, [])) < 420
