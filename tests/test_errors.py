"""What is said of an error, and what stays a defect with its traceback."""

import errno

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from wsbench.errors import UserError, exit_status, for_the_user, printable


def _raised(work: object) -> BaseException:
    try:
        work()  # type: ignore[operator]
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def test_what_others_say() -> None:
    full = for_the_user(OSError(errno.ENOSPC, "No space left on device", "/x/metrics.jsonl"))
    assert str(full) == "'/x/metrics.jsonl': No space left on device"
    assert "memory is used up" in str(for_the_user(MemoryError()))
    assert "Lightning refuses" in str(for_the_user(MisconfigurationException("no such thing")))
    said = for_the_user(_raised(lambda: Trainer(precision="none", accelerator="cpu")))
    assert said is not None
    assert "lightning says" in str(said)


def test_defects_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def defect() -> int:
        return {}["x"]  # type: ignore[no-any-return]

    assert for_the_user(_raised(defect)) is None
    with pytest.raises(KeyError):
        exit_status(defect)
    assert capsys.readouterr().err == ""


def test_a_terminal_obeys_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        raise UserError("a\x1b[31mred\x07 \ud800 \u202e\nline")

    assert exit_status(work) == 2
    said = capsys.readouterr().err
    assert "a\\x1b[31mred\\x07 \\ud800 \\u202e\nline" in said
    assert printable("größe ±\n") == "größe ±\n"
    monkeypatch.setenv("WSBENCH_DEBUG", "1")
    with pytest.raises(UserError):
        exit_status(work)
