"""An ONNX file as a network that can be trained on: each node as the layer of the same meaning, or a refusal that names it.

Constants (weights, and the shapes and bounds that some nodes take as inputs) are looked up, not computed. What a node may
say and no layer here does (padding on one side only, say) is refused: nothing is approximated.
"""

from pathlib import Path
from typing import Any

import numpy as np

import scratchnet as sn
from scratchnet.layers import norm
from scratchnet.onnx.export import import_onnx
from scratchnet.onnx.graph import Graph, Node

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


class BatchNorm(norm.BatchNorm):
    """`BatchNorm1d` or `BatchNorm2d`: a node does not say how many axes x has."""

    shapes = ((), ("L",), ("H", "W"))


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


def _filled(layer, **arrays):
    """The layer with these arrays in its parameters and buffers."""
    for name, array in arrays.items():
        if array is not None:
            held = getattr(layer, name)
            (held.data if isinstance(held, sn.Parameter) else held)[...] = array
    return layer


def _conv(node):
    weight, bias = node.constant(1), node.constant(2, needed=False)
    groups = node.get("group", 1)
    stride, padding, dilation = node.window(weight.shape[2:])
    channels = weight.shape[1] * groups, len(weight)
    options = {"groups": groups, "bias": bias is not None, "dtype": weight.dtype}
    return _filled(
        sn.Conv2d(*channels, weight.shape[2:], stride, padding, dilation, **options), weight=weight, bias=bias
    )


def _conv_transpose(node):
    weight, bias = node.constant(1), node.constant(2, needed=False)
    groups = node.get("group", 1)
    stride, padding, dilation = node.window(weight.shape[2:])
    if node.get("output_shape", None):
        raise node.refuse("output_shape is not known: give pads and output_padding")
    extra = tuple(node.get("output_padding", [0, 0]))
    channels = len(weight), weight.shape[1] * groups
    options = {"groups": groups, "bias": bias is not None, "dilation": dilation, "dtype": weight.dtype}
    layer = sn.ConvTranspose2d(*channels, weight.shape[2:], stride, padding, extra, **options)
    return _filled(layer, weight=weight, bias=bias)


def _gemm(node):
    node.only(alpha=1.0, beta=1.0, transA=0)
    weight, bias = node.constant(1), node.constant(2, needed=False)
    weight = weight if node.get("transB", 0) else weight.T
    if weight.ndim != 2:
        raise node.refuse(f"a weight of {weight.ndim} axes, known are 2")
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),))
    layer = sn.Linear(weight.shape[1], len(weight), bias is not None, dtype=weight.dtype)
    return _filled(layer, weight=weight, bias=bias)


def _batch_norm(node):
    node.only(training_mode=0)
    weight, bias, mean, var = (node.constant(k) for k in range(1, 5))
    options = {"eps": node.get("epsilon", 1e-5), "momentum": 1 - node.get("momentum", 0.9), "dtype": weight.dtype}
    layer = BatchNorm(len(weight), **options)
    return _filled(layer, weight=weight, bias=bias, running_mean=mean, running_var=var)


def _group_norm(node):
    weight, bias = node.constant(1), node.constant(2)
    options = {"eps": node.get("epsilon", 1e-5), "dtype": weight.dtype}
    return _filled(sn.GroupNorm(node.get("num_groups", 1), len(weight), **options), weight=weight, bias=bias)


def _layer_norm(node):
    weight, bias = node.constant(1), node.constant(2, needed=False)
    axis = node.get("axis", -1)
    if axis >= 0 or -axis != weight.ndim:
        raise node.refuse(f"axis = {axis} with a scale of {weight.ndim} axes, known is -{weight.ndim}")
    options = {"eps": node.get("epsilon", 1e-5), "bias": bias is not None, "dtype": weight.dtype}
    return _filled(sn.LayerNorm(weight.shape, **options), weight=weight, bias=bias)


def _clip(node):
    low, high = ("min" in node.attributes and node.get("min", 0)), ("max" in node.attributes and node.get("max", 0))
    bounds = [node.constant(k, needed=False) for k in (1, 2)]
    low, high = (given if given is not False else bound for given, bound in zip((low, high), bounds, strict=True))
    if low is not None and low == 0 and high is None:
        return sn.ReLU()
    if low is not None and low == 0 and high == 6:
        return sn.ReLU6()
    raise node.refuse(f"bounds {low} and {high}, known are 0 and 6, or 0 and none")


def _hard_sigmoid(node):
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-6 or beta != 0.5:
        raise node.refuse(f"alpha = {alpha:.6g} and beta = {beta:g}, known are 1/6 and 1/2")
    return sn.Hardsigmoid()


def _gelu(node):
    node.only(approximate="none")
    return sn.GELU()


def _softmax(node):
    return sn.Softmax(node.get("axis", -1))


def _max_pool(node):
    node.only(storage_order=0)
    size = tuple(node.attributes["kernel_shape"])
    stride, padding, dilation = node.window(size)
    return sn.MaxPool2d(size, stride, padding, dilation, ceil_mode=bool(node.get("ceil_mode", 0)))


def _avg_pool(node):
    size = tuple(node.attributes["kernel_shape"])
    stride, padding, dilation = node.window(size)
    if dilation != (1, 1):
        raise node.refuse(f"dilations = {dilation}, known is 1")
    options = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    return sn.AvgPool2d(size, stride, padding, *options)


def _reduce_mean(node):
    axes = node.get("axes", None)
    axes = node.constant(1) if axes is None else axes
    if sorted(int(axis) % 4 for axis in np.ravel(axes)) != [2, 3]:
        raise node.refuse(f"axes {np.ravel(axes).tolist()}, known are 2 and 3")
    return [sn.GlobalAvgPool2d()] + [sn.Flatten()] * (not node.get("keepdims", 1))


def _flatten(node):
    node.only(axis=1)
    return sn.Flatten()


def _reshape(node):
    shape = [int(size) for size in node.constant(1)]
    if len(shape) == 2 and (shape[1] == -1 or shape[0] in (0, -1)):
        return sn.Flatten()
    raise node.refuse(f"to {shape}, known is (N, -1)")


def _resize(node):
    way, mode = node.get("coordinate_transformation_mode", "half_pixel"), node.get("mode", "nearest")
    scales, sizes = (node.constant(k, needed=False) if k < len(node.node.input) else None for k in (2, 3))
    given: Any = scales if scales is not None and scales.size else sizes
    axes = list(node.get("axes", range(len(given))))
    if [a % 4 for a in axes] not in ([2, 3], [0, 1, 2, 3]):
        raise node.refuse(f"along the axes {axes}, known are 2 and 3")
    if len(axes) == 4 and not (scales is not None and scales.size and (given[:2] == 1).all()):
        raise node.refuse("it gives sizes for all axes, known are scales of 1 for the first two, or axes = [2, 3]")
    given = given[-2:]
    node.only(antialias=0, keep_aspect_ratio_policy="stretch", exclude_outside=0)
    if mode == "nearest" and (way, node.get("nearest_mode", "round_prefer_floor")) == ("asymmetric", "floor"):
        options: dict[str, Any] = {"mode": "nearest"}
    elif mode == "linear" and way in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        options = {"mode": "bilinear", "align_corners": way == "align_corners"}
    else:
        raise node.refuse(f"mode {mode}, {way}, {node.get('nearest_mode', 'round_prefer_floor')} is not known")
    if given.dtype.kind == "f":
        if options.get("align_corners") and (given % 1).any():
            raise node.refuse(f"align_corners with scales {given.tolist()}: known are sizes, and scales that are whole")
        return sn.Upsample(scale_factor=tuple(float(v) for v in given), **options)
    return sn.Upsample(size=tuple(int(v) for v in given), **options)


def _join(container, **attributes):
    def read(node):
        node.only(**attributes)
        if node.values() != len(node.node.input):
            raise node.refuse("one of its inputs is a constant, known are values that the network computes")
        return (
            container({str(k): sn.Sequential() for k in range(node.values())}) if node.values() > 1 else sn.Identity()
        )

    return read


def _is(layer):
    return lambda node: layer()


READERS: dict[str, Any] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "Relu": _is(sn.ReLU),
    "Clip": _clip,
    "LeakyRelu": lambda node: sn.LeakyReLU(node.get("alpha", 0.01)),
    "Sigmoid": _is(sn.Sigmoid),
    "Tanh": _is(sn.Tanh),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _is(sn.Hardswish),
    "Softmax": _softmax,
    "MaxPool": _max_pool,
    "AveragePool": _avg_pool,
    "GlobalAveragePool": _is(sn.GlobalAvgPool2d),
    "ReduceMean": _reduce_mean,
    "Resize": _resize,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Dropout": _is(sn.Identity),
    "Identity": _is(sn.Identity),
    "Add": _join(sn.Add),
    "Sum": _join(sn.Add),
    "Mul": _join(sn.Multiply),
    "Concat": _join(sn.Concat, axis=1),
}
