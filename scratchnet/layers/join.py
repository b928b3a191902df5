"""Branches: x goes through several chains of layers, and what these give is joined.

    yₖ = fₖ(x)              for each branch k; one without layers gives x itself
    y  = join(y₁, …, yₙ)
    dx = Σₖ Jₖᵀ dyₖ          x reaches y through each branch, so that its gradients add     (JOIN.1)

with Jₖ the Jacobian of fₖ at x, whose product with dyₖ is the branch's own backward. The join says what dyₖ is:

    sum              y = Σₖ yₖ                                                              (SUM.1)
                     dyₖ = dy                                                               (SUM.2)
    concatenation    y[o + c] = yₖ[c]      with o channels in the branches before k         (CAT.1)
                     dyₖ[c] = dy[o + c]                                                     (CAT.2)
    product          y = Πₖ yₖ             where yₖ has one row, column or channel, it is
                                           repeated along that axis                         (MUL.1)
                     dyₖ = Σ dy Πⱼ yⱼ       over j ≠ k; Σ over the axes along which yₖ was
                                           repeated, since each repeat moved y              (MUL.2)

A shortcut is a sum in which one branch is x: y = x + f(x), dx = dy + Jᵀ dy (He et al. 2016, eq. 1). Sources of the others:
Szegedy et al. 2015, figure 2, and Ronneberger et al. 2015, figure 1 (concatenation); Hu et al. 2018, eq. 4 (product).
"""

import functools
import operator
from typing import Any, NamedTuple

from scratchnet.array import as_images, as_maps, as_matrix
from scratchnet.device import bfloat16_dtype, get_array_module, is_bfloat16
from scratchnet.kernels import Pair, run


def add(a, b):
    """A sum of activations, on their matrices: CuPy's `a + b` of two views would change the memory order."""
    return as_images(as_matrix(a) + as_matrix(b), a)  # (JOIN.1), (SUM.1)


def sum_forward(*ys):
    """Add arrays of one shape; returns y and the cache for `sum_backward`."""
    return functools.reduce(functools.partial(run, add), ys), len(ys)


def sum_backward(dy, cache):
    """Gradients of `sum_forward`, one for each array."""
    return (dy,) * cache  # (SUM.2)


def concat_forward(*ys):
    """Put channels behind channels: (N, Cₖ, …) -> y (N, ΣCₖ, …), and the cache for `concat_backward`."""
    parts = [as_maps(y) for y in ys]  # (N, C, H, W) -> (C, H, W, N)
    places = _places(parts)
    maps = get_array_module(parts[0]).empty((places[-1].stop, *parts[0].shape[1:]), parts[0].dtype)
    for place, part in zip(places, parts, strict=True):
        maps[place] = part  # (CAT.1)
    return as_images(maps), places


def concat_backward(dy, cache):
    """Gradients of `concat_forward`, one for each array: views of dy where it is channel-major."""
    maps = as_maps(dy)
    return tuple(as_images(maps[place]) for place in cache)  # (CAT.2)


def _places(parts):
    """Which channels of the whole each part is."""
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    return [slice(*ends[k : k + 2]) for k in range(len(parts))]


def multiply_forward(*ys):
    """Multiply (N, C, H, W) or (N, F), where any size but N may also be 1; returns y and the cache for `multiply_backward`.

    Where some are stored in bfloat16, y is too: all multiply in float32, and y is rounded once.
    """
    parts = [as_maps(y) for y in ys]
    stored = any(map(is_bfloat16, parts))
    maps = functools.reduce(operator.mul, map(_widened, parts))  # (MUL.1)
    return as_images(maps.astype(bfloat16_dtype()) if stored else maps), parts


def multiply_backward(dy, cache):
    """Gradients of `multiply_forward`, one for each array, of its shape and dtype."""
    grad, gradients = _widened(as_maps(dy)), []
    for k, part in enumerate(cache):
        others = map(_widened, cache[:k] + cache[k + 1 :])
        repeated = tuple(axis for axis, size in enumerate(part.shape) if size != grad.shape[axis])
        share = functools.reduce(operator.mul, others, grad)
        share = share.sum(axis=repeated, keepdims=True) if repeated else share  # (MUL.2)
        gradients.append(as_images(share.astype(part.dtype) if is_bfloat16(part) else share))
    return tuple(gradients)


def _widened(maps):
    return maps.astype("float32") if is_bfloat16(maps) else maps


SUM = Pair(sum_forward, sum_backward)
CONCAT = Pair(concat_forward, concat_backward)
MULTIPLY = Pair(multiply_forward, multiply_backward)


class Mark(NamedTuple):
    """Stands in a chain where branches begin ("open": x is kept), where one ends and another begins ("turn": its result is
    kept, and x comes back), and where the last one ends ("close": all results are joined).

    Attributes:
        container: the module whose branches these are; its `joined_by` is the pair that joins.
        place: "open", "turn" or "close".
        branch: the number of the branch that ends here; None at "open".
        of: how many branches there are, those without layers too, which no mark ends.
    """

    container: Any
    place: str
    branch: int | None
    of: int

    @property
    def adds_two(self):
        """Whether two results are added here, which the step before may do as well."""
        return self.place == "close" and self.of == 2 and self.container.joined_by is SUM
