"""A shortcut: what goes into some layers is added to what comes out of them.

    y  = x + f(x)                                                                           (SHORT.1)
    dx = dy + Jᵀ dy         x reaches y in two ways, so that its gradients add               (SHORT.2)

with J the Jacobian of f at x, whose product with dy is f's own backward. Source: He et al. 2016, eq. 1.
"""

from typing import Any, NamedTuple

from scratchnet.array import as_images, as_matrix


def add(a, b):
    """A sum of activations, on their matrices: CuPy's `a + b` of two views would change the memory order."""
    return as_images(as_matrix(a) + as_matrix(b), a)  # (SHORT.1), (SHORT.2)


class ShortcutMark(NamedTuple):
    """What `Residual.chain` puts at both ends of its layers."""

    residual: Any
    opens: bool


def require_same(layer, x, shape, dtype):
    """Raise ValueError, opened by the name of a `Residual`, unless y, of this shape and dtype, can be added to x."""
    for what, before, after in (("shape", x.shape, shape), ("dtype", x.dtype, dtype)):
        if before != after:
            raise ValueError(
                f"{layer}: the layers turn x of {what} {before} into {after}, a shortcut needs equal {what}s"
            )
