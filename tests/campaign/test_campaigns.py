"""Short forms of the campaigns; `scripts/campaign` runs the long ones. docs/reliability.md has their figures."""

from pathlib import Path

import pytest

from tests.campaign import bad, kill, security, sweep

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> bad.World:
    return bad.build(tmp_path_factory.mktemp("world"))


def test_wrong_inputs(world: bad.World) -> None:
    found = bad.campaign(world, seed=17, seconds=float("inf"), most=300)  # the same ones however fast the machine is
    wrong = {" ".join(o.line): (o.faults, o.traceback[-500:] or o.said[-500:]) for o in found if o.faults}
    assert not wrong
    assert len(found) == 300


def test_attacks(world: bad.World) -> None:
    found = security.campaign(world, seed=5, seconds=60)
    assert not [f"{f.name}: {f.line}" for f in found if f.worked]
    assert not [f"{f.name}: {f.line}: {f.traceback[-500:]}" for f in found if f.traceback]
    assert len({f.name for f in found}) >= 5


def test_an_attack_that_works_is_noticed(world: bad.World) -> None:
    """What is refused beside a checkpoint runs where the user names the file: the canaries can sing."""
    attack = next(a for a in security.attacks(world) if a.name == "config.yaml: a callback")
    config = attack.folder / "downloaded" / "config.yaml"
    line = ["validate", "--config", str(config), *attack.lines[0][1:], "--import", f"evil_{attack.folder.name}"]
    outcome = bad.run(bad.World(attack.folder, world.roots, world.run), line)
    assert str(attack.canary) in outcome.left, outcome.said + outcome.traceback


def test_killed_runs(tmp_path: Path) -> None:
    said, found = kill.campaign(tmp_path, seed=3, seconds=40)
    assert not found, said


def test_killed_sweeps(tmp_path: Path) -> None:
    said, found = sweep.campaign(tmp_path, seed=4, seconds=1)
    assert not found, said
