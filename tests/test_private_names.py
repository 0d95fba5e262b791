"""Private names of other packages that wsbench has no public way around: the test fails by name when one goes.

Each is used in one file, which says why; `test_no_others` finds what is not listed here.
"""

import ast
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

ROOT = Path(__file__).parents[1]
#: {name: file that uses it}
NAMES = {
    "lightning.pytorch.cli:LightningCLI._parse_ckpt_path": "src/wsbench/cli/lightning.py",
    "lightning.pytorch.cli:LightningCLI._run_subcommand": "src/wsbench/cli/lightning.py",
    "torch:_C._are_functorch_transforms_active": "src/wsbench/norms/tracing.py",
    "torch:_C._get_tracing_state": "src/wsbench/norms/tracing.py",
    "torch:_C._will_engine_execute_node": "src/wsbench/norms/tracing.py",
    "torch.autograd.forward_ad:_current_level": "src/wsbench/norms/tracing.py",
    "torch:_foreach_mul_": "src/wsbench/tasks/base.py",
}


def _pruned() -> object:
    layer = prune.random_unstructured(nn.Linear(2, 2), "weight", amount=1)
    return next(iter(layer._forward_pre_hooks.values()))


#: of an object: {name: (how one is made, file that uses it)}
OF_OBJECTS = {
    "_cdata": (lambda: torch.zeros(1).untyped_storage(), "src/wsbench/norms/behind.py"),
    "_tensor_name": (_pruned, "src/wsbench/norms/reparametrized.py"),
    "_norm_layer": (lambda: resnet18(), "src/wsbench/models/resnet.py"),
    "_pre_nms_top_n": (lambda: _detector().rpn, "src/wsbench/models/anchors.py"),
    "_post_nms_top_n": (lambda: _detector().rpn, "src/wsbench/models/anchors.py"),
}


def _detector() -> nn.Module:
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)


@pytest.mark.parametrize("name", OF_OBJECTS)
def test_an_object_has_it(name: str) -> None:
    make, file = OF_OBJECTS[name]
    assert hasattr(make(), name)
    assert name in (ROOT / file).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_there(name: str) -> None:
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    assert path.rsplit(".", 1)[-1] in (ROOT / NAMES[name]).read_text()


#: of torch's modules, tensors and layers; documented, or the only way for a layer to look at itself
_ALLOWED = {"_parameters", "_buffers", "_version", "_actions", "_forward_hooks", "_forward_pre_hooks",
            "_backward_hooks", "_ConvNd", "_SubParsersAction", "_exit"}  # fmt: skip


def test_no_others() -> None:
    listed = {part for name in NAMES for part in name.partition(":")[2].split(".")} | {"_C", *OF_OBJECTS} | _ALLOWED
    own: set[str] = set()
    used: dict[str, str] = {}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
            elif isinstance(node, ast.Assign):
                own |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                if isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
                else:
                    used.setdefault(node.attr, path.name)
    assert {name: file for name, file in used.items() if name not in own | listed} == {}
