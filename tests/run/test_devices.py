"""Options of the Trainer are looked at before anything is written; the miniature fits on any number of devices."""

import re
from pathlib import Path
from unittest import mock

import pytest
import torch

from wsbench.__main__ import main
from wsbench.run import devices, provenance
from wsbench.run.devices import TrainerOptionError, require_trainer


@pytest.mark.parametrize(
    ("there", "effective", "micro", "taken"), [(8, 4, 1, 4), (8, 8, 1, 8), (3, 4, 1, 2), (5, 6, 2, 3), (7, 1, 1, 1)]
)
def test_an_effective_batch_is_dealt_to_as_many_as_it_divides_among(
    there: int, effective: int, micro: int, taken: int
) -> None:
    assert devices.dividing(there, effective, micro) == taken


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trainer.precision", "transformer-engine"), "--trainer: Requirement 'transformer_engine"),
        (("--trainer.strategy", "fsdp", "--trainer.accelerator", "cpu"), "The strategy `fsdp` requires a GPU"),
        (("--trainer.strategy", "deepspeed", "--trainer.accelerator", "cpu"), "--trainer: .*[Dd]eep[Ss]peed"),
        (("--trainer.devices", "0"), "--trainer: `Trainer.devices='0'.` value is not a valid"),
    ],
)  # fmt: skip
def test_an_option_that_lightning_refuses_is_one_line(
    options: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--task", "imagenet", "--recipe", "mini", "--norm", "gn", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("wsbench: error: ")
    assert re.search(said, line)
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_the_drivers_version_is_read(tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    with mock.patch.object(provenance, "_DRIVER", file):
        assert provenance.driver_version() == "550.54.15"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n")
    with mock.patch.object(provenance, "_DRIVER", file):
        assert provenance.driver_version() == "570.86.10"
    with mock.patch.object(provenance, "_DRIVER", tmp_path / "none"):
        assert provenance.driver_version() == ""


def test_several_devices_are_counted() -> None:
    assert provenance.hardware(torch.device("cpu"), 2).startswith("2 x ")


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_that_keep_their_results_are_refused(strategy: str) -> None:
    with pytest.raises(TrainerOptionError, match=f"--trainer.strategy {strategy}: its processes keep"):
        require_trainer({"strategy": strategy, "devices": 2, "accelerator": "cpu"})


def test_a_profiler_that_is_none() -> None:
    with pytest.raises(TrainerOptionError, match=r"--trainer.profiler bogus: choose from simple, advanced, pytorch"):
        require_trainer({"profiler": "bogus"})
