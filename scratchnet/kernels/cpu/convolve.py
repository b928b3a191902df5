"""How depthwise.py convolves: every channel by itself, as matrix products.

A channel has nine weights and nothing to multiply them with at once: tap by tap, every pixel travels through the core nine
times, at 3-6 ns an output. A matrix product with the weights written into a mostly empty matrix spends many more
multiplications and still wins, because BLAS does sixteen at a time out of registers. In channel-major order (C, H, W, N)
there are two ways to write them:

Rows (any geometry). One row of output pixels, q = 0…OW-1, is a product with the input rows that it reads, which lie one
behind the other in memory as one matrix of pixels by pictures:
    Y[p] = T @ X[rows of p],     T[q, (h, w)] = weight[i, j]  where tap (i, j) of output q reads pixel (h, w)    (DWK.1)
T (OW × 3·W) is the same for every row p away from the border, so that one call computes all of them, over a view of X whose
rows overlap. It spends 6·W flops an output: nothing for small maps, too much for wide ones.

Band (wide maps, stride 1). A shift of the picture by a column is a shift of the matrix (H × W·N) by N numbers, so that what
column j of the kernel does vertically is a product with a banded matrix, and the three are added with a shift:
    Y = Σ_j shift(T_j @ X, j),     T_j[p, h] = weight[i, j]  where tap i of row p reads row h                   (DWK.2)
The three T_j of a few rows are one matrix, so that BLAS packs X once; it spends 30 flops an output.

Measured, ns an element of a 3×3 and thread (batch 64, AVX2): rows 0.9 (8×8), 1.4 (12×12), 1.8 (16×16), 3.0 (32×32); band
1.6 (16×16), 1.7 (32×32), 1.8 (48×48). dx is the same with T transposed. dweight is the entries of dY · Xᵀ that are weights,
or, cheaper in wide maps (1.1 for nine of them), one dot product of shifted rows for each weight.
"""

import functools
from typing import NamedTuple

import numpy as np

from scratchnet.kernels.cpu.buffers import empty
from scratchnet.windows import output_size, tap_slices

ROWS_UP_TO = 20  # columns of a map up to which products with whole rows cost less than the band
DOTS_FROM = 9  # columns from which dot products cost less than the product dY · Xᵀ
WHOLE_MAP = 36  # pixels of a map up to which one product takes all of its rows: a call costs more than the arithmetic
BAND = 2  # output rows in one product of the band
ALL = np.ones((1, 1, 1), bool)  # a row's pixels as one column


def convolve(y, x, weight, geometry):
    """Write the convolution of x (C, H, W, N) into y (C, OH, OW, N)."""
    if geometry.is_wide:
        _band(y, x, weight, geometry.bands, geometry.moves)
    else:
        _rows(y, x, weight, geometry.blocks)


def convolve_back(dx, dy, weight, geometry):
    """Write the gradient of x into dx."""
    if geometry.is_wide:
        _band(dx, dy, weight, geometry.bands_back, [(j, seen, to) for j, to, seen in geometry.moves])
    else:
        _rows(dx, dy, weight, geometry.blocks_back)


def weight_gradient(dy, x, weight, geometry):
    """The gradient of weight, like weight."""
    return (_dots if geometry.by_dots else _products)(dy, x, weight, geometry)


# Rows ----------------------------------------------------------------------------------------------------------------


def _rows(out, source, weight, blocks):  # (DWK.1)
    for block in blocks:
        matrices = _filters(weight) @ block.selector(out.dtype)
        matrices = matrices.reshape(len(out), 1, block.pixels(out), -1)
        np.matmul(matrices, block.windows(source), out=block.of(out))


def _products(dy, x, weight, geometry):
    """The entries of dY · Xᵀ that are weights, added up over the rows."""
    dfilters = np.zeros_like(_filters(weight))
    for block in geometry.blocks:
        products = block.of(dy) @ block.windows(x).swapaxes(2, 3)  # (C, repeats, R·OW, N) @ (C, repeats, N, span·W)
        dfilters += products.sum(axis=1).reshape(len(x), -1) @ block.selector(x.dtype).T
    return dfilters.reshape(weight.shape)


def _filters(weight):
    return weight.reshape(len(weight), -1)  # (C, 1, KH, KW) -> (C, KH·KW)


class Block(NamedTuple):
    """`repeats` times `rows` rows of the result, one behind the other, which all read their source in the same way."""

    first: int  # the first row of the result
    rows: int
    repeats: int
    source: int  # the first row that the first of them reads
    step: int  # source rows from one to the next
    span: int  # source rows that one reads
    taken: np.ndarray  # (KH·KW, rows·columns·span·source columns): 1 where that entry of the matrix is that weight

    def of(self, out):
        """Their part of the result (C, rows, columns, N), as (C, repeats, rows·columns, N)."""
        part = out[:, self.first : self.first + self.repeats * self.rows]
        return part.reshape(len(out), self.repeats, self.pixels(out), -1)

    def pixels(self, out):
        """Output pixels of one product."""
        return self.rows * out.shape[2]

    def windows(self, source):
        """What they read of source (C, H, W, N), as (C, repeats, span·W, N): a view, whose parts overlap."""
        c, h, w, n = source.shape
        pixel = n * source.itemsize  # from the shape: the stride of an axis of size 1 may be anything
        strides = h * w * pixel, self.step * w * pixel, pixel, source.itemsize
        shape = c, self.repeats, self.span * w, n
        return np.ndarray(shape, source.dtype, np.ascontiguousarray(source), self.source * w * pixel, strides)

    def selector(self, dtype):
        """`taken` in a dtype."""
        return self.taken.astype(dtype, copy=False)


# Band ----------------------------------------------------------------------------------------------------------------


def _band(out, source, weight, blocks, moves):  # (DWK.2)
    """Out[:, rows, to] = Σ (T_j @ source[:, rows])[:, seen] over the moves (j, to, seen) of the kernel's columns."""
    c, h, w, n = source.shape
    whole = w == out.shape[2] and any(to.start == seen.start for _, to, seen in moves[:1])
    filters = weight[:, 0].swapaxes(1, 2)[:, [j for j, _, _ in moves]]  # (C, 1, KH, KW) -> (C, moves, KH)
    for block in blocks:
        matrices = (filters @ block.selector(out.dtype)).reshape(c, 1, len(moves) * block.rows, block.span)
        windows = block.windows(source.reshape(c, h, 1, w * n))  # (C, repeats, span, W·N)
        product = empty((*windows.shape[:2], len(moves) * block.rows, w * n), out.dtype)
        np.matmul(matrices, windows, out=product)
        product = product.reshape(*windows.shape[:2], len(moves), block.rows, w, n)
        rows = out[:, block.first : block.first + block.repeats * block.rows]
        rows = rows.reshape(*windows.shape[:2], block.rows, *out.shape[2:])
        rows[...] = product[:, :, 0] if whole else 0
        for k, (_, to, seen) in list(enumerate(moves))[whole:]:
            rows[:, :, :, to] += product[:, :, k, :, seen]


def _dots(dy, x, weight, geometry):
    """A dot product of shifted rows for each weight: the dot of each row of pixels, then their sum."""
    dweight = np.zeros_like(weight)
    for i, out_rows, in_rows in geometry.row_moves:
        for j, to, seen in geometry.moves:
            grad, images = dy[:, out_rows, to], x[:, in_rows, seen]
            dweight[:, 0, i, j] = np.vecdot(_long(grad), _long(images)).sum(axis=1)
    return dweight


def _long(maps):
    return maps.reshape(*maps.shape[:2], -1)  # (C, rows, columns, N) -> (C, rows, columns·N), a view


# What depends on the geometry alone ----------------------------------------------------------------------------------


@functools.lru_cache(64)
def geometry_of(in_size, kernel, stride, padding, dilation):
    """The `Geometry` of pairs (h, w), made once."""
    return Geometry(in_size, kernel, stride, padding, dilation)


class Geometry:
    """The blocks, bands and moves of a convolution, each made when it is first read."""

    def __init__(self, in_size, kernel, stride, padding, dilation):
        self._axes = list(zip(in_size, kernel, stride, padding, dilation, strict=True))
        self.out_size = tuple(output_size(*axis) for axis in self._axes)
        self.is_wide = stride == (1, 1) and in_size[1] > ROWS_UP_TO
        self.by_dots = stride == (1, 1) and in_size[1] >= DOTS_FROM
        self._is_small = in_size[0] * in_size[1] <= WHOLE_MAP
        self.row_moves, self.moves = (
            _moves(axis, count) for axis, count in zip(self._axes, self.out_size, strict=True)
        )

    def _taken(self):
        return [_taken(axis, count) for axis, count in zip(self._axes, self.out_size, strict=True)]

    @functools.cached_property
    def blocks(self):
        """Of y, by whole rows."""
        rows, columns = self._taken()
        return _blocks(rows, columns, self.out_size[0] if self._is_small else 1)

    @functools.cached_property
    def blocks_back(self):
        """Of dx, by whole rows."""
        rows, columns = (taken.swapaxes(1, 2) for taken in self._taken())
        size, _, stride, _, _ = self._axes[0]
        return _blocks(rows, columns, size if self._is_small else stride)  # after a stride the reading repeats

    @functools.cached_property
    def bands(self):
        """Of y, by columns."""
        return _blocks(self._taken()[0], ALL, BAND)

    @functools.cached_property
    def bands_back(self):
        """Of dx, by columns."""
        return _blocks(self._taken()[0].swapaxes(1, 2), ALL, BAND)


def _taken(axis, count):
    """(K, count, size): whether tap i reads position h at output p, along one axis."""
    size, kernel, stride, padding, dilation = axis
    tap, p, h = np.ogrid[:kernel, :count, :size]
    return h == p * stride + tap * dilation - padding  # (WIN.1)


def _blocks(rows, columns, height):
    """The rows of the result, `height` at a time, those that read alike joined.

    Args:
        rows: (KH, out, in), which tap reads which row.
        columns: (KW, out, in), the same for columns.
        height: rows of the result in one product.
    """
    blocks: list[Block] = []
    for first in range(0, rows.shape[1], height):
        part = rows[:, first : first + height]
        read = _read(part)
        taken = np.einsum("irs,jqw->ijrqsw", part[:, :, read], columns).reshape(rows.shape[0] * columns.shape[0], -1)
        block = Block(first, part.shape[1], 1, read.start, 0, read.stop - read.start, taken.astype(np.float32))
        last = blocks[-1] if blocks else None
        if last and last.rows == block.rows and last.span == block.span and np.array_equal(last.taken, block.taken):
            step = block.source - last.source - last.step * (last.repeats - 1)
            if last.repeats == 1 or step == last.step:
                blocks[-1] = last._replace(repeats=last.repeats + 1, step=step)
                continue
        blocks.append(block)
    return blocks


def _read(taken):
    """The rows of the source that some rows read, as a slice: empty where they read nothing but padding."""
    read = np.flatnonzero(taken.any(axis=(0, 1)))
    return slice(int(read[0]), int(read[-1]) + 1) if len(read) else slice(0, 0)


def _moves(axis, count):
    """(tap, outputs, what it reads for them) for each tap along one axis that reads anything; one that covers all first."""
    size, kernel, stride, padding, dilation = axis
    moves = [(tap, *tap_slices(tap, size, count, stride, padding, dilation)) for tap in range(kernel)]
    moves = [move for move in moves if move[1].start < move[1].stop]
    return sorted(moves, key=lambda move: move[1].start != move[2].start)
