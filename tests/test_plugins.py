"""Norms of a package installed into a temporary folder, and of a module beside the user: docs/plugin.md, run."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests.grid.small import folders, write_grid
from tests.running import fit, only_run
from wsbench import plugins
from wsbench.__main__ import main
from wsbench.norms import ACTIVATIONS, WEIGHTS, NormSpec, SpecError, registry
from wsbench.records import read_record
from wsbench.run import identity
from wsbench.run.identity import id_of

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "plugin.md").read_text()
MODULE, PROJECT = (re.search(rf"```{kind}\n(.*?)```", DOC, re.DOTALL)[1] for kind in ("python", "toml"))  # type: ignore[index]


def forget() -> None:
    """What was loaded, so that it is loaded again."""
    registry._loaded.clear()
    plugins.broken.clear()
    for known in (ACTIVATIONS._methods, WEIGHTS._methods):
        for name in [n for n, m in known.items() if not m.factory.__module__.startswith("wsbench.")]:
            del known[name]
    for name in ("wsbench_power", "my_norms", "wsbench_broken"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(plugins.VARIABLE, "")
    forget()
    yield
    forget()


def install(folder: Path, version: str = "0.1", module: str = MODULE) -> Path:
    """As ``pip install .`` does, into a folder of its own."""
    source, target = folder / "source", folder / "site"
    source.mkdir(parents=True)
    (source / "wsbench_power.py").write_text(module)
    project = PROJECT.replace('dependencies = ["wsbench"]\n', "").replace('"0.1"', f'"{version}"')
    (source / "pyproject.toml").write_text(project)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*command, str(target), str(source)], check=True)
    return target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("package"))


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch, in_a_folder: None) -> None:
    """For this process and those that it starts."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))


def test_fit_record_leaderboard_and_report(installed: None, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(root, "--norm", "power+ws") == 0
    record = read_record(only_run() / "result.json")
    assert record.norm_sources.keys() == {"power"}
    source = record.norm_sources["power"]
    assert (source["package"], source["version"]) == ("wsbench-power", "0.1")
    assert len(source["sha256"]) == 64
    assert record.id == only_run().name == id_of(record)
    assert record.converted["activation"] > 10
    label = f"power+ws (wsbench-power 0.1 {source['sha256'][:8]})"
    assert any(f",{label}," in path.read_text() for path in Path("runs/leaderboards").glob("voc*.wide.csv"))
    assert main(["leaderboard", "--records", "runs", "--out", "tables"]) == 0
    assert any("power+ws" in path.read_text() for path in Path("tables").glob("voc*.csv"))
    assert main(["report", "--records", "runs", "--out", "page.html"]) == 0
    assert "power+ws" in Path("page.html").read_text()
    capsys.readouterr()
    assert main(["norms", "--json", "--no-cost"]) == 0
    entry = next(e for e in json.loads(capsys.readouterr().out)["activation"] if e["name"] == "power")
    assert (entry["paper"], entry["year"], entry["package"]) == ("You, a preprint", 2026, "wsbench-power 0.1")


def test_tables_of_a_machine_without_the_package(site: Path, installed: None, root: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert fit(root, "--norm", "power") == 0
    sys.path.remove(str(site))
    forget()
    with pytest.raises(SpecError, match="unknown activation normalization 'power'"):
        NormSpec.parse("power")
    assert main(["leaderboard", "--records", "runs", "--out", "tables"]) == 0
    assert any("power" in path.read_text() for path in Path("tables").glob("voc*.csv"))
    assert main(["report", "--records", "runs", "--out", "page.html"]) == 0


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes(installed: None, root: Path) -> None:
    command = [sys.executable, "-m", "wsbench", "fit", "--task", "voc", "--recipe", "mini", "--data.miniature", "false",
               "--data.root", str(root), "--data.crop", "33", "--data.effective_batch", "2", "--trainer.max_steps", "2",
               "--data.steps_per_epoch", "2", "--norm", "power", "--trainer.accelerator", "cpu",
               "--trainer.devices", "2", "--trainer.strategy", "ddp"]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    record = read_record(only_run() / "result.json")
    assert (record.batch.devices, record.norm) == (2, "power")
    assert record.norm_sources["power"]["package"] == "wsbench-power"


@pytest.mark.slow
def test_sweep(installed: None, root: Path) -> None:
    grid = write_grid(Path(), root, {"norm": ["power", "power+ws"]})
    assert main(["sweep", grid]) == 0
    records = [read_record(folder / "result.json") for folder in folders()]
    assert {r.norm for r in records} == {"power", "power+ws"}
    assert all(r.id == folder.name for r, folder in zip(records, folders(), strict=True))


@pytest.mark.slow
def test_a_module_beside_the_user(in_a_folder: None, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_norms.py").write_text(MODULE.replace("power", "mine"))
    grid = write_grid(Path(), root, {"norm": ["mine"], "seed": [0, 1]})
    assert main(["sweep", grid, "--import", "my_norms"]) == 0  # whose cells are other processes
    first, _ = (read_record(folder / "result.json") for folder in folders())
    assert first.norm_sources["mine"].keys() == {"package", "sha256"}
    assert first.norm_sources["mine"]["package"] == "my_norms"
    assert "--import my_norms" in first.provenance.command
    config = yaml.safe_load((folders()[0] / "config.yaml").read_text())
    assert config["import"] == ["my_norms"]
    # a file does not import: whoever runs it says so
    forget()
    plugins.os.environ[plugins.VARIABLE] = ""
    capsys.readouterr()
    again = ["fit", "--config", str(folders()[0] / "config.yaml")]
    assert main(again) == 2
    assert "--import my_norms" in capsys.readouterr().err
    assert "my_norms" not in sys.modules
    assert main([*again, "--import", "my_norms"]) == 0
    assert "this run is finished" in capsys.readouterr().out
    # edited, it is another run
    forget()
    Path("my_norms.py").write_text(MODULE.replace("power", "mine") + "\n# edited\n")
    assert main([*again, "--import", "my_norms", "--trainer.max_steps", "4"]) == 0
    assert len(folders()) == 3


def test_what_sees_all_devices_is_another_run_on_two(in_a_folder: None) -> None:
    """A plug-in says so by its facts, as syncbn does, and a record by its sources."""
    sources = {"mine": {"package": "p", "across_devices": "yes"}}
    config = {"norm": "mine", "trainer": {"devices": 2}}
    assert identity.overrides(config, {"norm": "gn+ws"}, sources) == {"trainer.devices": 2}
    assert identity.overrides(config, {"norm": "gn+ws"}) == {}
    assert identity.overrides({**config, "norm": "syncbn+ws"}, {}) == {"trainer.devices": 2}
    facts = 'NormFacts("all values of one sample, not centred", "You, a preprint", 2026, across_devices=True'
    module = MODULE.replace('NormFacts("all values of one sample, not centred", "You, a preprint", 2026', facts)
    Path("my_norms.py").write_text(module.replace("power", "mine"))
    plugins.request(["--import", "my_norms"])
    assert NormSpec.parse("mine").sources["mine"]["across_devices"] == "yes"


def test_a_module_that_is_asked_for_later(in_a_folder: None) -> None:
    assert "gn" in list(ACTIVATIONS)  # everything has been loaded
    Path("my_norms.py").write_text(MODULE.replace("power", "mine"))
    plugins.request(["--import", "my_norms"])
    assert NormSpec.parse("mine").act == "mine"


def test_every_file_of_a_package_counts(in_a_folder: None) -> None:
    folder = Path("my_norms")
    folder.mkdir()
    (folder / "__init__.py").write_text("from my_norms.helper import FACTOR\n" + MODULE.replace("power", "mine"))
    found = []
    for factor in (1, 2):
        (folder / "helper.py").write_text(f"FACTOR = {factor}\n")
        forget()
        plugins.request(["--import", "my_norms"])
        found.append(NormSpec.parse("mine").sources["mine"]["sha256"])
    assert found[0] != found[1]


def test_another_version_is_another_run(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    for place in (site, install(tmp_path / "other", "0.2")):
        forget()
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(place))
            sources.append(NormSpec.parse("power").sources)
    assert [s["power"]["version"] for s in sources] == ["0.1", "0.2"]
    assert sources[0] != sources[1]
    assert NormSpec.parse("gn+ws").sources == {}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("raise RuntimeError('a defect')", "RuntimeError: a defect"),
        ("PowerNorm = 3", "neither an activation normalization"),
        (MODULE.replace('"power"', '"gn"'), "'gn' is registered already"),
    ],
)
def test_a_broken_package_is_named_where_its_norm_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, module=module)))
    NormSpec.parse("gn+ws")
    with pytest.raises(SpecError, match=f"'power' could not be loaded, of wsbench-power .*{words}"):
        NormSpec.parse("power")
    assert main(["norms", "--no-cost"]) == 0
    said = capsys.readouterr()
    assert words in said.err
    assert "sn" in said.out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--import"], "expected the name of a module"),
        (["--import", "no-module"], "expected the name of a module"),
        (["--import", "not_there"], "--import not_there: the module cannot be imported"),
    ],
)
def test_a_module_that_is_not_there(
    option: list[str], words: str, in_a_folder: None, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(root, "--norm", "mine", *option) == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_documents_norm_computes_what_it_says(installed: None) -> None:
    x = torch.randn(3, 8, 5, 5, dtype=torch.double)
    layer = ACTIVATIONS["power"].build(8).double()
    expected = torch.stack([s / (s.square().sum() / s.numel() + 1e-5).sqrt() for s in x])
    torch.testing.assert_close(layer(x), expected)


def test_a_requested_module_is_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that takes a name of wsbench's own is an error for every norm, whether or not that name is asked for."""
    (tmp_path / "taken_name.py").write_text(
        "from wsbench.norms import GroupNorm, register_activation\nregister_activation('gn')(GroupNorm)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WSBENCH_IMPORT", "")
    assert main(["fit", "--task", "voc", "--norm", "gn", "--import", "taken_name", "--trainer.max_steps", "1"]) == 2
    assert "'gn' is registered already; choose another name" in capsys.readouterr().err
