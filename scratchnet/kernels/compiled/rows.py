"""Loops over a row of pixels or a channel, of which the kernels beside this file are made.

Each is one pass, flat, over slices that were taken outside of it. Sums: up to BLOCK numbers are added in the dtype of the
array, several at a time in the lanes of a register; those sums are added in float64.
"""

from scratchnet.kernels.compiled.jit import BLOCK, ONE, SIX, ZERO, jit

# Batch norm -----------------------------------------------------------------------------------------------------------


@jit
def sums(x, centre):
    """Σ (x - centre) and Σ (x - centre)²."""
    s = q = 0.0
    for k in range(0, x.size, BLOCK):
        part = x[k : k + BLOCK]
        t = u = ZERO
        for i in range(part.size):
            d = part[i] - centre
            t += d
            u += d * d
        s += t
        q += u
    return s, q


@jit
def moments(x):
    """Mean and biased variance, (BN.1) and (BN.2): of differences from the mean of the first few numbers, which is near it.

    Were those few all alike and far off, they would be so many of x that its variance were large too.
    """
    few = min(x.size, BLOCK)
    near = x.dtype.type(sums(x[:few], ZERO)[0] / few)
    s, q = sums(x, near)
    return near + s / x.size, max(q / x.size - (s / x.size) ** 2, 0.0)


@jit
def products(dy, x, mean):
    """Σ dy and Σ dy (x - mean)."""
    s = q = 0.0
    for k in range(0, x.size, BLOCK):
        grad, part = dy[k : k + BLOCK], x[k : k + BLOCK]
        t = u = ZERO
        for i in range(part.size):
            t += grad[i]
            u += grad[i] * (part[i] - mean)
        s += t
        q += u
    return s, q


@jit
def scale(x, mean, a, bias, y):
    """y = a (x - mean) + bias."""
    for i in range(x.size):
        y[i] = a * (x[i] - mean) + bias


@jit
def scale_add(x, mean, a, bias, other, y):
    """y = a (x - mean) + bias + other."""
    for i in range(x.size):
        y[i] = a * (x[i] - mean) + bias + other[i]


@jit
def subtract(x, other, shift):
    """x less the other and a number."""
    for i in range(x.size):
        x[i] -= other[i] + shift


@jit
def combine(dy, x, mean, a, through_mean, through_var, dx):
    """dx of batch norm (BN.7)."""
    for i in range(x.size):
        dx[i] = a * (dy[i] - through_mean - (x[i] - mean) * through_var)


# Depthwise convolution, with batch norm and ReLU6 ---------------------------------------------------------------------


@jit
def lay_out(x, before, n, stride, odd, row):
    """A row of x between its padding; with a stride of 2 the padded columns 0, 2, 4, … and, from `odd` on, 1, 3, 5, …"""
    if stride == 1:
        place(x, before, row[n : n + x.size])
    else:
        for w in range(x.size // n):  # column w of the picture is column w + 1 of the row
            to = (w + 1) // 2 * n if w % 2 else odd + w // 2 * n
            place(x[w * n : w * n + n], before, row[to : to + n])


@jit
def place(x, before, to):
    """to = x, or batch norm and ReLU6 of x, where these come before the convolution."""
    clips, mean, a, beta = before
    if clips:
        scale_and_clip(x, mean, a, beta, to)
    else:
        copy(x, to)


@jit
def copy(x, to):
    """to = x."""
    for i in range(x.size):
        to[i] = x[i]


@jit
def taps(x0, x1, x2, x3, x4, x5, x6, x7, x8, w, near, z):
    """A row of z from the pieces of x that its nine taps read; Σ (z - near) and Σ (z - near)²."""
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
    s = q = ZERO
    for i in range(z.size):
        v = w0 * x0[i] + w1 * x1[i] + w2 * x2[i]  # (CONV.8)
        v += w3 * x3[i] + w4 * x4[i] + w5 * x5[i]
        v += w6 * x6[i] + w7 * x7[i] + w8 * x8[i]
        z[i] = v
        d = v - near
        s += d
        q += d * d
    return s, q


@jit
def taps_back(below, same, above, n, x, before, w, dx, total):
    """A row of dx from three padded rows of h; what it adds to nine sums for dweight, and to Σ g and Σ g xc.

    What tap (i, j) read at a pixel, it reads for the output one row up (i = 2) or down (i = 0), and so for columns. Where
    batch norm and ReLU6 come before the convolution, dx is g, the gradient behind them, held where they were (FRONT.3).
    """
    m = x.size
    clips, mean, a, beta = before
    h0, h1, h2 = below[2 * n : 2 * n + m], below[n : n + m], below[:m]
    h3, h4, h5 = same[2 * n : 2 * n + m], same[n : n + m], same[:m]
    h6, h7, h8 = above[2 * n : 2 * n + m], above[n : n + m], above[:m]
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = s = q = ZERO
    if clips:
        for i in range(m):
            e0, e1, e2, e3, e4, e5, e6, e7, e8 = h0[i], h1[i], h2[i], h3[i], h4[i], h5[i], h6[i], h7[i], h8[i]
            d = w0 * e0 + w1 * e1 + w2 * e2  # (CONV.10)
            d += w3 * e3 + w4 * e4 + w5 * e5
            d += w6 * e6 + w7 * e7 + w8 * e8
            centred = x[i] - mean
            y = a * centred + beta
            v = min(max(y, ZERO), SIX)  # (FRONT.2) again
            g = d * (ZERO if (y <= ZERO) | (y >= SIX) else ONE)  # (FRONT.3)
            dx[i] = g
            s += g
            q += g * centred
            s0 += v * e0  # (CONV.9)
            s1 += v * e1
            s2 += v * e2
            s3 += v * e3
            s4 += v * e4
            s5 += v * e5
            s6 += v * e6
            s7 += v * e7
            s8 += v * e8
    else:
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
    total[0] += s0
    total[1] += s1
    total[2] += s2
    total[3] += s3
    total[4] += s4
    total[5] += s5
    total[6] += s6
    total[7] += s7
    total[8] += s8
    total[9] += s
    total[10] += q


@jit
def scale_and_clip(z, mean, a, beta, y):
    """y = a (z - mean) + beta, within [0, 6]."""
    for i in range(z.size):
        y[i] = min(max(a * (z[i] - mean) + beta, ZERO), SIX)


@jit
def masked_sums(dy, z, mean, a, beta):
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
def masked_gradient(dy, z, mean, a, beta, through_mean, through_var, dz):
    """dz of batch norm and ReLU6, (RELU6.2) and (BN.7)."""
    for i in range(z.size):
        d = z[i] - mean
        y = a * d + beta
        g = dy[i] * (ZERO if (y <= ZERO) | (y >= SIX) else ONE)
        dz[i] = a * (g - through_mean - d * through_var)


@jit
def make_h(dy, z, norm, h):
    """A row of h, the gradient of z but for its scale."""
    _, mean, a, beta, through_mean, through_var = norm
    for i in range(h.size):
        d = z[i] - mean
        y = a * d + beta
        g = dy[i] * (ZERO if (y <= ZERO) | (y >= SIX) else ONE)  # (DWF.3)
        h[i] = g - through_mean - d * through_var  # (DWF.5)
