"""The manifests for several nodes: what they start is a command that this package has; torchrun's is run."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY, write_voc
from wsbench.cli.resolver import Resolver
from wsbench.extras import OPEN3D_LIBRARIES
from wsbench.records import read_record

DEPLOY = Path(__file__).parents[1] / "deploy"


def fit_arguments(line: list[str]) -> list[str]:
    return line[line.index("fit") + 1 :]


def test_kubernetes() -> None:
    """As many processes as devices on as many nodes as replicas, and a command that resolves."""
    job = yaml.safe_load((DEPLOY / "kubernetes-job.yaml").read_text())
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    line = fit_arguments([*container["command"], *container["args"]])
    options = dict(zip(line[::2], line[1::2], strict=True))
    assert options["--trainer.num_nodes"] == str(worker["replicas"])
    assert options["--trainer.devices"] == job["spec"]["nprocPerNode"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(job["spec"]["nprocPerNode"])
    assert options.pop("--ckpt_path") == "auto"
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in worker["template"]["spec"]["volumes"]}
    resolved = Resolver()([*(part for pair in options.items() for part in pair), "--recipe", "paper"])
    assert resolved.task == "imagenet"
    assert resolved.problem is not None
    assert "imagenet" in resolved.problem.lower()  # it lacks nothing but the data


def test_slurm() -> None:
    """Tasks of a node are its devices, and the batch shell alone is told of the end."""
    text = (DEPLOY / "slurm.sbatch").read_text()
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert flags["ntasks-per-node"] == flags["gpus-per-node"]
    assert flags["signal"].startswith("B:USR1")
    assert "requeue" in flags
    assert flags["open-mode"] == "append"
    assert "--ckpt_path auto" in text
    for path in (DEPLOY / "slurm.sbatch", DEPLOY / "torchrun.sh"):
        subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.ddp
def test_torchrun_on_two_nodes(tmp_path: Path) -> None:
    """Two agents, as on two hosts, train one run; started again they find it finished."""
    data = write_voc(tmp_path / "data")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29631", "NODES": "2", "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(DEPLOY / "torchrun.sh"), *TINY, "--data.root", str(data)]

    def both() -> list[str]:
        nodes = [
            subprocess.Popen(
                command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={**os.environ, **common, "PATH": path, "NODE_RANK": str(rank)},
            )
            for rank in range(2)
        ]  # fmt: skip
        said = [node.communicate(timeout=200)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
        return said

    both()
    (record,) = (read_record(p) for p in tmp_path.glob("runs/voc/*/result.json"))
    assert (record.batch.devices, record.batch.accumulate, record.steps) == (2, 1, 4)
    assert record.metrics["miou"].n_eval == 5
    assert "this run is finished" in both()[0]


def test_the_dockerfile_has_what_it_says() -> None:
    """There is no builder here: stages, extras and system libraries are compared with what they name."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = text.replace("\\\n", " ").splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM ")]
    names = [words[3] for words in stages]
    assert names == ["base", "cuda", "cpu"]
    assert all(words[1] in names or ":" in words[1] for words in stages)
    known = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(extras.split(",")) <= set(known)
    (installed,) = (line for line in lines if "apt-get install" in line)
    assert set(OPEN3D_LIBRARIES.values()) <= set(installed.split())
    instructions = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert instructions <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


def test_the_page_names_every_manifest() -> None:
    page = (DEPLOY.parent / "docs" / "clusters.md").read_text()
    for path in DEPLOY.iterdir():
        assert path.name in page
    for line in re.findall(r"^    (python -m wsbench .*)$", page, re.MULTILINE):
        assert shlex.split(line, comments=True)[:3] == ["python", "-m", "wsbench"]
