"""An inverted residual block as one: its front (front.py), its projection and its shortcut (project.py).

    y₂ = front(x),    y = project(y₂) + x₀                                                  (BLOCK.1)
    dy₂ from dy by (PROJ.3),    dx from dy₂ by (FRONT.6)                                     (BLOCK.2)

What it saves is the array between the two. y₂ follows from z₂, which is kept anyway: y₂ = clip(a₂ (z₂ - μ₂) + β₂, 0, 6),
three operations a number. So the projection can read z₂ and make y₂ on the way, in both directions, and dy₂ is used up, a
few channels at a time, where it is made. Of the six wide arrays that the eight layers put out in forward one is stored, z₂;
of their six gradients in backward one, that of z₁. This is the memory that the paper's inverted residual saves (Sandler et
al. 2018, section 5.1), in training too. Where a kernel computes it, a plan puts this in the layers' place (`BlockStep`).
"""

from scratchnet import kernels
from scratchnet.array import as_images, as_maps
from scratchnet.fused.front import FrontStep, front_backward, front_forward
from scratchnet.fused.project import ProjectStep, project_backward, project_forward


def block_forward(x, first, second, third, stride, padding, dilation, shortcut=None):
    """Expand, filter each channel, project, add.

    Args:
        x: (C, H, W, N).
        first, second, third: (weight, gamma, beta, eps) of expansion, depthwise convolution and projection with their batch
            norms: weights (E, C, 1, 1), (E, 1, KH, KW) and (O, E, 1, 1).
        stride, padding, dilation: of the depthwise convolution, pairs (h, w), in pixels.
        shortcut: what is added, (O, OH, OW, N), or None.

    Returns:
        y (O, OH, OW, N); mean and biased variance of each convolution's output; the cache for the backward.
    """
    arguments = x, *first, *second, stride, padding, dilation
    y2, *moments, front = front_forward(*arguments)
    arguments = as_images(y2), *third, None if shortcut is None else as_images(shortcut)
    y, mean, var, project = project_forward(*arguments)  # (BLOCK.1)
    return as_maps(y), *moments, mean, var, (front, project)


def block_backward(dy, cache):
    """Gradients of `block_forward`: dx like x, and dweight, dgamma and dbeta of each convolution; x₀'s is dy itself."""
    front, project = cache
    dy2, *gradients = project_backward(as_images(dy), project)
    dx, *others = front_backward(as_maps(dy2), front)  # (BLOCK.2)
    return dx, *others, *gradients


class BlockStep(ProjectStep):
    """A front, a projection and the end of a shortcut where one ends there."""

    plain = kernels.Pair(block_forward, block_backward)
    pattern = FrontStep.pattern + ProjectStep.pattern

    @property
    def title(self):  # noqa: D102
        return "inverted residual block" + ", shortcut" * (self.fork is not None)

    @staticmethod
    def takes(*convs):  # noqa: D102
        return FrontStep.takes(*convs[:2]) and ProjectStep.takes(convs[2])

    def pair(self, kind):  # noqa: D102
        return kernels.choose(self.plain, kind, window=self.stages[1][0].window)

    def compute(self, forward, x):  # noqa: D102
        shortcut = self.take_shortcut(x, self._shapes[-1])
        stages = [(conv.weight.data, norm.weight.data, norm.bias.data, norm.eps) for conv, norm in self.stages]
        added = None if shortcut is None else as_maps(shortcut)
        y, *rest = forward(as_maps(x), *stages, *self.stages[1][0].geometry, added)
        return as_images(y), *rest

    def differentiate(self, backward, dy, cache):  # noqa: D102
        dx, *gradients = backward(as_maps(dy), cache)
        return as_images(dx), *gradients
