"""Which layer each ONNX operator is, with which options: a function an operator, and the table that names them."""

from typing import Any

import numpy as np

import scratchnet as sn
from scratchnet.layers import norm


class BatchNorm(norm.BatchNorm):
    """`BatchNorm1d` or `BatchNorm2d`: a node does not say how many axes x has."""

    shapes = ((), ("L",), ("H", "W"))


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
