"""Depthwise convolution on the CPU, as products with banded matrices.

In channel-major order (C, H, W, N) a shift of the picture by one column is a shift of a row by N numbers, and a step down
is a step to the next row. So for one column j of the kernel, everything that it does vertically is one matrix product
    Y_j = T_j @ X,     T_j[p, p·s + i·d - pad] = weight[i, j],     X one channel as an (H × W·N) matrix,
and y is the sum of the Y_j, each shifted by its j·d - pad columns (by slices, with no copy). T_j is banded: it is cut into
blocks of ROWS output rows and the few input rows that they read. In maps so small that the band fills the matrix, one
product with the whole map, (OH·OW × H·W) @ (H·W × N), also takes the horizontal shifts in. Both spend more multiplications
than the nine that are needed and win, because BLAS does them sixteen at a time out of registers.

Measured, ns an output element and thread: whole map 0.45 (4×4), 0.76 (6×6), 1.2 (8×8); band 1.1-1.7 (2-3 with BLAS's
AVX2 kernels); nine shifted multiply-adds 4.5, or 2.0 in a Python loop over channels. dx is the same with T_jᵀ. dweight is
a dot product of shifted rows for each of the nine weights, or the entries of dY · Xᵀ that are weights. With stride 2 the
columns are first split into even and odd ones, so that only what is kept is computed.
"""

import functools
import math

import numpy as np

from scratchnet.kernels import register
from scratchnet.kernels.buffers import empty
from scratchnet.kernels.cpu import REAL
from scratchnet.windows import output_size, tap_slices

WHOLE_MAP = 64  # pixels of an input map up to which one product takes all of it
ROWS = 4  # output rows in a block of the band


def _takes(x, weight, stride, padding, dilation):
    return x.dtype.type in REAL and len(x) == len(weight)


@register("cpu", _takes)
def depthwise_forward(x, weight, stride, padding, dilation):
    """Y = Σ_j T_j @ X, shifted; or one product for the whole of a small map."""
    channels, height, width, n = x.shape
    plan = Plan.of((height, width), weight.shape[2:], stride, padding, dilation)
    y = empty((channels, *plan.out_size, n), x.dtype)
    if plan.whole_map:
        np.matmul(_whole(weight, plan), x.reshape(channels, -1, n), out=y.reshape(channels, -1, n))
        return y
    filters = weight[:, 0].swapaxes(1, 2)  # (C, 1, KH, KW) -> (C, KW, KH)
    for k, (phase, moves) in enumerate(zip(_phases(x, plan), plan.moves, strict=True)):
        _accumulate(y, phase, filters, plan.forward_blocks, moves, fresh=k == 0)
    return y


@register("cpu", lambda dy, x, *geometry: _takes(x, *geometry))
def depthwise_backward(dy, x, weight, stride, padding, dilation):
    """Dx: the same with each T_j transposed and the shifts turned round; dweight: dot products of shifted rows."""
    channels, height, width, n = x.shape
    plan = Plan.of((height, width), weight.shape[2:], stride, padding, dilation)
    dx = empty(x.shape, x.dtype)
    if plan.whole_map:
        grad, images = dy.reshape(channels, -1, n), x.reshape(channels, -1, n)
        np.matmul(_whole(weight, plan).swapaxes(1, 2), grad, out=dx.reshape(channels, -1, n))
        products = grad @ images.swapaxes(1, 2)  # (C, OH·OW, H·W)
        return dx, (products.reshape(channels, -1) @ plan.selector(x.dtype).T).reshape(weight.shape)
    filters, dfilters = weight[:, 0].swapaxes(1, 2), np.zeros_like(weight[:, 0].swapaxes(1, 2))
    for f, (phase, moves) in enumerate(zip(_phases(x, plan), plan.moves, strict=True)):
        dphase = dx if stride[1] == 1 else empty(phase.shape, x.dtype)
        back = [(j, seen, outputs) for j, outputs, seen in moves]
        _accumulate(dphase, dy, filters, plan.backward_blocks, back, fresh=True)
        if dphase is not dx:
            dx[:, :, f :: stride[1]] = dphase
        for i, out_rows, in_rows in plan.row_moves:
            for j, outputs, seen in moves:  # rows of (columns·N) numbers, as long as the shift leaves them
                grad, images = dy[:, out_rows, outputs], phase[:, in_rows, seen]
                dfilters[:, j, i] = np.vecdot(_rows(grad), _rows(images)).sum(axis=1)
    return dx, np.ascontiguousarray(dfilters.swapaxes(1, 2))[:, None]


def _accumulate(out, source, filters, blocks, moves, fresh):
    """Out[:, rows, to] += (T_j @ source[:, rows])[:, from] for each block of rows and each column j of the kernel.

    Args:
        out, source: (C, rows, columns, N).
        filters: (C, KW, KH).
        blocks: (out rows, source rows, selector (KH, R, K)), the selector saying which entry of T_j is which weight.
        moves: (j, columns of out, columns of source) for each column j of the kernel.
        fresh: whether out still holds nothing.
    """
    channels, _, columns, n = out.shape
    for out_rows, source_rows, selector in blocks:
        block = out[:, out_rows]
        rows = source[:, source_rows].reshape(channels, source_rows.stop - source_rows.start, -1)
        bands = filters @ selector.reshape(len(selector), -1).astype(out.dtype)  # (C, KW, KH) @ (KH, R·K)
        bands = bands.reshape(*filters.shape[:2], *selector.shape[1:])
        buffer = None
        written = not fresh
        for j, to, seen in moves:
            whole = to == seen == slice(0, columns) and source.shape[2] == columns
            if whole and not written:
                np.matmul(bands[:, j], rows, out=block.reshape(*block.shape[:2], -1))
                written = True
                continue
            if not written:
                block[...] = 0
                written = True
            if buffer is None:
                buffer = empty((channels, block.shape[1], source.shape[2], n), out.dtype)
            np.matmul(bands[:, j], rows, out=buffer.reshape(*block.shape[:2], -1))
            block[:, :, to] += buffer[:, :, seen]
        if not written:
            block[...] = 0


def _rows(maps):
    """(C, rows, columns, N) -> (C, rows, columns·N), a view when the columns are neighbours."""
    return maps.reshape(*maps.shape[:2], -1)


def _phases(x, plan):
    """The columns of x apart by their position modulo the stride, each (C, H, W/s, N): x itself for stride 1."""
    return (
        [x]
        if plan.stride[1] == 1
        else [np.ascontiguousarray(x[:, :, f :: plan.stride[1]]) for f in range(plan.stride[1])]
    )


def _whole(weight, plan):
    """The convolution of a whole map as a matrix, (C, OH·OW, H·W)."""
    matrices = weight.reshape(len(weight), -1) @ plan.selector(weight.dtype)
    return matrices.reshape(len(weight), math.prod(plan.out_size), -1)


class Plan:
    """What depends on the geometry alone, made once: blocks of rows, moves of columns, and where weights stand in T."""

    @staticmethod
    @functools.cache
    def of(in_size, kernel, stride, padding, dilation):
        """The plan of a geometry, pairs (h, w)."""
        return Plan(in_size, kernel, stride, padding, dilation)

    def __init__(self, in_size, kernel, stride, padding, dilation):
        axes = list(zip(in_size, kernel, stride, padding, dilation, strict=True))
        self.stride = stride
        self.out_size = tuple(output_size(*axis) for axis in axes)
        self.whole_map = in_size[0] * in_size[1] <= WHOLE_MAP
        rows, cols = (_taken(axis, count) for axis, count in zip(axes, self.out_size, strict=True))
        if self.whole_map:
            taken = rows[:, None, :, None, :, None] * cols[None, :, None, :, None, :]  # (KH, KW, OH, OW, H, W)
            self._selectors = {dtype: taken.reshape(kernel[0] * kernel[1], -1).astype(dtype) for dtype in REAL}
        self.forward_blocks = _blocks(rows, ROWS)
        self.backward_blocks = _blocks(rows.swapaxes(1, 2), ROWS * stride[0])
        self.row_moves = []
        for i in range(kernel[0]):
            outputs, seen = tap_slices(i, in_size[0], self.out_size[0], stride[0], padding[0], dilation[0])
            if outputs.start < outputs.stop:
                self.row_moves.append((i, outputs, seen))
        self.moves: list[list[tuple]] = [[] for _ in range(stride[1])]
        for j in range(kernel[1]):
            outputs, seen = tap_slices(j, in_size[1], self.out_size[1], stride[1], padding[1], dilation[1])
            if (
                outputs.start < outputs.stop
            ):  # seen: the pixels start, start + s, …, in their phase start//s, start//s + 1, …
                first, count = seen.start // stride[1], outputs.stop - outputs.start
                self.moves[seen.start % stride[1]].append((j, outputs, slice(first, first + count)))
        for (
            moves
        ) in self.moves:  # a move of every column comes first: its product is written where the others are added
            moves.sort(key=lambda move: move[2].start - move[1].start != 0)

    def selector(self, dtype):
        """(KH·KW, OH·OW·H·W): 1 where that entry of a whole map's matrix is that weight."""
        return self._selectors[np.dtype(dtype).type]


def _taken(axis, count):
    """(K, count, size): whether tap i reads position h at output p, along one axis."""
    size, kernel, stride, padding, dilation = axis
    tap, p, h = np.ogrid[:kernel, :count, :size]
    return h == p * stride + tap * dilation - padding  # (WIN.1)


def _blocks(taken, rows):
    """Cut a band (K, out, in) into blocks of `rows` outputs with the inputs that they read."""
    blocks = []
    for start in range(0, taken.shape[1], rows):
        part = taken[:, start : start + rows]
        read = np.flatnonzero(part.any(axis=(0, 1)))
        source = slice(int(read[0]), int(read[-1]) + 1) if len(read) else slice(0, 1)
        blocks.append((slice(start, start + part.shape[1]), source, part[:, :, source].astype(np.float32)))
    return blocks
