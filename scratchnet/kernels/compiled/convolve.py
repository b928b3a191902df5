"""The loops of depthwise.py. x and dx are (C, H, W·N); z, y and dy (C, OH·OW·N); weights (C, 9).

Rows are read once, into three padded rows that lie in the inner cache: row r is ring[(r + 1) % 3]. With a stride of 2,
forward lays even and odd columns apart there, so that what a tap reads is one piece; backward spreads h out, with zeros
where no window begins, so that it is the loop of stride 1.

With batch norm and ReLU6 (fused/depthwise.py) a channel goes through all three while it is in the cache. Forward keeps z;
backward goes over dy and z once for the two sums and once for h, which is made a row at a time and never stored.
"""

import numpy as np

from scratchnet.kernels.compiled.jit import SIX, ZERO, bare, jit, take
from scratchnet.kernels.compiled.rows import copy, lay_out, make_h, masked_sums, scale_and_clip, sums, taps, taps_back


@jit
def forward(counter, x, weight, n, stride, height, z, ring):
    """The convolution alone."""
    x, weight, z, ring = bare(x), bare(weight), bare(z), bare(ring)
    ring[:] = ZERO
    c = take(counter)
    while c < len(z):
        _convolve(x[c], weight[c], n, stride, height, ring, z[c])
        c = take(counter)


@jit
def relu6(counter, x, weight, n, stride, height, bias, y, ring):
    """The convolution, a bias and the bounds."""
    x, weight, y, ring = bare(x), bare(weight), bare(y), bare(ring)
    ring[:] = ZERO
    c = take(counter)
    while c < len(y):
        _convolve(x[c], weight[c], n, stride, height, ring, y[c])
        row, b = y[c], bias[c]
        for i in range(row.size):
            row[i] = min(max(row[i] + b, ZERO), SIX)  # (FOLD.2)
        c = take(counter)


@jit
def norm_relu6_forward(counter, x, weight, n, stride, height, gamma, beta, eps, count, z, y, mean, var, inv_std, ring):
    """The convolution, batch norm and ReLU6."""
    x, weight, z, y, ring = bare(x), bare(weight), bare(z), bare(y), bare(ring)
    ring[:] = ZERO
    c = take(counter)
    while c < len(z):
        mean[c] = _convolve(x[c], weight[c], n, stride, height, ring, z[c]) / count
        s, q = sums(z[c], mean[c])
        shift = s / count  # what rounding has left of the mean
        mean[c] += shift
        var[c] = max(q / count - shift * shift, 0.0)
        inv_std[c] = 1.0 / np.sqrt(var[c] + eps)  # (DWF.1)
        scale_and_clip(z[c], mean[c], gamma[c] * inv_std[c], beta[c], y[c])  # (DWF.2)
        c = take(counter)


@jit
def backward(counter, dy, x, weight, n, stride, height, dx, dweight, ring):
    """Dx and dweight of the convolution alone."""
    dy, x, weight, dx, dweight, ring = bare(dy), bare(x), bare(weight), bare(dx), bare(dweight), bare(ring)
    ring[:] = ZERO
    c = take(counter)
    while c < len(dx):
        none = ZERO * weight[c, 0]
        norm = False, none, none, none, none, none
        _convolve_back(dy[c], dy[c], norm, x[c], weight[c], n, stride, height, ring, dx[c], dweight[c])
        c = take(counter)


@jit
def norm_relu6_backward(
    counter, dy, z, x, weight, n, stride, height, gamma, beta, mean, inv_std, count, dx, dweight, dgamma, dbeta, ring
):
    """Dx and the gradients of the three layers' parameters."""
    dy, z, x, weight, dx, dweight, ring = bare(dy), bare(z), bare(x), bare(weight), bare(dx), bare(dweight), bare(ring)
    ring[:] = ZERO
    c = take(counter)
    while c < len(dx):
        a = gamma[c] * inv_std[c]
        s, q = masked_sums(dy[c], z[c], mean[c], a, beta[c])
        dbeta[c] = s
        dgamma[c] = inv_std[c] * q  # (DWF.4)
        norm = True, mean[c], a, beta[c], dbeta[c] / count, inv_std[c] * dgamma[c] / count
        _convolve_back(dy[c], z[c], norm, x[c], weight[c] * a, n, stride, height, ring, dx[c], dweight[c])
        dweight[c] *= a  # (DWF.6)
        c = take(counter)


# One channel ----------------------------------------------------------------------------------------------------------


@jit
def _convolve(x, weight, n, stride, height, ring, z):
    """Z of one channel, and its sum."""
    width = z.size // height
    one, two = (n, 2 * n) if stride == 1 else (width + n, n)  # where the second and the third column's taps begin
    ring[0] = ZERO  # the row above the picture
    seen, total = 0, 0.0
    for p in range(height):
        while seen < p * stride + 2:
            row = ring[(seen + 1) % 3]
            if seen < x.shape[0]:
                lay_out(x[seen], n, stride, width + n, row)
            else:
                row[:] = ZERO  # the row below it
            seen += 1
        a, b, c = ring[p * stride % 3], ring[(p * stride + 1) % 3], ring[(p * stride + 2) % 3]
        x0, x1, x2 = a[:width], a[one : one + width], a[two : two + width]
        x3, x4, x5 = b[:width], b[one : one + width], b[two : two + width]
        x6, x7, x8 = c[:width], c[one : one + width], c[two : two + width]
        total += taps(x0, x1, x2, x3, x4, x5, x6, x7, x8, weight, z[p * width : (p + 1) * width])
    return total


@jit
def _convolve_back(dy, z, norm, x, weight, n, stride, height, ring, dx, dweight):
    """Dx of one channel; the sums for dweight are added to it."""
    width, fused = dy.size // height, norm[0]
    piece = width if stride == 1 else n
    ring[0] = ZERO
    seen = 0
    for r in range(x.shape[0]):
        while seen < r + 2:
            row, p = ring[(seen + 1) % 3], seen // stride
            if seen % stride == 0 and p < height:
                for q in range(0, width, piece):
                    k, to = p * width + q, n + q * stride
                    if fused:
                        make_h(dy[k : k + piece], z[k : k + piece], norm, row[to : to + piece])
                    else:
                        copy(dy[k : k + piece], row[to : to + piece])
            else:
                row[:] = ZERO
            seen += 1
        taps_back(ring[(r + 2) % 3], ring[(r + 1) % 3], ring[r % 3], n, x[r], weight, dx[r], dweight)
