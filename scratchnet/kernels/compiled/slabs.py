"""The loops of front.py and block.py: a few channels of an expansion at a time, through all that they go through.

x and dx are (C, M), dz1 (E, M), z, y and dy (E, M2), dz3 (O, M2), with M and M2 columns in front of the depthwise
convolution and behind it; matrices (E, C) and (E, O), the latter the transposed weight of the projection.

A slab is a few rows of z1: one matrix product, which then stays in the cache. `scratch` is a thread's own memory: the slab,
three padded rows for the convolution (convolve.py), and where a projection follows a slab of dy and a panel of y2.
"""

from typing import Any, NamedTuple

import numpy as np

from scratchnet.kernels.compiled.blas import PANEL, multiply, multiply_transposed
from scratchnet.kernels.compiled.convolve import SUMS, convolve, convolve_back
from scratchnet.kernels.compiled.jit import bare, jit, take, told
from scratchnet.kernels.compiled.rows import combine, masked_sums, moments, scale_and_clip


class Stage(NamedTuple):
    """A convolution and the batch norm behind it: weight (E, ·), the others (E,)."""

    weight: Any
    gamma: Any
    beta: Any
    mean: Any
    inv_std: Any


class Sizes(NamedTuple):
    """Rows of a slab; N, the stride, the pictures' heights in front of the depthwise convolution and behind it, M."""

    few: int
    n: int
    stride: int
    height: int
    height2: int
    m: int


@jit
def forward(counter, found, x, one, eps1, var1, two, eps2, var2, sizes, z, y, scratch):
    """z2 and the statistics of both batch norms; and y2, where y has room for it."""
    few, n, stride, height, height2, m = sizes
    x, z, y, weight1, weight2, scratch = bare(x), bare(z), bare(y), bare(one.weight), bare(two.weight), bare(scratch)
    slab, ring = scratch[: few * m].reshape(few, m), scratch[few * m :].reshape(3, -1)
    first = take(counter) * few
    while first < len(z):
        last = min(first + few, len(z))
        multiply(found, weight1[first:last], x[:, :m], slab[: last - first], False)  # (FRONT.1)
        for c in range(first, last):
            z1 = slab[c - first]
            one.mean[c], var1[c] = moments(z1)  # (BN.1), (BN.2)
            one.inv_std[c] = 1.0 / np.sqrt(var1[c] + eps1)
            before = told(True), one.mean[c], one.gamma[c] * one.inv_std[c], one.beta[c]  # (FRONT.2)
            statistics = convolve(
                z1.reshape(height, -1), before, weight2[c], n, stride, height2, ring, z[c]
            )  # (CONV.8)
            two.mean[c], var2[c] = statistics
            two.inv_std[c] = 1.0 / np.sqrt(var2[c] + eps2)  # (DWF.1)
            if len(y):
                scale_and_clip(z[c], two.mean[c], two.gamma[c] * two.inv_std[c], two.beta[c], y[c])  # (DWF.2)
        first = take(counter) * few


@jit
def backward(counter, found, dy, dz3, matrix3, dmatrix3, z, x, one, two, sizes, dz1, gradients1, gradients2, scratch):
    """dz1 and the gradients of both stages, from dy; or from dz3, and the projection's too, where matrix3 has rows."""
    few, n, stride, height, height2, m = sizes
    dy, dz3, matrix3, dmatrix3 = bare(dy), bare(dz3), bare(matrix3), bare(dmatrix3)
    z, x, dz1, scratch = bare(z), bare(x), bare(dz1), bare(scratch)
    weight1, weight2, m2, projects = bare(one.weight), bare(two.weight), z.shape[1], len(matrix3) > 0
    dweight1, dgamma1, dbeta1 = gradients1
    dweight2, dgamma2, dbeta2 = gradients2
    end1 = few * m
    end2 = end1 + 3 * (m // height + 2 * n)
    end3 = end2 + few * m2 * projects
    slab, ring = scratch[:end1].reshape(few, m), scratch[end1:end2].reshape(3, -1)
    dys, panel = scratch[end2:end3].reshape(-1, m2), scratch[end3:].reshape(-1, PANEL)
    count1, count2, total = x.dtype.type(m), x.dtype.type(m2), np.empty(SUMS)
    first = take(counter) * few
    while first < len(z):
        last = min(first + few, len(z))
        if projects:
            _project_back(found, dz3, matrix3, dmatrix3, z, two, first, last, dys, panel)
        multiply(found, weight1[first:last], x[:, :m], slab[: last - first], False)  # (FRONT.1) again
        for c in range(first, last):
            dy2 = dys[c - first] if projects else dy[c]
            a = two.gamma[c] * two.inv_std[c]
            s, q = masked_sums(dy2, z[c], two.mean[c], a, two.beta[c])
            dbeta2[c] = s
            dgamma2[c] = two.inv_std[c] * q  # (DWF.4)
            through = dbeta2[c] / count2, two.inv_std[c] * dgamma2[c] / count2
            behind = told(True), two.mean[c], a, two.beta[c], through[0], through[1]
            before = told(True), one.mean[c], one.gamma[c] * one.inv_std[c], one.beta[c]
            z1, g = slab[c - first].reshape(height, -1), dz1[c, :m].reshape(height, -1)
            total[:] = 0.0
            convolve_back(dy2, z[c], behind, z1, before, weight2[c] * a, n, stride, height2, ring, g, total)
            for k in range(9):
                dweight2[c, k] = total[k] * a  # (DWF.6)
            dbeta1[c] = total[9]
            dgamma1[c] = one.inv_std[c] * total[10]  # (FRONT.4)
        for k in range(0, m, PANEL):
            end = min(k + PANEL, m)
            for c in range(first, last):
                g, a = dz1[c, k:end], one.gamma[c] * one.inv_std[c]
                through = dbeta1[c] / count1, one.inv_std[c] * dgamma1[c] / count1
                combine(g, slab[c - first, k:end], one.mean[c], a, through[0], through[1], g)  # (BN.7)
            multiply_transposed(found, dz1[first:last, k:end], x[:, k:end], dweight1[first:last], k > 0)  # (FRONT.5)
        first = take(counter) * few


@jit
def _project_back(found, dz3, matrix3, dmatrix3, z, two, first, last, dys, panel):
    """A slab of dy2, and of the projection's dweight: y2 is made again from z2, a panel at a time."""
    for k in range(0, z.shape[1], PANEL):
        end = min(k + PANEL, z.shape[1])
        for c in range(first, last):
            a, y2 = two.gamma[c] * two.inv_std[c], panel[c - first, : end - k]
            scale_and_clip(z[c, k:end], two.mean[c], a, two.beta[c], y2)  # (DWF.2) again
        multiply(found, matrix3[first:last], dz3[:, k:end], dys[: last - first, k:end], False)  # (PROJ.3)
        y2s = panel[: last - first, : end - k]
        multiply_transposed(found, y2s, dz3[:, k:end], dmatrix3[first:last], k > 0)  # (PROJ.3)
