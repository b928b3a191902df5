"""Where numbers stopped being numbers: which layer first made infinity or NaN out of finite numbers.

From there they spread, forward to the loss and backward to every gradient, so that a loss of `nan` alone says nothing. A
step that went wrong is repeated here layer by layer, in order, each layer's result looked at before the next one is called.
Over several ranks all look at a layer, and stop at the first one whose result is bad on any rank.
"""

import math

from scratchnet.device import get_array_module, is_bfloat16
from scratchnet.parallel import ranks
from scratchnet.plan import plan, wanting_dx


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

    All ranks call it together, each with its own pictures, and are told the same. The network's gradients and running
    statistics change, as in any step.
    """
    planned = plan(model, fuse=False)
    try:
        y = x
        for step in planned.steps:
            y = _require(step.forward(y), f"the output of {_titled(step)}")
        _require(criterion(y, labels), "the loss")
        model.zero_grad()
        dy = criterion.backward()
        for step, wanted in planned.backwards():
            with wanting_dx(wanted):
                dy = step.backward(dy)
            for key, parameter in step.parameters():
                _require(parameter.grad, f"the gradient of {step.names[0]}.{key} ({step.layers[0].name})")
            if dy is not None:
                _require(dy, f"the gradient that comes back through {_titled(step)}")
    except _Found as found:
        return str(found)
    return None


def _titled(step):
    name, layer = step.names[0], step.layers[0].name
    return f"{name} ({layer})" if name else layer


def _require(array, what):
    if ranks.largest(not _is_finite(array)):  # one rank must not stop while the others wait for it in the next layer
        raise _Found(what)
    return array


def _is_finite(array):
    numbers = array.astype("float32") if is_bfloat16(array) else array
    return bool(get_array_module(array).isfinite(numbers).all())
