"""The loops of dense.py. x and dx are (C, H, W·N); z, y, dy and h (O, OH·OW·N); cols (C·KH·KW, a strip's numbers).

A strip is a few pixels of the output, one after another, with all pictures: so many that a product of it is small
(blas.py). What its windows read is copied into `cols`, as whole pieces of a row where the stride is 1.

`geometry` is (KH, KW, stride, stride, padding, padding, dilation, dilation, W, OW, N).
"""

from scratchnet.kernels.compiled.blas import multiply, multiply_transposed
from scratchnet.kernels.compiled.jit import ZERO, bare, jit, take
from scratchnet.kernels.compiled.rows import copy, make_h


@jit
def forward(counter, found, x, weight, geometry, pixels, height, z, parts, scratch):
    """The convolution."""
    x, weight, z, scratch = bare(x), bare(weight), bare(z), bare(scratch)
    width, n = geometry[9], geometry[10]
    part = take(counter)
    while part < parts:
        first, end = rows_of(part, parts, height)
        for a in range(first * width, end * width, pixels):
            b = min(a + pixels, end * width)
            cols, out = scratch[len(z) :, : (b - a) * n], scratch[: len(z), : (b - a) * n]
            _visit(x, scratch, len(z), a, b, geometry, False)  # (CONV.2)
            multiply(found, weight, cols, out, False)  # (CONV.3), (STEM.1)
            for o in range(len(z)):  # row by row to memory, which a product would go to in pieces
                copy(scratch[o, : (b - a) * n], z[o, a * n : b * n])
        part = take(counter)


@jit
def backward(counter, found, dy, z, norm, fused, x, weight, geometry, pixels, height, dx, dweight, scratch):
    """What each part adds to dx (parts, C, H, W·N) and to dweight (parts, O, K); weight is (K, O)."""
    dy, z, x, weight = bare(dy), bare(z), bare(x), bare(weight)
    dx, dweight, scratch = bare(dx), bare(dweight), bare(scratch)
    width, n = geometry[9], geometry[10]
    part = take(counter)
    while part < len(dweight):
        first, end = rows_of(part, len(dweight), height)
        low, high = _rows_read(first, end, geometry, x.shape[1])
        into, products = dx[part], dweight[part]
        if len(dweight) == 1:
            into[:] = ZERO
        else:
            into[:, low:high] = ZERO
        for a in range(first * width, end * width, pixels):
            b = min(a + pixels, end * width)
            h, cols = scratch[: len(z), : (b - a) * n], scratch[len(z) :, : (b - a) * n]
            _visit(x, scratch, len(z), a, b, geometry, False)  # (CONV.2)
            for o in range(len(z)):
                _make(dy[o, a * n : b * n], z[o, a * n : b * n], norm[o], fused, scratch[o, : (b - a) * n])
            multiply_transposed(found, h, cols, products, a > first * width)  # (CONV.5), (STEM.7)
            multiply(found, weight, h, cols, False)  # (CONV.6)
            _visit(into, scratch, len(z), a, b, geometry, True)  # (CONV.7), (STEM.8)
        part = take(counter)


@jit
def gather(counter, parts, geometry, height, dx):
    """The rows of dx: what the parts have for them, added in order."""
    parts, dx = bare(parts), bare(dx)
    r = take(counter)
    while r < dx.shape[1]:
        dx[:, r] = ZERO
        for part in range(len(parts)):
            first, end = rows_of(part, len(parts), height)
            low, high = _rows_read(first, end, geometry, dx.shape[1])
            if low <= r < high:
                for c in range(len(dx)):
                    _add(parts[part, c, r], dx[c, r])
        r = take(counter)


# One strip ------------------------------------------------------------------------------------------------------------


@jit
def _make(dy, z, norm, fused, h):
    """A row of h; without batch norm it is dy."""
    if fused:
        make_h(dy, z, (False, norm[0], norm[1], norm[2], norm[3], norm[4]), h)  # (STEM.4), (STEM.6)
    else:
        copy(dy, h)


@jit
def _visit(x, scratch, above_cols, a, b, geometry, back):
    """What each tap reads for the output's pixels a to b, copied to cols; or, `back`, cols added to where it was read.

    Cols are the rows of scratch from `above_cols` on: rows of a part of an array would be no rows of neighbours to Numba.
    """
    kh, kw, stride_h, stride_w, above, left, dilation_h, dilation_w, size, width, n = geometry
    for k in range(len(x) * kh * kw):
        c, i, j = k // (kh * kw), k // kw % kh, k % kw
        offset = j * dilation_w - left  # (WIN.1)
        begin, finish = -(offset // stride_w), (size - 1 - offset) // stride_w + 1  # the outputs that read no padding
        for p in range(a // width, (b - 1) // width + 1):
            start, stop = max(a - p * width, 0), min(b - p * width, width)
            piece = scratch[above_cols + k, (p * width + start - a) * n : (p * width + stop - a) * n]
            r = p * stride_h + i * dilation_h - above  # (WIN.1)
            first = min(max(start, begin), stop)
            last = max(first, min(stop, finish)) if 0 <= r < x.shape[1] else first
            if not back:
                piece[: (first - start) * n] = ZERO
                piece[(last - start) * n :] = ZERO
            if first == last:
                continue
            step = last - first if stride_w == 1 else 1  # outputs that read neighbouring pixels
            row = x[c, r]
            for q in range(first, last, step):
                at = (q * stride_w + offset) * n
                seen, out = row[at : at + step * n], piece[(q - start) * n : (q - start + step) * n]
                if back:
                    _add(out, seen)
                else:
                    copy(seen, out)


@jit
def _add(x, to):
    for i in range(x.size):
        to[i] += x[i]


@jit
def rows_of(part, parts, height):
    """The rows of the output in a part (`cuts.split`)."""
    return height * part // parts, height * (part + 1) // parts


@jit
def _rows_read(first, end, geometry, size):
    """The rows of x that these rows of the output read."""
    low = first * geometry[2] - geometry[4]
    high = (end - 1) * geometry[2] - geometry[4] + (geometry[0] - 1) * geometry[6] + 1
    low = min(max(low, 0), size)
    return low, max(low, min(high, size))
