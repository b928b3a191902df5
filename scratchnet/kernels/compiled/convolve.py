"""The loops of depthwise.py. x and dx are (C, H, W·N); z, y and dy (C, OH·OW·N); weights (C, 9).

Rows are read once, into three padded rows that lie in the inner cache: row r is ring[(r + 1) % 3]. With a stride of 2,
forward lays even and odd columns apart there, so that what a tap reads is one piece; backward spreads h out, with zeros
where no window begins, so that it is the loop of stride 1.

With batch norm and ReLU6 (fused/depthwise.py) a channel goes through all three while it is in the cache. Forward keeps z;
backward goes over dy and z once for the two sums and once for h, which is made a row at a time and never stored.
"""

import numpy as np

from scratchnet.kernels.compiled.jit import BLOCK, ONE, SIX, ZERO, bare, jit


@jit
def forward(x, weight, n, stride, height, z, ring, first, end):
    """The convolution alone."""
    x, weight, z, ring = bare(x), bare(weight), bare(z), bare(ring)
    for c in range(first, end):
        _convolve(x[c], weight[c], n, stride, height, ring, z[c])


@jit
def relu6(x, weight, n, stride, height, bias, y, ring, first, end):
    """The convolution, a bias and the bounds."""
    x, weight, y, ring = bare(x), bare(weight), bare(y), bare(ring)
    for c in range(first, end):
        _convolve(x[c], weight[c], n, stride, height, ring, y[c])
        row, b = y[c], bias[c]
        for i in range(row.size):
            row[i] = min(max(row[i] + b, ZERO), SIX)  # (FOLD.2)


@jit
def norm_relu6_forward(
    x, weight, n, stride, height, gamma, beta, eps, count, z, y, mean, var, inv_std, ring, first, end
):
    """The convolution, batch norm and ReLU6."""
    x, weight, z, y, ring = bare(x), bare(weight), bare(z), bare(y), bare(ring)
    for c in range(first, end):
        mean[c] = _convolve(x[c], weight[c], n, stride, height, ring, z[c]) / count
        s, q = _deviations(z[c], mean[c])
        shift = s / count  # what rounding has left of the mean
        mean[c] += shift
        var[c] = max(q / count - shift * shift, 0.0)
        inv_std[c] = 1.0 / np.sqrt(var[c] + eps)  # (DWF.1)
        _scale_and_clip(z[c], mean[c], gamma[c] * inv_std[c], beta[c], y[c])  # (DWF.2)


@jit
def backward(dy, x, weight, n, stride, height, dx, dweight, ring, first, end):
    """Dx and dweight of the convolution alone."""
    dy, x, weight, dx, dweight, ring = bare(dy), bare(x), bare(weight), bare(dx), bare(dweight), bare(ring)
    for c in range(first, end):
        none = ZERO * weight[c, 0]
        norm = False, none, none, none, none, none
        _convolve_back(dy[c], dy[c], norm, x[c], weight[c], n, stride, height, ring, dx[c], dweight[c])


@jit
def norm_relu6_backward(
    dy, z, x, weight, n, stride, height, gamma, beta, mean, inv_std, count, dx, dweight, dgamma, dbeta, ring, first, end
):
    """Dx and the gradients of the three layers' parameters."""
    dy, z, x, weight, dx, dweight, ring = bare(dy), bare(z), bare(x), bare(weight), bare(dx), bare(dweight), bare(ring)
    for c in range(first, end):
        a = gamma[c] * inv_std[c]
        s, q = _masked_sums(dy[c], z[c], mean[c], a, beta[c])
        dbeta[c] = s
        dgamma[c] = inv_std[c] * q  # (DWF.4)
        norm = True, mean[c], a, beta[c], dbeta[c] / count, inv_std[c] * dgamma[c] / count
        _convolve_back(dy[c], z[c], norm, x[c], weight[c] * a, n, stride, height, ring, dx[c], dweight[c])
        dweight[c] *= a  # (DWF.6)


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
                _lay_out(x[seen], n, stride, width + n, row)
            else:
                row[:] = ZERO  # the row below it
            seen += 1
        a, b, c = ring[p * stride % 3], ring[(p * stride + 1) % 3], ring[(p * stride + 2) % 3]
        x0, x1, x2 = a[:width], a[one : one + width], a[two : two + width]
        x3, x4, x5 = b[:width], b[one : one + width], b[two : two + width]
        x6, x7, x8 = c[:width], c[one : one + width], c[two : two + width]
        total += _taps(x0, x1, x2, x3, x4, x5, x6, x7, x8, weight, z[p * width : (p + 1) * width])
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
                        _make_h(dy[k : k + piece], z[k : k + piece], norm, row[to : to + piece])
                    else:
                        _copy(dy[k : k + piece], row[to : to + piece])
            else:
                row[:] = ZERO
            seen += 1
        _taps_back(ring[(r + 2) % 3], ring[(r + 1) % 3], ring[r % 3], n, x[r], weight, dx[r], dweight)


# Rows -----------------------------------------------------------------------------------------------------------------


@jit
def _lay_out(x, n, stride, odd, row):
    """A row of x between its padding; with a stride of 2 the padded columns 0, 2, 4, … and, from `odd` on, 1, 3, 5, …"""
    if stride == 1:
        _copy(x, row[n : n + x.size])
    else:
        for w in range(x.size // n):  # column w of the picture is column w + 1 of the row
            to = (w + 1) // 2 * n if w % 2 else odd + w // 2 * n
            _copy(x[w * n : w * n + n], row[to : to + n])


@jit
def _copy(x, to):
    for i in range(x.size):
        to[i] = x[i]


@jit
def _taps(x0, x1, x2, x3, x4, x5, x6, x7, x8, w, z):
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
    s = ZERO
    for i in range(z.size):
        v = w0 * x0[i] + w1 * x1[i] + w2 * x2[i]  # (CONV.8)
        v += w3 * x3[i] + w4 * x4[i] + w5 * x5[i]
        v += w6 * x6[i] + w7 * x7[i] + w8 * x8[i]
        z[i] = v
        s += v
    return s


@jit
def _taps_back(below, same, above, n, x, w, dx, g):
    """What tap (i, j) read at a pixel, it reads for the output one row up (i = 2) or down (i = 0), and so for columns."""
    m = x.size
    h0, h1, h2 = below[2 * n : 2 * n + m], below[n : n + m], below[:m]
    h3, h4, h5 = same[2 * n : 2 * n + m], same[n : n + m], same[:m]
    h6, h7, h8 = above[2 * n : 2 * n + m], above[n : n + m], above[:m]
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8]
    for i in range(m):
        v = x[i]
        e0, e1, e2, e3, e4, e5, e6, e7, e8 = h0[i], h1[i], h2[i], h3[i], h4[i], h5[i], h6[i], h7[i], h8[i]
        d = w0 * e0 + w1 * e1 + w2 * e2  # (CONV.10)
        d += w3 * e3 + w4 * e4 + w5 * e5
        d += w6 * e6 + w7 * e7 + w8 * e8
        dx[i] = d
        s0 += v * e0  # (CONV.9)
        s1 += v * e1
        s2 += v * e2
        s3 += v * e3
        s4 += v * e4
        s5 += v * e5
        s6 += v * e6
        s7 += v * e7
        s8 += v * e8
    g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8] = s0, s1, s2, s3, s4, s5, s6, s7, s8


@jit
def _deviations(z, mean):
    """Σ zc and Σ zc²."""
    s = q = 0.0
    for k in range(0, z.size, BLOCK):
        part = z[k : k + BLOCK]
        t = u = ZERO
        for i in range(part.size):
            d = part[i] - mean
            t += d
            u += d * d
        s += t
        q += u
    return s, q


@jit
def _scale_and_clip(z, mean, a, beta, y):
    for i in range(z.size):
        y[i] = min(max(a * (z[i] - mean) + beta, ZERO), SIX)


@jit
def _masked_sums(dy, z, mean, a, beta):
    """Σ g and Σ g zc."""
    s = q = 0.0
    for k in range(0, z.size, BLOCK):
        grad, part = dy[k : k + BLOCK], z[k : k + BLOCK]
        t = u = ZERO
        for i in range(part.size):
            d = part[i] - mean
            y = a * d + beta
            g = grad[i] * (ZERO if (y <= ZERO) | (y >= SIX) else ONE)  # (DWF.3)
            t += g
            u += g * d
        s += t
        q += u
    return s, q


@jit
def _make_h(dy, z, norm, h):
    _, mean, a, beta, through_mean, through_var = norm
    for i in range(h.size):
        d = z[i] - mean
        y = a * d + beta
        g = dy[i] * (ZERO if (y <= ZERO) | (y >= SIX) else ONE)  # (DWF.3)
        h[i] = g - through_mean - d * through_var  # (DWF.5)
