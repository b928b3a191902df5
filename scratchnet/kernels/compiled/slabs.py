"""The loops of front.py and block.py: a few channels of an expansion at a time, through all that they go through.

x and dx are (C, M), dz1 (E, M), z, y and dy (E, M2), dz3 (O, M2), with M and M2 columns in front of the depthwise
convolution and behind it; matrices (E, C) and (E, O), the latter the transposed weight of the projection.

A slab is a few rows of z1: one matrix product, which then stays in the cache. `scratch` is a thread's own memory: the slab,
three padded rows for the convolution (convolve.py), and where a projection follows a slab of dy2 and a panel of y2.

Backward wants two sums of each batch norm before it can go on. Where they are of one process a slab has them when it needs
them (`backward`); where they are of several, all channels' sums are made and exchanged between one loop and the next
(`behind`, `front`), so that dy2 is stored, and z1 is gone when the second sums come: front.py does without it.
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


class Sums(NamedTuple):
    """The gradients of a stage's weight, and of batch norm's weight and bias: all that backward sums up."""

    weight: Any
    gamma: Any
    beta: Any


class Sizes(NamedTuple):
    """Rows of a slab; N, the stride, the pictures' heights in front of the depthwise convolution and behind it, M."""

    few: int
    n: int
    stride: int
    height: int
    height2: int
    m: int


@jit
def forward(counter, found, x, known, one, eps1, var1, two, var2, sizes, z, scratch):
    """z2, its moments, and the statistics of the first batch norm, where they are not known."""
    few, n, stride, height, height2, m = sizes
    x, z, weight1, weight2, scratch = bare(x), bare(z), bare(one.weight), bare(two.weight), bare(scratch)
    slab, ring = scratch[: few * m].reshape(few, m), scratch[few * m :].reshape(3, -1)
    first = take(counter) * few
    while first < len(z):
        last = min(first + few, len(z))
        multiply(found, weight1[first:last], x[:, :m], slab[: last - first], False)  # (FRONT.1)
        for c in range(first, last):
            z1 = slab[c - first]
            if not known:
                one.mean[c], var1[c] = moments(z1)  # (BN.1), (BN.2)
            one.inv_std[c] = 1.0 / np.sqrt(var1[c] + eps1)
            before = told(True), one.mean[c], one.gamma[c] * one.inv_std[c], one.beta[c]  # (FRONT.2)
            moments2 = convolve(z1.reshape(height, -1), before, weight2[c], n, stride, height2, ring, z[c])  # (CONV.8)
            two.mean[c], var2[c] = moments2
        first = take(counter) * few


@jit
def backward(counter, found, dy, dz3, matrix3, dmatrix3, z, x, one, two, sizes, counts, dz1, sums1, sums2, scratch):
    """dz1 and the gradients of both stages: all of `behind`, `front` and (BN.7), a slab at a time."""
    dz3, matrix3, dmatrix3 = bare(dz3), bare(matrix3), bare(dmatrix3)
    dy, z, x, dz1 = bare(dy), bare(z), bare(x), bare(dz1)
    few, m, projects = sizes.few, sizes.m, len(matrix3) > 0
    slab, ring, dys, panel = _places(scratch, sizes, z.shape[1], projects)
    first = take(counter) * few
    while first < len(z):
        last = min(first + few, len(z))
        if projects:
            _project_back(found, dz3, matrix3, dmatrix3, z, two, first, last, dys, panel)
        rows, base = (dys, first) if projects else (dy, 0)
        _sums_behind(rows, base, z, two, first, last, sums2)
        _front_back(found, rows, base, z, x, one, two, sizes, counts, sums2, first, last, dz1, sums1, sums2, slab, ring)
        for k in range(0, m, PANEL):
            end = min(k + PANEL, m)
            for c in range(first, last):
                g, a = dz1[c, k:end], one.gamma[c] * one.inv_std[c]
                through = sums1.beta[c] / counts[0], one.inv_std[c] * sums1.gamma[c] / counts[0]
                combine(g, slab[c - first, k:end], one.mean[c], a, through[0], through[1], g)  # (BN.7)
            _add_products(found, dz1, x, first, last, k, end, sums1.weight)  # (FRONT.5)
        first = take(counter) * few


@jit
def behind(counter, found, dz3, matrix3, dmatrix3, z, two, sizes, dys, sums2, scratch):
    """dy2, written to dys (E, M2), where a projection follows, with the projection's dweight; and the sums (DWF.4)."""
    dz3, matrix3, dmatrix3, dys, z = bare(dz3), bare(matrix3), bare(dmatrix3), bare(dys), bare(z)
    panel = _places(scratch, sizes, 0, True)[3]
    first = take(counter) * sizes.few
    while first < len(z):
        last = min(first + sizes.few, len(z))
        if len(matrix3):
            _project_back(found, dz3, matrix3, dmatrix3, z, two, first, last, dys[first:last], panel)
        _sums_behind(dys, 0, z, two, first, last, sums2)
        first = take(counter) * sizes.few


@jit
def front(counter, found, dys, z, x, one, two, sizes, counts, all2, dz1, sums1, sums2, scratch):
    """g of (FRONT.3) in the place of dz1, its sums (FRONT.4), and P = g Xcᵀ (FUSE.8) in that of dweight."""
    dys, z, x, dz1 = bare(dys), bare(z), bare(x), bare(dz1)
    slab, ring = _places(scratch, sizes, 0, False)[:2]
    first = take(counter) * sizes.few
    while first < len(z):
        last = min(first + sizes.few, len(z))
        _front_back(found, dys, 0, z, x, one, two, sizes, counts, all2, first, last, dz1, sums1, sums2, slab, ring)
        for k in range(0, sizes.m, PANEL):
            _add_products(found, dz1, x, first, last, k, min(k + PANEL, sizes.m), sums1.weight)
        first = take(counter) * sizes.few


# A slab ---------------------------------------------------------------------------------------------------------------


@jit
def _places(scratch, sizes, m2, projects):
    """A thread's own memory: the slab, the ring; where a projection follows a slab of dy2, and a panel of y2."""
    few, m, height = sizes.few, sizes.m, sizes.height
    scratch = bare(scratch)
    end1 = few * m
    end2 = end1 + 3 * (m // height + 2 * sizes.n)
    end3 = end2 + few * m2 * projects
    slab, ring = scratch[:end1].reshape(few, m), scratch[end1:end2].reshape(3, -1)
    return slab, ring, scratch[end2:end3].reshape(-1, max(m2, 1)), scratch[end3:].reshape(-1, PANEL)


@jit
def _sums_behind(dys, base, z, two, first, last, sums2):
    """dgamma and dbeta of the second batch norm; row c of the gradient of y2 is dys[c - base]."""
    for c in range(first, last):
        a = two.gamma[c] * two.inv_std[c]
        s, q = masked_sums(dys[c - base], z[c], two.mean[c], a, two.beta[c])
        sums2.beta[c] = s
        sums2.gamma[c] = two.inv_std[c] * q  # (DWF.4)


@jit
def _front_back(found, dys, base, z, x, one, two, sizes, counts, all2, first, last, dz1, sums1, sums2, slab, ring):
    """g of (FRONT.3) and its sums, and dweight of the depthwise convolution; z1 is made again in the slab."""
    few, n, stride, height, height2, m = sizes
    weight2, dweight2, total = bare(two.weight), bare(sums2.weight), np.empty(SUMS)
    multiply(found, bare(one.weight)[first:last], x[:, :m], slab[: last - first], False)  # (FRONT.1) again
    for c in range(first, last):
        a = two.gamma[c] * two.inv_std[c]
        through = all2.beta[c] / counts[1], two.inv_std[c] * all2.gamma[c] / counts[1]
        after = told(True), two.mean[c], a, two.beta[c], through[0], through[1]
        before = told(True), one.mean[c], one.gamma[c] * one.inv_std[c], one.beta[c]
        z1, g = slab[c - first].reshape(height, -1), dz1[c, :m].reshape(height, -1)
        total[:] = 0.0
        convolve_back(dys[c - base], z[c], after, z1, before, weight2[c] * a, n, stride, height2, ring, g, total)
        for k in range(9):
            dweight2[c, k] = total[k] * a  # (DWF.6)
        sums1.beta[c] = total[9]
        sums1.gamma[c] = one.inv_std[c] * total[10]  # (FRONT.4)


@jit
def _add_products(found, dz1, x, first, last, k, end, dweight1):
    """What a panel of columns adds to dz1 · Xcᵀ."""
    multiply_transposed(found, dz1[first:last, k:end], x[:, k:end], bare(dweight1)[first:last], k > 0)


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
