"""An ONNX file as a network that can be trained on: each node as the layer of the same meaning, or a refusal that names it.

Constants (weights, and the shapes and bounds that some nodes take as inputs) are looked up, not computed. What a node may
say and no layer here does (padding on one side only, say) is refused: nothing is approximated.
"""

from pathlib import Path

import numpy as np

from scratchnet.onnx.export import import_onnx
from scratchnet.onnx.graph import Graph, Node
from scratchnet.onnx.operators import READERS

SYMMETRIC = "its padding differs from side to side"


class Refused(ValueError):
    """A node means something that no layer here does."""


def load(path):
    """Read an ONNX file of one input and one output: a `Graph` in eval mode, with parameters in the file's dtype.

    Raises:
        ImportError: the package onnx is missing.
        ValueError: it is no ONNX file, or has a node that no layer here is; the message names the node.
        OSError: it cannot be read.
    """
    onnx = import_onnx()
    raw = Path(path).read_bytes()
    try:
        model = onnx.load_model_from_string(raw)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise what they like
        raise ValueError(f"{path} is not a whole ONNX file: {str(error).splitlines()[0][:200]}") from None
    try:
        return graph_of(model)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None


def graph_of(model):
    """The `Graph` of a model that `onnx` has loaded."""
    onnx = import_onnx()
    graph = model.graph
    constants = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise Refused(f"expected one input and one output, it has {len(inputs)} and {len(graph.output)}")
    nodes: list[Node] = []
    for k, node in enumerate(graph.node):
        reader = _Node(onnx, node, constants, k)
        if node.op_type == "Constant":
            constants[node.output[0]] = reader.constant_value()
            continue
        kind = READERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if kind is None:
            raise reader.refuse("no layer here does that")
        for layer in _layers(kind(reader), reader):
            before = [name for name in node.input if name and name not in constants]
            source = tuple(before) if not nodes or not reader.made else (nodes[-1].output,)
            reader.made += 1
            nodes.append(Node(reader.layer_name(), layer, source, f"{node.output[0]}.{reader.made}"))
        if len(node.output) > 1 and any(node.output[1:]):
            raise reader.refuse("only its first output is known")
        nodes[-1] = nodes[-1]._replace(output=node.output[0])
    return Graph(nodes, inputs[0], graph.output[0].name).eval()


def _layers(made, reader):
    return made if isinstance(made, list) else [made]


class _Node:
    """A node with its attributes, and what of its inputs is constant."""

    def __init__(self, onnx, node, constants, number):
        self.node, self._constants, self._number, self.made = node, constants, number, 0
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self._numpy = onnx.numpy_helper

    def layer_name(self):
        """The node's name, or its kind and number; no dots, which lead into a layer."""
        own = "".join(c if c.isalnum() else "_" for c in self.node.name).strip("_")
        return f"{own or self.node.op_type.lower()}_{self._number}" + (f"_{self.made}" if self.made > 1 else "")

    def refuse(self, why):
        """The error that says why not."""
        return Refused(f"node {self._number} {self.node.op_type} {self.node.name!r}: {why}".replace(" ''", ""))

    def get(self, name, default):
        """An attribute; text as text."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def only(self, **wanted):
        """Refuse attributes that are there with another value."""
        for name, value in wanted.items():
            if (got := self.get(name, value)) != value:
                raise self.refuse(f"{name} = {got}, known is {value}")

    def constant(self, index, needed=True):
        """The constant at an input, or None."""
        name = self.node.input[index] if index < len(self.node.input) else ""
        if name in self._constants:
            return self._constants[name]
        if name or needed:
            raise self.refuse(f"input {index} is computed by the network, known are constants only")
        return None

    def values(self):
        """How many inputs are no constants."""
        return sum(bool(name) and name not in self._constants for name in self.node.input)

    def constant_value(self):
        """What a Constant node holds."""
        (name, value), *_ = self.attributes.items()
        return self._numpy.to_array(value) if name == "value" else np.asarray(value)

    def window(self, size):
        """Stride, padding and dilation as pairs."""
        self.only(auto_pad="NOTSET") if self.get("auto_pad", "NOTSET") != "VALID" else None
        if len(size) != 2:
            raise self.refuse(f"it slides along {len(size)} axes, known are 2")
        pads = list(self.get("pads", [0, 0, 0, 0]))
        if pads[:2] != pads[2:]:
            raise self.refuse(SYMMETRIC)
        return tuple(self.get("strides", [1, 1])), tuple(pads[:2]), tuple(self.get("dilations", [1, 1]))
