"""What each layer is called in an ONNX file, and with which attributes: a function a layer, and the tables that name them.

Source of names and attributes: ONNX operators, opset 21.
"""

from typing import Any

import numpy as np

from scratchnet.quantized.scheme import bias_numbers, row_numbers, row_steps


def _data(parameter):
    return None if parameter is None else parameter.data


# A function a layer: (layer, name of x, Writer) -> name of y ------------------------------------------------------------


def _as(kind, **attributes):
    """For layers that are one node without parameters; an attribute may be a function of the layer."""

    def write(layer, x, made):
        return made.node(kind, x, **{k: v(layer) if callable(v) else v for k, v in attributes.items()})

    return write


def _windows(layer):
    options = {"strides": layer.stride, "pads": layer.padding * 2}
    return options | ({"dilations": layer.dilation} if hasattr(layer, "dilation") else {})


def _conv(layer, x, made, given=None):
    options = _windows(layer) | {"group": layer.groups, "kernel_shape": layer.kernel_size}
    return made.node("Conv", x, *(given or layer.multiplied()), **options)


def _conv_transpose(layer, x, made):
    options = _windows(layer) | {"group": layer.groups, "kernel_shape": layer.kernel_size}
    options["output_padding"] = layer.output_padding
    return made.node("ConvTranspose", x, layer.weight.data, _data(layer.bias), **options)


def _linear(layer, x, made, given=None):
    return made.node("Gemm", x, *(given or layer.multiplied()), transB=1)


def _batch_norm(layer, x, made):
    given = layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var
    return made.node("BatchNormalization", x, *given, epsilon=layer.eps, momentum=1 - layer.momentum)


def _affine(layer, made):
    if layer.weight is not None:
        return layer.weight.data, _data(layer.bias)
    sizes = layer.normalized_shape if hasattr(layer, "normalized_shape") else (layer.num_channels,)
    return np.ones(sizes, made.dtype), np.zeros(sizes, made.dtype)


def _group_norm(layer, x, made):
    return made.node("GroupNormalization", x, *_affine(layer, made), epsilon=layer.eps, num_groups=layer.num_groups)


def _layer_norm(layer, x, made):
    axis = -len(layer.normalized_shape)
    return made.node("LayerNormalization", x, *_affine(layer, made), axis=axis, epsilon=layer.eps)


def _relu6(layer, x, made):
    return made.node("Clip", x, np.array(0, made.dtype), np.array(6, made.dtype))


def _silu(layer, x, made):
    return made.node("Mul", x, made.node("Sigmoid", x))


def _max_pool(layer, x, made):
    options = _windows(layer) | {"kernel_shape": layer.kernel_size, "ceil_mode": int(layer.ceil_mode)}
    return made.node("MaxPool", x, **options)


def _avg_pool(layer, x, made):
    options = _windows(layer) | {"kernel_shape": layer.kernel_size, "ceil_mode": int(layer.ceil_mode)}
    return made.node("AveragePool", x, **options, count_include_pad=int(layer.count_include_pad))


def _upsample(layer, x, made):
    options: dict = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if layer.mode != "nearest":
        way = "align_corners" if layer.align_corners else "half_pixel"
        options = {"mode": "linear", "coordinate_transformation_mode": way}
    scales = None if layer.scale_factor is None else np.array(layer.scale_factor, np.float32)
    sizes = None if layer.size is None else np.array(layer.size, np.int64)
    return made.node("Resize", x, None, scales, sizes, axes=[2, 3], **options)


def _nothing(layer, x, made):
    return x


def _quantize(layer, x, made):
    grid = np.array(layer.step, made.dtype), np.array(layer.grid.zero, np.uint8)
    return made.node("DequantizeLinear", made.node("QuantizeLinear", x, *grid), *grid)


def _quantized(write):
    """A product of rounded weights: the layer's own node, with weight and bias as whole numbers and their steps."""

    def written(layer, x, made):
        before, behind = (grid.step if grid else 1.0 for grid in layer.grids)
        steps = row_steps(layer.weight.data, before, behind)
        weight = row_numbers(layer.weight.data, steps).astype(np.int8)
        options, bias = {"axis": 0}, None
        if layer.bias:
            numbers = bias_numbers(layer.bias.data, steps, before).astype(np.int32)
            bias = made.node("DequantizeLinear", numbers, (steps * before).astype(made.dtype), **options)
        weight = made.node("DequantizeLinear", weight, steps.astype(made.dtype), **options)
        return write(layer, x, made, (weight, bias))

    return written


JOINS: dict[str, tuple[str, dict]] = {
    "sum": ("Sum", {}),
    "concat": ("Concat", {"axis": 1}),
    "multiply": ("Mul", {}),
}
WRITERS: dict[str, Any] = {
    "Conv2d": _conv,
    "ConvTranspose2d": _conv_transpose,
    "Linear": _linear,
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "GroupNorm": _group_norm,
    "LayerNorm": _layer_norm,
    "ReLU": _as("Relu"),
    "ReLU6": _relu6,
    "LeakyReLU": _as("LeakyRelu", alpha=lambda layer: layer.negative_slope),
    "Sigmoid": _as("Sigmoid"),
    "Tanh": _as("Tanh"),
    "SiLU": _silu,
    "GELU": _as("Gelu"),
    "Hardsigmoid": _as("HardSigmoid", alpha=1 / 6, beta=0.5),
    "Hardswish": _as("HardSwish"),
    "Softmax": _as("Softmax", axis=lambda layer: layer.dim),
    "MaxPool2d": _max_pool,
    "AvgPool2d": _avg_pool,
    "GlobalAvgPool2d": _as("GlobalAveragePool"),
    "Upsample": _upsample,
    "Flatten": _as("Flatten"),
    "Dropout": _nothing,
    "Identity": _nothing,
    "Quantize": _quantize,
    "QuantizedConv2d": _quantized(_conv),
    "QuantizedLinear": _quantized(_linear),
}
