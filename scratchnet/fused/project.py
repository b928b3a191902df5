"""The end of an inverted residual block as one: 1×1 convolution, batch norm, and the end of a shortcut where there is one.

    Z = W X                                                                                (PROJ.1)
    y = γ ẑ + β + x₀         with ẑ of (BN.3), and x₀ what went into the block, or nothing  (PROJ.2)

Backward, from dy: dx₀ = dy, since x₀ is added (SUM.2); dβ, dγ and dz by batch norm's own (BN.5)-(BN.7), then
    dW = dZ Xᵀ,    dX = Wᵀ dZ                                                              (PROJ.3)

Nothing is won in the mathematics, but passes: to normalise and to add is one, and both products of (PROJ.3) take the same
few rows of X and dX. A plan puts this in the place of the layers (`ProjectStep`) where a kernel computes it.
"""

from typing import Any

from scratchnet import kernels
from scratchnet.array import as_images, as_matrix
from scratchnet.cache import located
from scratchnet.fused.step import FusedStep
from scratchnet.layers.conv import Conv2d
from scratchnet.layers.join import Mark, sum_backward
from scratchnet.layers.norm import BatchNorm2d, batch_norm_backward, batch_norm_forward


def project_forward(x, weight, gamma, beta, eps, shortcut=None):
    """Convolve 1×1, normalise by the batch's own statistics, add.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 1, 1).
        gamma, beta: batch norm's weight and bias, (O,).
        eps: added to the variance.
        shortcut: what is added, (N, O, H, W), or None.

    Returns:
        y (N, O, H, W); mean and biased variance of the convolution's output, each (O,); the cache for the backward.
    """
    matrix, columns = weight[:, :, 0, 0], as_matrix(x)  # (N, C, H, W) -> (C, M)
    z = as_images(matrix @ columns, x)  # (PROJ.1)
    y, mean, var, norm = batch_norm_forward(z, gamma, beta, eps)
    if shortcut is not None:
        y = as_images(as_matrix(y) + as_matrix(shortcut), x)  # (PROJ.2)
    return y, mean, var, (columns, matrix, norm)


def project_backward(dy, cache):
    """Gradients of `project_forward`: dx (N, C, H, W), dweight (O, C, 1, 1), dgamma and dbeta (O,); x₀'s is dy itself."""
    columns, matrix, norm = cache
    dz, dgamma, dbeta = batch_norm_backward(dy, norm)
    rows = as_matrix(dz)
    dweight, dx = rows @ columns.T, matrix.T @ rows  # (PROJ.3)
    return as_images(dx, dy), dweight[:, :, None, None], dgamma, dbeta


class ProjectStep(FusedStep):
    """A plain 1×1 convolution, batch norm, and the end of a shortcut, or of any sum of two branches, where one ends there.

    Attributes:
        fork: the plan's step at which the branches begin, or None.
    """

    plain = kernels.Pair(project_forward, project_backward)
    pattern = (Conv2d, BatchNorm2d)
    needs_kernel = True
    fork: Any = None
    _branch: Any = None  # which of the two branches it ends

    @staticmethod
    def takes(*convs):  # noqa: D102
        (conv,) = convs
        return (conv.path, conv.stride, conv.bias) == ("pointwise", (1, 1), None)

    @classmethod
    def matches(cls, layers):  # noqa: D102
        *layers, last = layers
        if not isinstance(last, Mark):
            return super().matches([*layers, last])
        return last.adds_two and super().matches(layers)

    def __init__(self, names, layers):
        *plain, last = layers
        ends = isinstance(last, Mark)
        super().__init__(names[: len(self.pattern)], [*plain, last.container if ends else last])
        self._end, self._branch = names[-1], last.branch if ends else None

    def end_branches(self, fork):
        """The branches that begin at this step of the plan end here."""
        self.fork = fork
        fork.walked.add(self._branch)

    @property
    def name(self):
        """The last batch norm's, whose dy it is: the shortcut hands it on."""
        return self.stages[-1][1].name

    def take_shortcut(self, x, shape):
        """What came through the shortcut, or None; checked against y's shape."""
        if not self.fork:
            return None
        shortcut = self.fork.results()[1 - self._branch]
        forms = [(shortcut.shape, shortcut.dtype), (shape, x.dtype)]
        with located(self._end):
            self.layers[-1].require_fit(forms if self._branch else forms[::-1])
        return shortcut

    def compute(self, forward, x):  # noqa: D102
        ((conv, norm),) = self.stages
        shortcut = self.take_shortcut(x, self._shapes[-1])
        return forward(x, conv.weight.data, norm.weight.data, norm.bias.data, norm.eps, shortcut)

    def backward(self, dy):  # noqa: D102
        dx = super().backward(dy)
        if self.fork:
            self.fork.hand_back(sum_backward(dy, 2), self._branch)
        return dx
