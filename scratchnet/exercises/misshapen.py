"""What an array that has another shape than the right gradient tells of how it was made, in words."""

from itertools import combinations, permutations

import numpy as np

from scratchnet.array import as_matrix
from scratchnet.exercises.diagnose import same

MOST_AXES = 6  # of an array whose orders are tried


def wrong_shape(name, claimed, true):
    """One sentence on an array that has another shape than the right one."""
    has = f"{name} has shape {claimed.shape}, and {true.shape} is wanted"
    found = _shape_mistake(claimed, true) if claimed.ndim <= MOST_AXES else None
    return f"{has}: {found}" if found else f"{has}: a gradient has the shape of the array that it is for"


def _shape_mistake(claimed, true):
    if claimed.ndim == true.ndim == 2 and same(claimed.T, true):
        return "the right numbers, but transposed: exchange the factors of a product, or write .T (as_images does)"
    if true.ndim == 4 and claimed.ndim == 2 and claimed.size == true.size:
        if same(claimed.reshape(true.shape[1], -1), as_matrix(true)):
            return "the right numbers, still as a matrix with one row per channel: as_images(dx, dy) makes (N, C, H, "
            "W) of it"
    if claimed.ndim == true.ndim:
        for axes in permutations(range(claimed.ndim)):
            if same(claimed.transpose(axes), true):
                return "the right numbers with axes in another order (that of memory?): as_images undoes as_maps"
    if claimed.size == true.size and same(claimed.reshape(true.shape), true):
        return (
            "the right numbers, but axes of size 1 are missing or too many: [:, None] adds one, keepdims=True keeps one"
        )
    if np.broadcast_shapes(*_fitting(claimed, true)) == true.shape and true.size > claimed.size:
        if same(np.broadcast_to(claimed, true.shape), true):
            return "the right numbers, each once: every place that it was summed from gets it, so spread it out"
    for count in range(1, claimed.ndim + 1):
        for axes in combinations(range(claimed.ndim), count):
            if same(claimed.sum(axis=axes), true):
                return f"its sum over axis {_and(axes)} would be right: that sum is missing"
    for count in range(1, true.ndim + 1):
        for axes in combinations(range(true.ndim), count):
            for what, total in (("summed", true.sum(axis=axes)), ("averaged", true.mean(axis=axes))):
                if same(claimed, total) or same(np.squeeze(claimed), np.squeeze(total)):
                    return f"it is {what} over axis {_and(axes)}, where each number has a gradient of its own"
    if claimed.ndim == true.ndim - 1 and true.ndim == 2:
        return f"summed over the wrong axis? axis {0 if claimed.shape == true.shape[1:] else 1} should stay"
    if sorted(claimed.shape) == sorted(true.shape):
        return "the same sizes in another order: transposed, or axes not yet put back?"
    if claimed.ndim == true.ndim == 1:
        return "summed over the wrong axis?"
    return None


def _fitting(claimed, true):
    """Both shapes where they broadcast, else shapes that tell nothing."""
    try:
        np.broadcast_shapes(claimed.shape, true.shape)
    except ValueError:
        return (), ()
    return claimed.shape, true.shape


def _and(axes):
    return " and ".join(map(str, axes))
