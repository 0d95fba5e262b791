"""A stranger's configuration is data: what describes the run is taken, and nothing that runs or writes."""

from pathlib import Path
from typing import Any

import pytest

from wsbench.configuration.foreign import LARGEST, ConfigurationError, read_yaml, taken_from_run

CONFIG: dict[str, Any] = {
    "task": "voc", "recipe": "mini", "norm": "gn+ws", "seed_everything": 3, "runs": "/elsewhere",
    "output": "/elsewhere", "import": ["evil"], "overwrite": True, "checkpoint_every": "1", "matmul_precision": "high",
    "data": {"root": "x", "crop": 33, "scale": [0.9, 1.1], "pictures": "/home", "num_workers": 99, "recursive": True},
    "model": {"lr": 0.1, "aspp_rates": [1, 2, 3]},
    "trainer": {"max_steps": 5, "precision": "bf16-mixed", "callbacks": [{"class_path": "evil.Evil"}], "logger": True,
                "plugins": "evil.Evil", "default_root_dir": "/elsewhere", "strategy": "evil.Evil", "devices": 8},
}  # fmt: skip


def test_what_is_taken() -> None:
    path = Path("config.yaml")
    common = {
        "task": "voc", "recipe": "mini", "norm": "gn+ws", "seed_everything": 3, "matmul_precision": "high",
        "data": {"root": "x", "crop": 33, "scale": [0.9, 1.1]}, "model": {"lr": 0.1, "aspp_rates": [1, 2, 3]},
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="--import evil, a module that would be run"):
        taken_from_run(CONFIG, path, training=False)
    config = {name: value for name, value in CONFIG.items() if name != "import"}
    assert taken_from_run(config, path, training=False) == common | {"trainer": {"precision": "bf16-mixed"}}
    assert taken_from_run(config, path, training=True)["trainer"] == {"max_steps": 5, "precision": "bf16-mixed"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": {"network": {"class_path": "evil.Evil"}}}, "model.network"),
        ({"data": {"root": [{"class_path": "evil.Evil"}]}}, "data.root"),
        ({"data": {"class_path": "evil.Evil", "init_args": {}}}, "data.init_args"),
        ({"model": {"x": [[[1]]]}}, "model.x"),
        ({"model": {"x": [0] * 10_001}}, "model.x"),
        ({"model": {"a.b": 1}}, "model.a.b"),
        ({"trainer": {"precision": {"class_path": "evil.Evil"}}}, "trainer.precision"),
        ({"norm": {"class_path": "evil.Evil"}}, "norm"),
        ({"data": "evil"}, "data"),
    ],
)
def test_what_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"'{field}'"):
        taken_from_run(CONFIG | {"import": []} | change, Path("config.yaml"), training=True)


@pytest.mark.parametrize(
    ("task", "network", "harmless"),
    [
        ("voc", "deeplabv3_resnet_mini", True), ("voc", "deeplabv3_timm:resnet18", True),
        ("voc", "mmseg:deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512", True),
        ("imagenet", "timm:resnet18", True), ("imagenet", "torchvision:convnext_tiny", True),
        ("coco", "mask_rcnn_timm:resnet18", True),
        ("imagenet", "my_module:build", False), ("imagenet", "os:mkdir", False), ("voc", "mmseg:/x/evil", False),
        ("voc", "mmseg:../../x/evil", False), ("voc", "mmseg:x/../../evil", False), ("voc", "mmseg:x/..", False),
        ("imagenet", "timm:hf-hub:evil/model", False), ("imagenet", "timm:local-dir:/x", False),
        ("imagenet", "tsm_timm:build", False), ("imagenet", "mmseg:deeplabv3/x", False), (None, "timm:resnet18", False),
    ],
)  # fmt: skip
def test_networks(task: str | None, network: str, harmless: bool) -> None:
    """Of another task the same text is a module and a function."""
    content = {"model": {"network": network}}
    if harmless:
        assert taken_from_run(content, Path("config.yaml"), False, task) == content
        return None
    with pytest.raises(ConfigurationError, match="code that would be run; if you trust it, do so"):
        taken_from_run(content, Path("config.yaml"), False, task, remedy="do so")
    assert taken_from_run(content, Path("config.yaml"), False, task, own_network=True) == content
    return None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- 1\n", "holds no settings"),
        (b"a: [1", "is not YAML"),
        (b"a: !!python/object/apply:os.mkdir [x]\n", "is not YAML: could not determine a constructor.* in line 1"),
        (b"\xff\xfe", "is not YAML"),
        (b"".join(b" " * i + b"a:\n" for i in range(1300)), "nested too deeply"),
        (b"a: 1\n" * (LARGEST // 5 + 1), "more than 1 MiB"),
    ],
)
def test_files_that_are_none(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigurationError, match=message):
        read_yaml(path, "the run's configuration")
    with pytest.raises(ConfigurationError, match="No such file"):
        read_yaml(tmp_path / "none.yaml", "the run's configuration")
