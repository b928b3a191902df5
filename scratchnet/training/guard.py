"""Where numbers stopped being numbers: which layer first made infinity or NaN out of finite numbers.

From there they spread, forward to the loss and backward to every gradient, so that a loss of `nan` alone says nothing. A
step that went wrong is repeated here layer by layer, in order, each layer's result looked at before the next one is called.
"""

import math

from scratchnet import kernels
from scratchnet.array import get_array_module, is_bfloat16
from scratchnet.sequential import Residual, Sequential, add


class _Found(Exception):
    """The search is over; the message says where."""


def bad_parameter(named_parameters) -> str | None:
    """The last parameter, in the order of the layers, that is not finite or has such a gradient, by name; None without one.

    Of all gradients backward computes this one first; a bad weight need not show in any (ReLU6 takes infinity for 6). Sums
    are looked at first: they are finite where every number is, unless they overflow.
    """
    parameters = list(named_parameters)
    if math.isfinite(float(sum(p.grad.sum() + p.data.sum() for _, p in parameters))):  # one wait on a GPU
        return None
    for name, parameter in reversed(parameters):
        for what, array in (("the gradient of ", parameter.grad), ("", parameter.data)):
            if not _is_finite(array):
                return what + name
    return None


def first_bad_layer(model, criterion, x, labels) -> str | None:
    """Repeat a step, without its update, and say what first was not finite; None where all of it is.

    The network's gradients and running statistics change, as in any step.
    """
    try:
        logits = _forward("", model, x)
        _require(criterion(logits, labels), "the loss")
        model.zero_grad()
        _backward("", model, criterion.backward())
    except _Found as found:
        return str(found)
    return None


def _forward(name, layer, x):
    if not isinstance(layer, Sequential):
        return _require(layer.forward(x), f"the output of {_titled(name, layer)}")
    y = x
    for key, child in layer.named_children():
        y = _forward(f"{name}.{key}" if name else key, child, y)
    return (
        _require(kernels.run(add, x, y), f"the output of {_titled(name, layer)}") if isinstance(layer, Residual) else y
    )


def _backward(name, layer, dy):
    if not isinstance(layer, Sequential):
        dx = layer.backward(dy)
        for key, parameter in layer.named_parameters():
            _require(parameter.grad, f"the gradient of {name}.{key} ({layer.name})")
        return _require(dx, f"the gradient that comes back through {_titled(name, layer)}")
    dx = dy
    for key, child in reversed(layer.named_children()):
        dx = _backward(f"{name}.{key}" if name else key, child, dx)
    if isinstance(layer, Residual):
        return _require(kernels.run(add, dx, dy), f"the gradient that comes back through {_titled(name, layer)}")
    return dx


def _titled(name, layer):
    return f"{name} ({layer.name})" if name else layer.name


def _require(array, what):
    if not _is_finite(array):
        raise _Found(what)
    return array


def _is_finite(array):
    numbers = array.astype("float32") if is_bfloat16(array) else array
    return bool(get_array_module(array).isfinite(numbers).all())
