"""The shell's completion, driven as bash drives it."""

import shutil
import subprocess

import pytest

from wsbench.__main__ import TRAINER
from wsbench.cli.completion import script

ASK = """
{script}
COMP_WORDS=(wsbench {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
COMP_LINE="wsbench {words}"; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=()
 $(complete -p wsbench | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("swe", "sweep"), ("fit --ta", "--task"), ("fit --task vo", "voc"), ("fit --task voc --nor", "--norm"),
        ("fit --trainer.max_s", "--trainer.max_steps"), ("validate --ckpt", "--ckpt_path"),
        ("fit --data.tun", "--data.tuning"), ("sweep --launcher sl", "slurm"), ("export --format on", "onnx"),
        ("leaderboard com", "compare"), ("completion ba", "bash"), ("data vo", "voc"),
    ],
)  # fmt: skip
def test_bash(words: str, expected: str) -> None:
    done = subprocess.run(
        ["bash", "-c", ASK.format(script=script("bash", TRAINER), words=words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout.split(), done.stdout + done.stderr


def test_zsh_names_every_command() -> None:
    text = script("zsh", TRAINER)
    assert "SUPPRESS" not in text
    assert all(f"{name}:" in text for name in ("fit", "sweep", "leaderboard", "completion"))
    assert "--trainer.max_steps" in text
