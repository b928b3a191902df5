"""What a program (program.py) computes with: a few rows and columns of a product, and nine taps, in a core's registers.

Compilers do not keep a block of a product in registers when they are given three loops, so these two are written down
as instructions on vectors. A tile is ROWS × VECTORS vectors of Y = W X + bias: for each k it loads VECTORS vectors of
row k of X and ROWS numbers of column k of W, each where it lies, and adds their products to all sums of the tile.
Nothing is packed or copied. Measured, GFLOP/s a core: 100–115 for all products of MobileNetV2, also for those with 16
columns (OpenBLAS: 30–95).

Every number is one chain of additions, each fused with its product, in the order of k (of the taps), whichever tile,
end or thread it falls to: so its bits depend on nothing else.
"""

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from scratchnet.kernels.compiled.jit import PYTHON

_features = llvmlite.binding.get_host_cpu_features()
if _features.get("avx512f"):  # 32 registers of 64 bytes
    LANE_BYTES, ROWS, VECTORS = 64, 8, 2
elif _features.get("fma"):  # 16 of 32 bytes
    LANE_BYTES, ROWS, VECTORS = 32, 4, 2
else:  # 32 of 16 bytes on ARM
    LANE_BYTES, ROWS, VECTORS = 16, 8, 2
FUSES = bool(_features.get("fma")) or llvmlite.binding.get_process_triple().startswith(("aarch64", "arm64"))
INT, INDEX, BIT = ir.IntType(32), ir.IntType(64), ir.IntType(1)

if PYTHON:

    @np.errstate(all="ignore")  # as in compiled code
    def tile(w, r, x, c, count, bias, more, add, y, clip):
        """ROWS rows from r on and so many columns from c on of W X + bias; plus `more` if `add`; clipped if `clip`."""
        rows, columns = slice(r, min(r + ROWS, len(w))), slice(c, c + count)
        part = w[rows] @ x[:, columns] + bias[rows, None]
        part = part + more[rows, columns] if add else part
        y[rows, columns] = np.clip(part, 0, 6) if clip else part

    wide_tile = end_tile = tile

    @np.errstate(all="ignore")
    def nine_taps(x, start, apart, width, w, bias, c, end, masks, vectors, y, to, y_apart, clip):
        """Channels c … end - 1 of a depthwise convolution, so many vectors each; a tap counts where its mask says so.

        Args:
            x, start, apart: where channel c begins, and how far on the next one.
            width: of a picture, so that the pixel above lies so far before.
            w, bias: nine weights a channel, and one.
            y, to, y_apart: as for x.
            clip: whether at 0 and 6.
        """
        lanes = LANE_BYTES // x.itemsize
        for k in range(end - c):
            for v in range(vectors):
                total, first = np.full(lanes, bias[c + k], x.dtype), start + k * apart + v * lanes
                for t in range(9):
                    for lane in range(lanes):
                        if masks[9 * v + t] >> lane & 1:
                            total[lane] += w[9 * (c + k) + t] * x[first + (t // 3 - 1) * width + t % 3 - 1 + lane]
                at = to + k * y_apart + v * lanes
                y[at : at + lanes] = np.clip(total, 0, 6) if clip else total

else:

    class _Vectors:
        """Instructions on vectors of one dtype."""

        def __init__(self, context, builder, dtype):
            self.builder, self.real = builder, context.get_value_type(dtype)
            self.itemsize = context.get_abi_sizeof(self.real)
            self.lanes = LANE_BYTES // self.itemsize
            self.kind = ir.VectorType(self.real, self.lanes)
            name = f"llvm.fma.v{self.lanes}f{8 * self.itemsize}"
            self._fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(self.kind, [self.kind] * 3), name
            )

        def pointer(self, start, *steps):
            """`start`, a pointer, further on by as many numbers."""
            for step in steps:
                start = self.builder.gep(start, [step if isinstance(step, ir.Value) else INDEX(step)])
            return start

        def place(self, array, row, column):
            """Where a number of a matrix lies."""
            apart = self.builder.sdiv(self.builder.extract_value(array.strides, 0), INDEX(self.itemsize))
            return self.pointer(array.data, self.builder.mul(row, apart), column)

        def load(self, place):
            """The vector that begins there."""
            found = self.builder.load(self.builder.bitcast(place, self.kind.as_pointer()))
            found.align = self.itemsize
            return found

        def store(self, vector, place):
            """Write a vector there."""
            self.builder.store(vector, self.builder.bitcast(place, self.kind.as_pointer())).align = self.itemsize

        def spread(self, number):
            """A number in every lane."""
            none = ir.Constant(self.kind, ir.Undefined)
            first = self.builder.insert_element(none, number, INT(0))
            return self.builder.shuffle_vector(
                first, none, ir.Constant(ir.VectorType(INT, self.lanes), [0] * self.lanes)
            )

        def add_product(self, total, a, b):
            """total + a b, rounded once."""
            return self.builder.call(self._fma, [a, b, total])

        def bounds(self, clip):
            """0 and 6 if `clip`, else none; as vectors."""
            pairs = ((0.0, float("-inf")), (6.0, float("inf")))
            return [self.spread(self.builder.select(clip, self.real(held), self.real(free))) for held, free in pairs]

        def within(self, vector, bounds):
            """Held at the bounds; NaN, which is beyond neither, passes."""
            for beyond, bound in zip("<>", bounds, strict=True):
                vector = self.builder.select(self.builder.fcmp_ordered(beyond, vector, bound), bound, vector)
            return vector

    def _make_tile(count, end):
        @intrinsic
        def tile(typing_context, w, r, x, c, columns, bias, more, add, y, clip):
            """ROWS rows from r on and so many columns from c on of W X + bias; plus `more` if `add`; clipped if `clip`."""

            def code(context, builder, signature, arguments):
                its = _Vectors(context, builder, w.dtype)
                _, r_, _, c_, columns_, _, _, add_, _, clip_ = arguments
                w_, x_, bias_, more_, y_ = (
                    make_array(signature.args[k])(context, builder, arguments[k]) for k in (0, 2, 5, 6, 8)
                )
                last = builder.sub(builder.extract_value(w_.shape, 0), INDEX(1))
                rows = [builder.add(r_, INDEX(k)) for k in range(ROWS)]  # behind the last row it is computed again
                rows = [builder.select(builder.icmp_signed("<", row, last), row, last) for row in rows]
                offsets = [k * its.lanes for k in range(count)]
                tile = [[cgutils.alloca_once(builder, its.kind) for _ in offsets] for _ in rows]
                for row, sums in zip(rows, tile, strict=True):
                    for place in sums:
                        builder.store(its.spread(builder.load(its.pointer(bias_.data, row))), place)
                with builder.if_then(add_):
                    for row, sums in zip(rows, tile, strict=True):
                        for offset, place in zip(offsets, sums, strict=True):
                            seen = its.load(its.pointer(its.place(more_, row, c_), offset))
                            builder.store(builder.fadd(builder.load(place), seen), place)
                of_w = [its.place(w_, row, INDEX(0)) for row in rows]
                with cgutils.for_range(builder, builder.extract_value(w_.shape, 1)) as loop:
                    of_x = its.place(x_, loop.index, c_)
                    seen = [its.load(its.pointer(of_x, offset)) for offset in offsets]
                    for weights, sums in zip(of_w, tile, strict=True):
                        weight = its.spread(builder.load(its.pointer(weights, loop.index)))
                        for vector, place in zip(seen, sums, strict=True):
                            builder.store(its.add_product(builder.load(place), weight, vector), place)
                bounds = its.bounds(clip_)
                for row, sums in zip(rows, tile, strict=True):
                    for offset, place in zip(offsets, sums, strict=True):
                        made, to = its.within(builder.load(place), bounds), its.place(y_, row, c_)
                        if not end:
                            its.store(made, its.pointer(to, offset))
                            continue
                        builder.store(made, place)  # nothing is written behind the last column
                        first = builder.bitcast(place, its.real.as_pointer())
                        with cgutils.for_range(builder, columns_) as loop:
                            number = builder.load(its.pointer(first, loop.index))
                            builder.store(number, its.pointer(to, loop.index))
                return context.get_dummy_value()

            kinds = w, types.int64, x, types.int64, types.int64, bias, more, types.boolean, y, types.boolean
            return types.void(*kinds), code

        return tile

    wide_tile, tile, end_tile = _make_tile(VECTORS, False), _make_tile(1, False), _make_tile(1, True)

    @intrinsic
    def nine_taps(typing_context, x, start, apart, width, w, bias, c, end, masks, vectors, y, to, y_apart, clip):
        """Channels c … end - 1 of a depthwise convolution, so many vectors each; a tap counts where its mask says so.

        Args:
            x, start, apart: where channel c begins, and how far on the next one.
            width: of a picture, so that the pixel above lies so far before.
            w, bias: nine weights a channel, and one.
            y, to, y_apart: as for x.
            clip: whether at 0 and 6.
        """

        def code(context, builder, signature, arguments):
            its = _Vectors(context, builder, x.dtype)
            _, start_, apart_, width_, _, _, c_, end_, _, vectors_, _, to_, y_apart_, clip_ = arguments
            x_, w_, bias_, masks_, y_ = (
                make_array(signature.args[k])(context, builder, arguments[k]) for k in (0, 4, 5, 8, 10)
            )
            bounds, lane_bits = its.bounds(clip_), ir.IntType(its.lanes)
            with cgutils.for_range(builder, builder.sub(end_, c_)) as channels:
                channel = builder.add(c_, channels.index)
                of_w = its.pointer(w_.data, builder.mul(channel, INDEX(9)))
                weights = [its.spread(builder.load(its.pointer(of_w, tap))) for tap in range(9)]
                first = its.spread(builder.load(its.pointer(bias_.data, channel)))
                line = its.pointer(x_.data, start_, builder.mul(channels.index, apart_))
                lines = [its.pointer(line, builder.mul(width_, INDEX(down))) for down in (-1, 0, 1)]
                out = its.pointer(y_.data, to_, builder.mul(channels.index, y_apart_))
                with cgutils.for_range(builder, vectors_) as loop:
                    total, at = first, builder.mul(loop.index, INDEX(its.lanes))
                    these = builder.gep(masks_.data, [builder.mul(loop.index, INDEX(9))])
                    for tap, weight in enumerate(weights):
                        seen = its.load(its.pointer(lines[tap // 3], at, tap % 3 - 1))
                        more = its.add_product(total, weight, seen)
                        mask = builder.trunc(builder.load(builder.gep(these, [INDEX(tap)])), lane_bits)
                        inside = builder.bitcast(mask, ir.VectorType(BIT, its.lanes))
                        total = builder.select(inside, more, total) if tap != 4 else more
                    its.store(its.within(total, bounds), its.pointer(out, at))
            return context.get_dummy_value()

        of_x, of_y = (types.int64,) * 3, (types.int64,) * 2
        range_ = types.int64, types.int64
        return types.void(x, *of_x, w, bias, *range_, masks, types.int64, y, *of_y, types.boolean), code
