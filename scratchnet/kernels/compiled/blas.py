"""Matrix products inside compiled loops: the BLAS that NumPy itself multiplies with, called without Python.

A panel of an array is then made, multiplied and used while it lies in the inner cache, by one loop that holds no lock.

OpenBLAS packs both factors of a product into buffers before it multiplies, except where the product has at most 10⁶
multiply-adds (on CPUs with AVX-512): for these it has kernels that read them where they lie. Products here have few rows or
a short sum, where packing takes as long as multiplying, so they are cut to that size. Measured, GFLOP/s a core, 24 → 144
channels: whole rows 44, sixteen rows and one row of pixels at a time 88; 8 → 48 channels: 21 and 86.
"""

import ctypes
import functools

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from threadpoolctl import ThreadpoolController

from scratchnet.kernels.compiled.jit import PYTHON, jit

FEW_ROWS = 16  # of a product's result that are computed by one call
WITHOUT_PACKING = 1_000_000  # multiply-adds of a call
WITHOUT_PACKING_TRANSPOSED = 1 << 10  # numbers of its result, where it also transposes
PANEL = 1 << 10  # columns of a wide array that stay in the inner cache
PACKED = 1 << 12  # columns of a call where OpenBLAS packs whatever the size
HAVE_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "Sapphirerapids")  # OpenBLAS's names for kinds of CPU
ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112  # CBLAS's names for them


@functools.cache
def blas(dtype):
    """How compiled loops multiply matrices of a dtype; None where NumPy's BLAS is another than OpenBLAS.

    What is found is tried once: it must agree with NumPy.
    """
    letter = {"float32": "s", "float64": "d"}.get(np.dtype(dtype).name)
    for library in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        for prefix in ("scipy_", ""):
            for suffix, width in (("64_", np.int64), ("_64", np.int64), ("", np.int32)):
                function = getattr(library.dynlib, f"{prefix}cblas_{letter}gemm{suffix}", None)
                if letter and function is not None:
                    address = ctypes.cast(function, ctypes.c_void_p).value or 0
                    found = np.int64(address), width(0), library.architecture in HAVE_SMALL_KERNELS
                    return found if _agrees(found, dtype) else None
    return None


def _agrees(found, dtype):
    a, b, c = np.arange(6.0, dtype=dtype).reshape(2, 3), np.ones((3, 4), dtype), np.zeros((2, 4), dtype)
    multiply(found, a, b, c, False)
    return np.array_equal(c, a @ b)


if PYTHON:

    def _gemm(found, transposed, a, b, c, add):
        product = a @ (b.T if transposed else b)
        c[...] = c + product if add else product

else:

    @intrinsic
    def _gemm(typing_context, found, transposed, a, b, c, add):
        """c = a @ b, or a @ b.T, or that added to c: matrices whose rows may lie apart."""
        number, size = a.dtype, found.types[1]

        def code(context, builder, signature, arguments):
            found_, transposed_, *matrices, add_ = arguments
            enum, width, real = ir.IntType(32), context.get_value_type(size), context.get_value_type(number)
            address, itemsize = builder.extract_value(found_, 0), context.get_abi_sizeof(real)
            a_, b_, c_ = (
                make_array(kind)(context, builder, matrix)
                for kind, matrix in zip(signature.args[2:5], matrices, strict=True)
            )

            def whole(value):
                return builder.trunc(value, width) if width.width < 64 else value

            def entry(pair, k):
                return builder.extract_value(pair, k)

            def apart(matrix):  # of a single row NumPy may say anything
                rows = builder.sdiv(entry(matrix.strides, 0), ir.Constant(ir.IntType(64), itemsize))
                long = builder.icmp_signed(">", rows, entry(matrix.shape, 1))
                return whole(builder.select(long, rows, entry(matrix.shape, 1)))

            (m, k), n = (whole(entry(a_.shape, i)) for i in (0, 1)), whole(entry(c_.shape, 1))
            how = builder.select(transposed_, ir.Constant(enum, TRANSPOSED), ir.Constant(enum, AS_IS))
            beta = builder.select(add_, ir.Constant(real, 1.0), ir.Constant(real, 0.0))
            values = [
                ir.Constant(enum, ROW_MAJOR), ir.Constant(enum, AS_IS), how, m, n, k, ir.Constant(real, 1.0),
                a_.data, apart(a_), b_.data, apart(b_), beta, c_.data, apart(c_),
            ]  # fmt: skip
            kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
            builder.call(builder.inttoptr(address, kind.as_pointer()), values)
            return context.get_dummy_value()

        return types.void(found, types.boolean, a, b, c, types.boolean), code


@jit
def panel_of(found, rows, columns):
    """How wide a panel's product with so large a matrix may be."""
    return max(64, WITHOUT_PACKING // (rows * columns) // 16 * 16) if found[2] else PACKED


@jit
def multiply(found, a, b, c, add):
    """C = a @ b, or that added to c; the rows of each may lie apart."""
    k, rows = a.shape[1], FEW_ROWS if found[2] else a.shape[0]
    columns = panel_of(found, min(rows, a.shape[0]), k)
    for first in range(0, c.shape[1], columns):
        end = min(first + columns, c.shape[1])
        for r in range(0, a.shape[0], rows):
            to = min(r + rows, a.shape[0])
            _gemm(found, False, a[r:to], b[:, first:end], c[r:to, first:end], add)


@jit
def multiply_transposed(found, a, b, c, add):
    """C = a @ b.T, or that added to c; the rows of each may lie apart."""
    rows, others = (FEW_ROWS, WITHOUT_PACKING_TRANSPOSED // FEW_ROWS) if found[2] else c.shape
    columns = panel_of(found, min(rows, c.shape[0]), min(others, c.shape[1]))
    for first in range(0, a.shape[1], columns):
        end = min(first + columns, a.shape[1])
        for r in range(0, c.shape[0], rows):
            to = min(r + rows, c.shape[0])
            for q in range(0, c.shape[1], others):
                last = min(q + others, c.shape[1])
                _gemm(found, True, a[r:to, first:end], b[q:last, first:end], c[r:to, q:last], add | (first > 0))
