"""Clipping gradients, between backward and the optimizer's step: a step in a steep place is no longer than elsewhere.

By norm (Pascanu et al. 2013, Algorithm 1; names and the small addend are PyTorch's): all gradients together are one long
vector g, whose direction stays
    ‖g‖ = (Σ |g_i|ᵖ)^(1/p), over all numbers of all gradients; for p = ∞ the largest |g_i|   (CLIP.1)
    g   = g · min(1, max_norm / (‖g‖ + 10⁻⁶))                                                (CLIP.2)
By value, every number for itself
    g_i = min(max(g_i, -c), c)                                                               (CLIP.3)

Over several ranks gradients are the same on each of them once `ranks.sum_gradients` has been called: clip behind it. Frozen
parameters (`requires_grad = False`) count for nothing and are left alone.
"""

import math
from collections.abc import Iterable

import numpy as np

from scratchnet import flat
from scratchnet.device import get_array_module
from scratchnet.parameter import Parameter

SMALL = 1e-6  # of (CLIP.2): PyTorch's


def clip_grad_norm_(
    parameters: Parameter | Iterable[Parameter], max_norm: float, norm_type: float = 2.0, error_if_nonfinite=False
):
    """Scale all gradients by one factor, in place, so that their norm is at most `max_norm`.

    On a GPU nothing waits: the factor is computed there. A norm that is not finite makes of the gradients what it makes in
    PyTorch: infinity takes every finite one to 0, NaN makes all of them NaN.

    Args:
        parameters: Parameters, say `model.parameters()` or `optimizer.params.values()`; one alone will do.
        max_norm: above 0.
        norm_type: p, above 0; math.inf takes the largest number.
        error_if_nonfinite: whether such a norm raises; this has to wait for it.

    Returns:
        The norm before clipping, an array of shape () on the gradients' device.

    Raises:
        ValueError: max_norm or norm_type is out of its range.
        RuntimeError: the norm is not finite, where that was asked for. No gradient was changed then.
    """
    for what, value in (("max_norm", max_norm), ("norm_type", norm_type)):
        if not value > 0:
            raise ValueError(f"clip_grad_norm_: {what} must be above 0, got {value}")
    gradients = _gradients(parameters)
    if not gradients:
        return np.zeros((), np.float32)
    xp = get_array_module(gradients[0])
    total = xp.asarray(_norm(xp, gradients, float(norm_type)))
    if error_if_nonfinite and not math.isfinite(float(total)):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {float(total)}, which is not finite")
    factor = xp.minimum(float(max_norm) / (total + SMALL), 1)  # (CLIP.2)
    for gradient in gradients:
        gradient *= factor.astype(gradient.dtype)
    return total


def clip_grad_value_(parameters: Parameter | Iterable[Parameter], clip_value: float) -> None:
    """Bring every number of every gradient into [-clip_value, clip_value], in place; NaN stays.

    Args:
        parameters: as `clip_grad_norm_` takes them.
        clip_value: at least 0.

    Raises:
        ValueError: clip_value is below 0.
    """
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_: clip_value must be at least 0, got {clip_value}")
    for gradient in _gradients(parameters):
        get_array_module(gradient).clip(gradient, -float(clip_value), float(clip_value), out=gradient)  # (CLIP.3)


def _gradients(parameters):
    """The arrays to clip; on a GPU one for all parameters where they are all that it holds."""
    given = [parameters] if isinstance(parameters, Parameter) else list(parameters)
    return flat.gradients([parameter for parameter in given if parameter.requires_grad])


def _norm(xp, gradients, p):  # (CLIP.1)
    if p == math.inf:
        largest = [abs(gradient).max() for gradient in gradients if gradient.size]
        return xp.stack(largest).max() if largest else 0.0
    if p == 2:
        return sum((gradient * gradient).sum() for gradient in gradients) ** 0.5
    return sum((abs(gradient) ** p).sum() for gradient in gradients) ** (1 / p)
