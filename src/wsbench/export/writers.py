"""Write a folded network in one format, look at the graph that was written, run it.

A writer returns the names of nodes whose weight is computed in the graph, which there must not be, and a function that
runs what was written.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsbench.extras import onnx_modules

#: key of the facts in the file
FACTS = "wsbench.json"
#: operations whose second argument is a weight
WEIGHTED = (
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"
)  # fmt: skip
Run = Callable[[Any], list[Tensor]]


def _flat(output: Any) -> list[Tensor]:
    """Tensors of a network's output: itself, or those of a detector's only image."""
    if isinstance(output, Tensor):
        return [output]
    return list(output[0].values()) if isinstance(output[0], Mapping) else list(output)


def run_network(network: nn.Module) -> Run:
    """The network itself, as the writers' ``run``."""

    def run(x: Any) -> list[Tensor]:
        with torch.no_grad():
            return _flat(network(x))

    return run


def write_torchscript(
    network: nn.Module, x: Any, path: Path, facts: Mapping[str, Any], *_: Any
) -> tuple[list[str], Run]:
    """A trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        with torch.no_grad():
            traced: Any = torch.jit.trace(network, x, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path), _extra_files={FACTS: json.dumps(facts)})
        loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    computed = []
    for node in loaded.inlined_graph.nodes():
        if node.kind() in ("aten::_convolution", *(f"aten::{name}" for name in WEIGHTED)):
            weight = list(node.inputs())[1].node().kind()
            if weight not in ("prim::GetAttr", "prim::Constant"):
                computed.append(f"{node.scopeName()} ({weight})")
    return computed, run_network(loaded)


def _dynamic(sizes: Mapping[int, str]) -> tuple[dict[int, Any]]:
    """Dimensions that are free: the batch, and others by their number."""
    return ({0: torch.export.Dim("batch"), **dict.fromkeys(sizes, torch.export.Dim.DYNAMIC)},)


def write_pt2(
    network: nn.Module, x: Any, path: Path, facts: Mapping[str, Any], names: Sequence[str], sizes: Mapping[int, str]
) -> tuple[list[str], Run]:
    """torch.export's program, any number of samples, and of any size in the dimensions ``sizes``."""
    with torch.no_grad():
        program = torch.export.export(network, (x,), dynamic_shapes=_dynamic(sizes))
    torch.export.save(program, path, extra_files={FACTS: json.dumps(facts)})
    loaded = torch.export.load(path)
    stored = {spec.arg.name for spec in loaded.graph_signature.input_specs if spec.target is not None}
    computed = [
        node.name
        for node in loaded.graph.nodes
        if str(node.target).split(".")[:2] in [["aten", name] for name in ("convolution", *WEIGHTED)]
        and node.args[1].name not in stored
    ]
    return computed, run_network(loaded.module())


def write_onnx(
    network: nn.Module, x: Any, path: Path, facts: Mapping[str, Any], names: Sequence[str], sizes: Mapping[int, str]
) -> tuple[list[str], Run]:
    """ONNX, any number of samples, any size in the dimensions ``sizes``; a detector's is for one image of any."""
    onnx, runtime = onnx_modules()
    detector = not isinstance(x, Tensor)
    how: dict[str, Any] = {"dynamo": True, "verbose": False, "dynamic_shapes": _dynamic(sizes)}
    if detector:  # its number of boxes depends on the image, which torch.export does not trace
        how = {"dynamo": False, "opset_version": 17, "dynamic_axes": {"input": {1: "height", 2: "width"}}}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), str(path), input_names=["input"], output_names=list(names),
                          external_data=False, **how)  # fmt: skip
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {FACTS: json.dumps(facts)})
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))
    constant = {initializer.name for initializer in model.graph.initializer}
    constant |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:  # a layout change of a constant is one
        if node.op_type in ("Identity", "Transpose") and node.input[0] in constant:
            constant.add(node.output[0])
    computed = [
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.input[1] not in constant
    ]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(x: Any) -> list[Tensor]:
        (tensor,) = x if detector else (x,)
        return [torch.from_numpy(out) for out in session.run(None, {"input": tensor.numpy()})]

    return computed, run


WRITERS: dict[str, Callable[..., tuple[list[str], Run]]] = {
    "onnx": write_onnx,
    "torchscript": write_torchscript,
    "pt2": write_pt2,
}
SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}
