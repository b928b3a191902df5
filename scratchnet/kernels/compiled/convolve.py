"""Depthwise 3×3 convolution of one channel, padding 1, stride 1 or 2: the loops of depthwise.py and front.py.

x and dx are (H, W·N); z and dy (OH·OW·N); a channel's weight has nine numbers. Rows are read once, into three padded rows
that lie in the inner cache: row r is ring[(r + 1) % 3]. With a stride of 2, forward lays even and odd columns apart there,
so that what a tap reads is one piece; backward spreads h out, with zeros where no window begins, so that it is the loop of
stride 1.

`before` says what comes before the convolution: (whether batch norm and ReLU6 do, their mean, a and beta); `behind` what
comes behind it: (whether batch norm and ReLU6 do, their mean, a, beta, and the two terms of (DWF.5)).
"""

from scratchnet.kernels.compiled.jit import ZERO, jit
from scratchnet.kernels.compiled.rows import copy, lay_out, make_h, sums, taps, taps_back

SUMS = 11  # of `convolve_back`: nine for dweight, two for what may come before


@jit
def convolve(x, before, weight, n, stride, height, ring, z):
    """Z, its mean and its biased variance."""
    width = z.size // height
    one, two = (n, 2 * n) if stride == 1 else (width + n, n)  # where the second and the third column's taps begin
    near = ZERO * weight[0]
    ring[:] = ZERO  # the padding, and the row above the picture
    seen, s, q = 0, 0.0, 0.0
    for p in range(height):
        while seen < p * stride + 2:
            row = ring[(seen + 1) % 3]
            if seen < x.shape[0]:
                lay_out(x[seen], before, n, stride, width + n, row)
            else:
                row[:] = ZERO  # the row below it
            seen += 1
        a, b, c = ring[p * stride % 3], ring[(p * stride + 1) % 3], ring[(p * stride + 2) % 3]
        x0, x1, x2 = a[:width], a[one : one + width], a[two : two + width]
        x3, x4, x5 = b[:width], b[one : one + width], b[two : two + width]
        x6, x7, x8 = c[:width], c[one : one + width], c[two : two + width]
        out = z[p * width : (p + 1) * width]
        t, u = taps(x0, x1, x2, x3, x4, x5, x6, x7, x8, weight, near, out)
        if p == 0:  # differences from a number that is near the mean: see rows.moments
            near = z.dtype.type(t / width)
            t, u = sums(out, near)
        s += t
        q += u
    return near + s / z.size, max(q / z.size - (s / z.size) ** 2, 0.0)


@jit
def convolve_back(dy, z, behind, x, before, weight, n, stride, height, ring, dx, total):
    """Dx; nine sums for dweight, and Σ dx and Σ dx xc where batch norm and ReLU6 come before, are added to `total`."""
    width, normed = dy.size // height, behind[0]
    piece = width if stride == 1 else n
    ring[:] = ZERO
    seen = 0
    for r in range(x.shape[0]):
        while seen < r + 2:
            row, p = ring[(seen + 1) % 3], seen // stride
            if seen % stride == 0 and p < height:
                for q in range(0, width, piece):
                    k, to = p * width + q, n + q * stride
                    if normed:
                        make_h(dy[k : k + piece], z[k : k + piece], behind, row[to : to + piece])
                    else:
                        copy(dy[k : k + piece], row[to : to + piece])
            else:
                row[:] = ZERO
            seen += 1
        taps_back(ring[(r + 2) % 3], ring[(r + 1) % 3], ring[r % 3], n, x[r], before, weight, dx[r], total)
