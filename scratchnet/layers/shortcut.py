"""A shortcut: what goes into some layers is added to what comes out of them.

    y  = x + f(x)                                                                           (SHORT.1)
    dx = dy + Jᵀ dy         x reaches y in two ways, so that its gradients add               (SHORT.2)

with J the Jacobian of f at x, whose product with dy is f's own backward. Source: He et al. 2016, eq. 1.
"""

from scratchnet.array import as_images, as_matrix


def add(a, b):
    """A sum of activations, on their matrices: CuPy's `a + b` of two views would change the memory order."""
    return as_images(as_matrix(a) + as_matrix(b), a)  # (SHORT.1), (SHORT.2)
