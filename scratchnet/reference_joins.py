"""How branches are joined, as loops over single numbers, in the manner of `reference.py`: read that file first.

Arguments may have any real dtype; results are new arrays in float64. Imported by tests only.
"""

import numpy as np


def _float64(*arrays):
    return [np.asarray(array, dtype=np.float64) for array in arrays]


# Joins of branches ----------------------------------------------------------------------------------------------------


def sum_forward(*ys):
    """Add arrays of one shape (N, C, …)."""
    ys = _float64(*ys)
    y = np.zeros(ys[0].shape)
    for part in ys:
        for at in np.ndindex(y.shape):
            y[at] += part[at]
    return y


def sum_backward(dy, *ys):
    """Gradients of `sum_forward`, one for each array."""
    (dy,) = _float64(dy)
    gradients = [np.zeros(part.shape) for part in ys]
    for gradient in gradients:
        for at in np.ndindex(dy.shape):
            gradient[at] += dy[at]  # y[at] += part[at]
    return gradients


def concat_forward(*ys):
    """Channels behind channels: (N, Cₖ, …) -> (N, ΣCₖ, …)."""
    ys = _float64(*ys)
    y = np.zeros((len(ys[0]), sum(part.shape[1] for part in ys), *ys[0].shape[2:]))
    before = 0
    for part in ys:
        for n, c, *pixel in np.ndindex(part.shape):
            y[(n, before + c, *pixel)] = part[(n, c, *pixel)]
        before += part.shape[1]
    return y


def concat_backward(dy, *ys):
    """Gradients of `concat_forward`, one for each array."""
    (dy,) = _float64(dy)
    gradients, before = [np.zeros(part.shape) for part in ys], 0
    for gradient in gradients:
        for n, c, *pixel in np.ndindex(gradient.shape):
            gradient[(n, c, *pixel)] += dy[(n, before + c, *pixel)]  # y[n, before + c, …] = part[n, c, …]
        before += gradient.shape[1]
    return gradients


def _places(at, ys):
    """Where each array has the number that is used for y[at]: an axis of size 1 has one for all."""
    return [tuple(0 if size == 1 else k for k, size in zip(at, part.shape, strict=True)) for part in ys]


def multiply_forward(*ys):
    """Multiply arrays (N, C, …); along an axis where one has size 1 it is used again and again."""
    ys = _float64(*ys)
    y = np.ones([max(sizes) for sizes in zip(*(part.shape for part in ys), strict=True)])
    for at in np.ndindex(y.shape):
        for part, place in zip(ys, _places(at, ys), strict=True):
            y[at] *= part[place]
    return y


def multiply_backward(dy, *ys):
    """Gradients of `multiply_forward`, one for each array: a number that is used several times gets several shares."""
    dy, *ys = _float64(dy, *ys)
    gradients = [np.zeros(part.shape) for part in ys]
    for at in np.ndindex(dy.shape):
        places = _places(at, ys)
        for k, gradient in enumerate(gradients):
            others = 1.0
            for j, part in enumerate(ys):
                others *= part[places[j]] if j != k else 1
            gradient[places[k]] += others * dy[at]  # y[at] *= part[place]: one more in it is `others` more in y
    return gradients
