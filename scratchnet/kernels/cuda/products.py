"""Matrix products on the GPU: by cuBLAS's own gemmEx where nvmath-python is installed, else by CuPy's `@`.

CuPy refuses `@` while a stream is recorded, rounds a product of bfloat16 to bfloat16, and has one precision for the whole
process. cuBLAS itself does none of that: it only wants a workspace of its own, so that nothing is allocated on the way.

cuBLAS reads a matrix column by column. Read in that way an array of rows is its transpose, and C = A · B is Cᵀ = Bᵀ · Aᵀ:
so the factors change places, and a transposed array is a flag, not a copy.
"""

import dataclasses
import functools
import importlib
import threading
from typing import Any

import numpy as np

from scratchnet import device
from scratchnet.device import get_array_module
from scratchnet.kernels.cuda.rows import widened

WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for its large cards, and harmless on the others
TYPES = {"float32": 0, "float64": 1, "bfloat16": 14}  # cudaDataType_t
FLOAT32, FLOAT64, TF32 = 68, 70, 77  # cublasComputeType_t
DEFAULT = -1  # cublasGemmAlgo_t: cuBLAS chooses, from the sizes alone
_NUMBERS = {name: (np.zeros(1, name), np.ones(1, name)) for name in ("float32", "float64")}  # beta: write, or add
_of_thread = threading.local()


def product(a, b, tf32=None, dtype=None, out=None):
    """a @ b, of two matrices on the GPU.

    Args:
        a, b: of one dtype, each C-contiguous or the transpose of one that is; others are copied.
        tf32: whether float32 factors may be rounded to 10 bits; what `use_tf32` says where not given.
        dtype: name of the result's dtype, that of a where not given; "float32" of bfloat16 saves a rounding.
        out: a C-contiguous array to which the product is added, and which is the result then.
    """
    binding = _binding()
    if binding is None or a.dtype.name not in TYPES or not (a.size and b.size):
        y = device.product(a, b, tf32)
        y = widened(y) if dtype == "float32" else y
        if out is None:
            return y
        out += y
        return out
    xp = get_array_module(a)
    (m, k), n = a.shape, b.shape[1]
    add = out is not None
    if out is None:
        out = xp.empty((m, n), dtype or a.dtype)
    kind = "float64" if a.dtype.name == "float64" else "float32"
    compute = {"float64": FLOAT64, "bfloat16": FLOAT32}.get(a.dtype.name)
    if compute is None:
        compute = TF32 if (device.tf32_enabled() if tf32 is None else tf32) else FLOAT32
    a_turned, a_step, a = _as_stored(xp, a)
    b_turned, b_step, b = _as_stored(xp, b)
    handle = _handle(xp, binding)
    binding.gemm_ex(
        handle, b_turned, a_turned, n, m, k, _NUMBERS[kind][1].ctypes.data,
        b.data.ptr, TYPES[b.dtype.name], b_step, a.data.ptr, TYPES[a.dtype.name], a_step,
        _NUMBERS[kind][add].ctypes.data, out.data.ptr, TYPES[out.dtype.name], n, compute, DEFAULT,
    )  # fmt: skip
    return out


def why_eager():
    """Why products cannot be recorded here, as half a sentence; None where they can."""
    if _binding() is None:
        return (
            "nvmath-python is not installed (the extras cuda12 and cuda13 bring it), and CuPy's own products refuse it"
        )
    return None


def prepare(xp):
    """Make this thread's handle, which cannot be made while a stream is recorded."""
    _handle(xp, _binding())


def _as_stored(xp, matrix):
    """(1 where its rows lie in memory as columns, else 0; numbers from a row to the next; the array)."""
    if not matrix.flags.c_contiguous and matrix.T.flags.c_contiguous:
        return 1, matrix.shape[0], matrix
    return 0, matrix.shape[1], xp.ascontiguousarray(matrix)


def _handle(xp, binding):
    """The handle of a thread, for the card in use: cuBLAS lets no two threads share one."""
    handles = vars(_of_thread).setdefault("handles", {})
    place = xp, binding, xp.cuda.Device().id
    if place not in handles:
        handles[place] = _Handle(binding.create(), xp.empty(WORKSPACE, "uint8"))
    it, stream = handles[place], xp.cuda.get_current_stream().ptr
    if it.stream != stream:
        binding.set_stream(it.handle, stream)  # which takes the workspace away
        binding.set_workspace(it.handle, it.workspace.data.ptr, it.workspace.nbytes)
        it.stream = stream
    return it.handle


@dataclasses.dataclass
class _Handle:
    """A handle, its workspace, of which cuBLAS only has the address, and the stream that it was last told."""

    handle: Any
    workspace: Any
    stream: int | None = None


@functools.cache
def _binding():
    """nvmath-python's functions of cuBLAS, or None."""
    try:
        return importlib.import_module("nvmath.bindings.cublas")
    except (ImportError, RuntimeError):  # not there, or without the libraries that it calls
        return None
