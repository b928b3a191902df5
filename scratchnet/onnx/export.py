"""A network as an ONNX file, as it is in eval mode: what each layer is called there, and with which attributes.

A chain (Module.chain) is walked as a plan walks it: a layer takes the value that is at hand and makes the next one; at the
marks of branches (layers/join.py) the value is kept, handed out again, and joined.
"""

from pathlib import Path
from typing import Any

import numpy as np

from scratchnet.device import device_of
from scratchnet.layers.join import Mark
from scratchnet.onnx.writers import JOINS, WRITERS
from scratchnet.training.atomic import atomic_file

OPSET, IR_VERSION = 21, 10


def export(model, path, shape):
    """Write a network to an ONNX file: input "x" (N, *shape), output "y", for any N.

    Args:
        model: a network on the CPU; its parameters' dtype is the file's. What `scratchnet.quantized.quantize` made is
            written with QuantizeLinear and DequantizeLinear.
        path: of the file.
        shape: of one picture (C, H, W), or of one row of features (F,).

    Raises:
        ImportError: the package onnx is missing.
        ValueError: a layer has no name in ONNX, or the network cannot take x of this shape; the message names the layer.
        OSError: the file could not be written.
    """
    onnx = import_onnx()
    parameters = list(model.parameters())
    dtype = parameters[0].data.dtype if parameters else np.dtype(np.float32)
    made = Writer(onnx, dtype)
    if any(device_of(parameter.data) != "cpu" for parameter in parameters):
        raise ValueError("export: the network is on a GPU: bring it back with model.to('cpu')")
    y = walk(model, made)
    modes = [(module, module.training, module.saves) for _, module in model.named_modules()]
    try:
        sizes = model.eval()(np.zeros((1, *shape), dtype)).shape[1:]
    finally:
        for module, training, saves in modes:
            module.training, module.saves = training, saves
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    ends = [onnx.helper.make_tensor_value_info(name, kind, ["N", *end]) for name, end in (("x", shape), ("y", sizes))]
    made.nodes.append(onnx.helper.make_node("Identity", [y], ["y"]))
    graph = onnx.helper.make_graph(made.nodes, model.name, ends[:1], ends[1:], made.weights)
    written = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="scratchnet"
    )
    onnx.checker.check_model(written, full_check=True)
    with atomic_file(Path(path)) as file:
        file.write(written.SerializeToString())


def import_onnx():
    """The package, or ImportError in one sentence."""
    try:
        import onnx
    except ImportError:
        raise ImportError("ONNX files need the package onnx: pip install onnx, or the extra `onnx`") from None
    return onnx


def walk(model, made, value="x"):
    """Write the nodes of a network that takes `value`; returns the name of what comes out."""
    kept: list[tuple[str, dict]] = []
    for name, layer in model.chain():
        if isinstance(layer, Mark):
            if layer.place == "open":
                kept.append((value, {}))
                continue
            x, results = kept[-1]
            results[layer.branch] = value
            if layer.place == "turn":
                value = x
                continue
            kept.pop()
            joined = [results.get(branch, x) for branch in range(layer.of)]
            kind, attributes = JOINS[layer.container.joined_by.name]
            value = made.node(kind, *joined, **attributes) if len(joined) > 1 else joined[0]
        else:
            writer = _writer_of(name, layer)
            value = writer(layer, value, made)
    return value


class Writer:
    """The nodes and constants of a file in the making; dtype: of its numbers."""

    def __init__(self, onnx, dtype):
        self._onnx, self.dtype = onnx, dtype
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def node(self, kind, *inputs, **attributes):
        """Add a node; returns its output's name. An input is a value's name, an array, or None for one left out."""
        names = [self.constant(v) if isinstance(v, np.ndarray) else v or "" for v in inputs]
        while names and not names[-1]:
            names.pop()
        out = f"v{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, names, [out], **attributes))
        return out

    def constant(self, array):
        """Add an array; returns its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(self._onnx.numpy_helper.from_array(array.copy(order="C"), name))
        return name


def _writer_of(name, layer):
    ours = type(layer).__module__.startswith("scratchnet.")
    writer = WRITERS.get(type(layer).__name__) if ours else None
    if writer is None:
        raise ValueError(f"{name} {layer.name}: has no name in ONNX".lstrip())
    return writer
